/* SPDX-License-Identifier: MIT */
/*
 * Internal snapshots. Create, apply and delete build all that changes next to what is there and
 * switch to it by one sector of the header (C8): whatever happens, the image is as before or as
 * after.
 *
 *   create   the live L1 table becomes the snapshot's, as it is; the active image gets a new one,
 *            and new L2 tables where COPIED flags have to go
 *   apply    all that the active L1 reaches loses a reference, all that the snapshot's reaches
 *            gains one
 *   delete   all that the snapshot's L1 reaches loses a reference; L2 tables whose clusters are
 *            now used once get their COPIED flags in new copies
 *
 * Clusters that nobody counts after the switch were never written over before it.
 */
#include "drivers/qcow2/snapshot/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/units.h"
#include "blockcore/bitmap/identity.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/l1.h"
#include "drivers/qcow2/tables/shadow.h"

/* Ids are numbers that count up. Larger ones were not made so; the next id does not follow them. */
#define MAX_COUNTED_ID (UINT64_C(1) << 62)

/* ---- finding ---- */

/* What a walk looks for, and what it found. */
struct search {
    const char *text;
    bool by_id, by_name;
    bool found;
    struct qcow2_snapshot snapshot; /* without strings and stored form */
    uint32_t index;
    uint32_t walked;
};

static int visit_search(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    struct search *search = opaque;
    (void)err;
    if ((search->by_id && strcmp(snapshot->id, search->text) == 0) ||
        (search->by_name && strcmp(snapshot->name, search->text) == 0)) {
        search->found = true;
        search->index = search->walked;
        search->snapshot = *snapshot;
        search->snapshot.id = search->snapshot.name = NULL;
        search->snapshot.raw = NULL;
    }
    search->walked++;
    return search->found; /* 1 ends the walk */
}

static int search_by(struct blk_node *node, bool id, const char *text, struct search *search,
                     struct blk_error *err)
{
    *search = (struct search){ .text = text, .by_id = id, .by_name = !id };
    int ret = qcow2_snapshot_table_walk(node, visit_search, search, NULL, err);
    return ret < 0 ? ret : 0;
}

static int not_found(struct blk_node *node, const char *text, struct blk_error *err)
{
    return blk_fail_why(err, ENOENT, "there is no such snapshot", "snapshot '%s' of '%s'", text,
                        node->name);
}

/* As QEMU looks when it applies or loads: an id first, whatever the others are called. */
static int find_snapshot(struct blk_node *node, const char *id_or_name, struct search *search,
                         struct blk_error *err)
{
    int ret = search_by(node, true, id_or_name, search, err);
    if (ret == 0 && !search->found)
        ret = search_by(node, false, id_or_name, search, err);
    return ret < 0 || search->found ? ret : not_found(node, id_or_name, err);
}

/*
 * What lies behind the end of the file was never written, and reading it as zeroes would lose all
 * that it mapped. Unlike qcow2_check_cut_off() this makes no exception for a file that others are
 * writing: a snapshot's table is older than the entry that names it.
 */
static int check_l1_place(struct blk_node *node, const struct qcow2_snapshot *snapshot,
                          struct blk_error *err)
{
    if (range_within(snapshot->l1_offset, (uint64_t)snapshot->l1_entries * 8,
                     blk_size(qcow2_file(node))))
        return 0;
    return qcow2_fail_cut_short(qcow2_file(node), snapshot->l1_offset, "L1 table of a snapshot",
                                err);
}

static int read_l1(struct blk_node *node, const struct qcow2_snapshot *snapshot, uint64_t **table,
                   struct blk_error *err)
{
    *table = NULL;
    int ret = check_l1_place(node, snapshot, err);
    return ret < 0 ? ret
                   : qcow2_read_table(node, &qcow2_snapshot_l1_kind, snapshot->l1_offset,
                                      snapshot->l1_entries, table, err);
}

/* ---- listing ---- */

struct listing {
    struct blk_snapshot *list;
    size_t count, room;
};

static int visit_list(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    struct listing *listing = opaque;
    if (listing->count == listing->room) {
        size_t room = listing->room ? listing->room * 2 : 16;
        struct blk_snapshot *list = realloc(listing->list, room * sizeof(*list));
        if (!list)
            return blk_fail(err, ENOMEM, "listing snapshots");
        listing->list = list;
        listing->room = room;
    }
    listing->list[listing->count++] = (struct blk_snapshot){
        .id = blk_xstrndup(snapshot->id, QCOW2_SHOWN_ID_BYTES),
        .name = blk_xstrndup(snapshot->name, QCOW2_SHOWN_NAME_BYTES),
        .vm_state_bytes = snapshot->vm_state_bytes,
        .date_seconds = snapshot->date_seconds,
        .date_nanoseconds = snapshot->date_nanoseconds,
        .vm_clock_ns = snapshot->vm_clock_ns,
        .icount = snapshot->icount,
        .disk_bytes = snapshot->disk_bytes,
    };
    return 0;
}

static int qcow2_snapshot_list(struct blk_node *node, struct blk_snapshot **list, size_t *count,
                               struct blk_error *err)
{
    struct listing listing = { .list = NULL };

    *list = NULL;
    *count = 0;
    int ret = qcow2_snapshot_table_walk(node, visit_list, &listing, NULL, err);
    if (ret < 0) {
        blk_snapshots_free(listing.list, listing.count);
        return ret;
    }
    *list = listing.list;
    *count = listing.count;
    return 0;
}

/* ---- one change, from beginning to switch ---- */

struct snapshot_change {
    struct blk_node *node;
    struct qcow2_shadow shadow;
    struct qcow2_header next;
    struct qcow2_snapshot_table table;
    uint64_t *l1; /* the new active L1; next.l1_entries of them */
    uint64_t old_table_bytes;
};

/* Commits all, so that the file has all there is, and starts from its live counts and active L1. */
static int begin_snapshot_change(struct snapshot_change *change, struct blk_node *node,
                                 struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);

    *change = (struct snapshot_change){ .node = node };
    if (s->data_file)
        return blk_fail_why(err, ENOTSUP, "an image with an external data file cannot have any",
                            "internal snapshots of '%s'", node->name);
    int ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;
    change->next = s->header;
    ret = qcow2_read_table(node, &qcow2_l1_kind, s->header.l1_offset, s->header.l1_entries,
                           &change->l1, err);
    if (ret < 0)
        return ret;
    return qcow2_shadow_begin(node, s->refcount_order, true, NULL, &change->shadow, err);
}

static void end_snapshot_change(struct snapshot_change *change)
{
    qcow2_shadow_end(&change->shadow);
    free(change->table.data);
    free(change->l1);
}

/*
 * Frees, or does not free, the place of the active L1 (`keep_old`: it has become a snapshot's)
 * and writes the new one.
 */
static int write_changed_l1(struct snapshot_change *change, bool keep_old, struct blk_error *err)
{
    const struct qcow2_header *live = &qcow2_state(change->node)->header;
    int ret = 0;

    if (!keep_old && live->l1_entries)
        ret = qcow2_shadow_add(&change->shadow, live->l1_offset, (uint64_t)live->l1_entries * 8, -1,
                               err);
    if (ret == 0)
        ret = qcow2_tree_write_l1(&change->shadow, change->l1, change->next.l1_entries,
                                  &change->next.l1_offset, err);
    return ret;
}

/* Writes the new refcounts, makes everything stable and switches to it. */
static int commit_change(struct snapshot_change *change, struct blk_error *err)
{
    struct blk_node *node = change->node;

    int ret = qcow2_shadow_finish(&change->shadow, true, &change->next, err);
    if (ret < 0)
        return ret;
    ret = qcow2_barrier(node, err);
    if (ret < 0)
        return ret;
    ret = qcow2_header_switch(node, &change->next, err);
    if (ret < 0)
        return ret;
    qcow2_forget_tables(node);
    blk_node_set_size(node, change->next.size);
    qcow2_shadow_discard_freed(&change->shadow);
    return 0;
}

/* The same with the snapshot table of the change in the place of the old one. */
static int switch_table(struct snapshot_change *change, struct blk_error *err)
{
    int ret = qcow2_snapshot_table_replace(&change->shadow, &change->table, change->old_table_bytes,
                                           &change->next, err);
    return ret < 0 ? ret : commit_change(change, err);
}

/* ---- create ---- */

/* Collects the entries and the largest id. */
struct collecting {
    struct qcow2_snapshot_table *table;
    uint32_t skip; /* index of an entry to leave out; UINT32_MAX: none */
    uint32_t walked;
    uint64_t largest_id;
};

static int visit_collect(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    struct collecting *collecting = opaque;
    uint64_t id = strtoull(snapshot->id, NULL, 10);

    if (id < MAX_COUNTED_ID)
        collecting->largest_id = u64_max(collecting->largest_id, id);
    if (collecting->walked++ == collecting->skip)
        return 0;
    return qcow2_snapshot_table_add(collecting->table, snapshot, err);
}

/* Which of `count` numbers from `first` on are the id of a snapshot. */
struct taken {
    uint64_t first, count;
    bool *numbers;
};

static int visit_taken(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    struct taken *taken = opaque;
    uint64_t id = strtoull(snapshot->id, NULL, 10);
    (void)err;

    if (id >= taken->first && id - taken->first < taken->count)
        taken->numbers[id - taken->first] = true;
    return 0;
}

/* A number above all others (but for some that nobody counted up to), and one that nobody has. */
static int choose_id(struct blk_node *node, uint64_t largest, char id[24], struct blk_error *err)
{
    struct taken taken = {
        .first = largest + 1,
        .count = (uint64_t)qcow2_state(node)->header.snapshot_count + 1,
    };
    uint64_t bytes, number = 0;

    taken.numbers = blk_xcalloc(taken.count, sizeof(*taken.numbers));
    int ret = qcow2_snapshot_table_walk(node, visit_taken, &taken, &bytes, err);
    while (number + 1 < taken.count && taken.numbers[number]) /* there are not that many to take */
        number++;
    free(taken.numbers);
    snprintf(id, 24, "%" PRIu64, taken.first + number);
    return ret;
}

static int add_entry(struct snapshot_change *change, const char *name, struct blk_error *err)
{
    const struct qcow2_header *live = &qcow2_state(change->node)->header;
    struct collecting collecting = { .table = &change->table, .skip = UINT32_MAX };
    struct timespec now;
    char id[24];

    int ret = qcow2_snapshot_table_walk(change->node, visit_collect, &collecting,
                                        &change->old_table_bytes, err);
    if (ret == 0)
        ret = choose_id(change->node, collecting.largest_id, id, err);
    if (ret < 0)
        return ret;

    clock_gettime(CLOCK_REALTIME, &now);
    struct qcow2_snapshot snapshot = {
        .l1_offset = live->l1_offset,
        .l1_entries = live->l1_entries,
        .id = id,
        .name = blk_xstrdup(name),
        .date_seconds = (uint32_t)now.tv_sec,
        .date_nanoseconds = (uint32_t)now.tv_nsec,
        .disk_bytes = live->size,
    };
    ret = qcow2_snapshot_table_add(&change->table, &snapshot, err);
    free(snapshot.name);
    return ret;
}

static int create(struct snapshot_change *change, const char *name, struct blk_error *err)
{
    struct qcow2_shadow *shadow = &change->shadow;
    uint32_t entries = change->next.l1_entries;
    bool changed;

    int ret = add_entry(change, name, err);
    if (ret < 0)
        return ret;
    ret = qcow2_tree_count(shadow, change->l1, entries, 1, err);
    if (ret < 0)
        return ret;
    ret = qcow2_tree_set_copied(shadow, change->l1, entries, &changed, err);
    if (ret < 0)
        return ret;
    ret = write_changed_l1(change, true, err);
    return ret < 0 ? ret : switch_table(change, err);
}

static int qcow2_snapshot_create(struct blk_node *node, const char *name, struct blk_error *err)
{
    ASSERT_ALONE();
    struct snapshot_change change;

    if (strlen(name) > QCOW2_SHOWN_NAME_BYTES)
        return blk_fail_why(err, EINVAL, "its name is longer than 255 bytes",
                            "creating a snapshot of '%s'", node->name);
    int ret = begin_snapshot_change(&change, node, err);
    if (ret == 0)
        ret = create(&change, name, err);
    end_snapshot_change(&change);
    if (ret < 0)
        blk_context(err, "creating snapshot '%s'", name);
    return ret;
}

/* ---- apply ---- */

/* Replaces change->l1 by the snapshot's table, long enough for its disk size. */
static int take_l1(struct snapshot_change *change, const struct qcow2_snapshot *snapshot,
                   struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(change->node);
    uint64_t *table;
    int ret = read_l1(change->node, snapshot, &table, err);
    if (ret < 0)
        return ret;

    uint64_t needed = qcow2_l1_entries_for(snapshot->disk_bytes, s->cluster_bits, s->extended);
    uint64_t entries = u64_max(snapshot->l1_entries, needed);
    uint64_t *longer = realloc(table, entries ? entries * 8 : 8);
    if (!longer) {
        free(table);
        return blk_fail(err, ENOMEM, "reading the L1 table of a snapshot");
    }
    memset(longer + snapshot->l1_entries, 0, (entries - snapshot->l1_entries) * 8);
    free(change->l1);
    change->l1 = longer;
    change->next.l1_entries = (uint32_t)entries;
    change->next.size = snapshot->disk_bytes;
    return 0;
}

static int check_disk_size(const struct blk_node *node, const struct qcow2_snapshot *snapshot,
                           struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t bytes = snapshot->disk_bytes;

    if (bytes == s->header.size)
        return 0;
    if (s->header.version < 3)
        return blk_fail_why(err, ENOTSUP,
                            "the disk had another size then, and an image of version "
                            "2 with snapshots cannot be resized",
                            "'%s'", node->name);
    if (bytes > BLK_MAX_BYTES || bytes % BLK_SECTOR_BYTES ||
        qcow2_l1_entries_for(bytes, s->cluster_bits, s->extended) * 8 > QCOW2_MAX_L1_BYTES)
        return blk_fail_why(err, EIO, "the snapshot's disk size is invalid", "'%s'", node->name);
    return 0;
}

static int apply_snapshot(struct snapshot_change *change, const struct qcow2_snapshot *snapshot,
                          struct blk_error *err)
{
    struct qcow2_shadow *shadow = &change->shadow;
    bool changed;
    int ret;

    /* Counts go down first: where they are narrow there may be no room for one more. */
    ret = qcow2_tree_count(shadow, change->l1, change->next.l1_entries, -1, err);
    if (ret < 0)
        return ret;
    ret = take_l1(change, snapshot, err);
    if (ret < 0)
        return ret;
    ret = qcow2_tree_count(shadow, change->l1, change->next.l1_entries, 1, err);
    if (ret < 0)
        return ret;
    ret = qcow2_tree_set_copied(shadow, change->l1, change->next.l1_entries, &changed, err);
    if (ret < 0)
        return ret;
    ret = write_changed_l1(change, false, err);
    if (ret < 0)
        return ret;
    return commit_change(change, err);
}

/*
 * A guest that goes back in time makes no writes that bitmaps could record: what will differ is
 * looked for before.
 */
static int begin_recording(struct blk_node *node, const struct qcow2_snapshot *snapshot,
                           struct blk_dirty_bitmap **changed, struct blk_error *err)
{
    BLK_AUTOFREE uint64_t *table = NULL;

    *changed = NULL;
    int ret = check_disk_size(node, snapshot, err);
    if (ret == 0)
        ret = read_l1(node, snapshot, &table, err);
    return ret < 0 ? ret
                   : qcow2_bitmaps_begin_apply(node, table, snapshot->l1_entries,
                                               snapshot->disk_bytes, changed, err);
}

static int qcow2_snapshot_apply(struct blk_node *node, const char *id_or_name,
                                struct blk_error *err)
{
    ASSERT_ALONE();
    struct snapshot_change change;
    struct search search;
    struct blk_dirty_bitmap *changed = NULL;

    int ret = find_snapshot(node, id_or_name, &search, err);
    if (ret < 0)
        return ret;
    ret = blk_identity_will_change(node, err);
    if (ret == 0)
        ret = begin_recording(node, &search.snapshot, &changed, err);
    if (ret == 0) {
        ret = begin_snapshot_change(&change, node, err);
        if (ret == 0)
            ret = apply_snapshot(&change, &search.snapshot, err);
        end_snapshot_change(&change);
    }
    if (ret == 0)
        ret = qcow2_bitmaps_end_apply(node, search.snapshot.disk_bytes, changed, err);
    blk_dirty_bitmap_free(changed);
    if (ret < 0)
        blk_context(err, "applying snapshot '%s'", id_or_name);
    return ret;
}

/* ---- delete ---- */

static int delete_snapshot(struct snapshot_change *change, const struct search *search,
                           struct blk_error *err)
{
    const struct qcow2_snapshot *snapshot = &search->snapshot;
    struct qcow2_shadow *shadow = &change->shadow;
    struct collecting collecting = { .table = &change->table, .skip = search->index };
    bool changed;

    int ret = qcow2_snapshot_table_walk(change->node, visit_collect, &collecting,
                                        &change->old_table_bytes, err);
    if (ret < 0)
        return ret;
    BLK_AUTOFREE uint64_t *table = NULL;
    ret = read_l1(change->node, snapshot, &table, err);
    if (ret < 0)
        return ret;
    ret = qcow2_tree_count(shadow, table, snapshot->l1_entries, -1, err);
    if (ret < 0)
        return ret;
    if (snapshot->l1_entries)
        ret = qcow2_shadow_add(shadow, snapshot->l1_offset, (uint64_t)snapshot->l1_entries * 8, -1,
                               err);
    if (ret < 0)
        return ret;
    ret = qcow2_tree_set_copied(shadow, change->l1, change->next.l1_entries, &changed, err);
    if (ret < 0)
        return ret;
    if (changed)
        ret = write_changed_l1(change, false, err);
    return ret < 0 ? ret : switch_table(change, err);
}

/*
 * By name alone, as qemu-img does: a number that is another snapshot's id must not delete that one.
 */
static int qcow2_snapshot_delete(struct blk_node *node, const char *name, struct blk_error *err)
{
    ASSERT_ALONE();
    struct snapshot_change change;
    struct search search;

    int ret = search_by(node, false, name, &search, err);
    if (ret == 0 && !search.found)
        ret = not_found(node, name, err);
    if (ret < 0)
        return ret;
    ret = begin_snapshot_change(&change, node, err);
    if (ret == 0)
        ret = delete_snapshot(&change, &search, err);
    end_snapshot_change(&change);
    if (ret < 0)
        blk_context(err, "deleting snapshot '%s'", name);
    return ret;
}

/* ---- load ---- */

static int qcow2_snapshot_load(struct blk_node *node, const char *id_or_name, struct blk_error *err)
{
    struct search search;
    int ret = find_snapshot(node, id_or_name, &search, err);
    if (ret < 0)
        return ret;
    if (blk_is_writable(node))
        return blk_fail_why(err, EINVAL, "only an image opened read-only can show a snapshot",
                            "loading snapshot '%s' of '%s'", id_or_name, node->name);
    const struct qcow2_snapshot *snapshot = &search.snapshot;
    ret = check_l1_place(node, snapshot, err);
    if (ret < 0)
        return ret;
    return qcow2_use_l1(node, snapshot->l1_offset, snapshot->l1_entries, snapshot->disk_bytes, err);
}

const struct blk_snapshot_ops qcow2_snapshot_ops = {
    .list = qcow2_snapshot_list,
    .create = qcow2_snapshot_create,
    .apply = qcow2_snapshot_apply,
    .remove = qcow2_snapshot_delete,
    .load = qcow2_snapshot_load,
};
