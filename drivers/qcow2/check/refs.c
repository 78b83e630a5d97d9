/* SPDX-License-Identifier: MIT */
/*
 * Follows the L1 tables: every cluster gets as many references as there are paths that lead to it,
 * which is what its refcount should be.
 *
 * A shared L2 table is read at most twice, not once for each snapshot: at its first L1 entry, and
 * at the end for all others together. A table whose place is taken by something else is not
 * followed. So the work is bounded by the size of the file, whatever the tables say.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/snapshot/snapshot.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/map.h"

void qcow2_check_past_end(struct qcow2_check *check, uint64_t offset, const char *what)
{
    atomic_store(&qcow2_state(check->node)->saw_cut, true);
    qcow2_check_corruption(check,
                           "%s at offset 0x%" PRIx64 " lies past the end of the file, which is "
                           "cut short at %" PRIu64,
                           what, offset, blk_size(qcow2_file(check->node)));
}

bool qcow2_check_add_refs(struct qcow2_check *check, uint64_t offset, uint64_t bytes,
                          enum qcow2_use use, uint64_t times, const char *what)
{
    uint64_t cluster_bytes = qcow2_state(check->node)->cluster_bytes;
    if (!bytes)
        return true;
    uint64_t first = offset / cluster_bytes;
    uint64_t last = (offset + bytes - 1) / cluster_bytes;
    bool fits = true;

    if (last >= check->clusters) {
        qcow2_check_past_end(check, offset, what);
        if (first >= check->clusters)
            return false;
        last = check->clusters - 1;
        fits = false;
    }
    /* One finding for each structure, however long. */
    bool overlaps = false;
    for (uint64_t cluster = first; cluster <= last; cluster++) {
        if (qcow2_check_add_one(check, cluster, use, times) || overlaps)
            continue;
        qcow2_check_overlapping(check, cluster, what);
        overlaps = true;
    }
    return fits && !overlaps;
}

/* A table must be in the file to its last byte. */
static bool is_there(const struct qcow2_check *check, uint64_t offset, uint64_t bytes)
{
    return range_within(offset, bytes, blk_size(qcow2_file(check->node)));
}

bool qcow2_check_add_table(struct qcow2_check *check, uint64_t offset, uint64_t bytes,
                           const char *what)
{
    bool fits = offset % qcow2_state(check->node)->cluster_bytes == 0 &&
                range_within(offset, bytes, QCOW2_MAX_HOST_OFFSET);
    if (!fits)
        qcow2_check_corruption(check, "%s has the invalid offset 0x%" PRIx64, what, offset);
    else
        fits = qcow2_check_add_refs(check, offset, bytes, QCOW2_USE_OTHER, 1, what);
    if (fits && !is_there(check, offset, bytes)) {
        qcow2_check_past_end(check, offset, what);
        fits = false;
    }
    if (!fits)
        check->incomplete = check->tangled = true;
    return fits;
}

/* ---- L2 tables ---- */

/* The walk of one L2 table. */
struct walk {
    uint64_t times; /* how often the table is referred to, and so all that it points to */
    uint64_t guest; /* what its first entry maps */
    bool active;    /* of the active L1: counts in the allocation figures */
    bool reserved;  /* reports reserved bits */
    bool again;     /* errors have been reported by the first walk */
    uint64_t next;  /* host offset at which the next cluster would not be fragmented */
};

static void count_allocation(struct qcow2_check *check, struct walk *walk, uint64_t offset)
{
    if (!walk->active)
        return;
    check->result->allocated_clusters++;
    if (walk->next && offset != walk->next)
        check->result->fragmented_clusters++;
    walk->next = offset + qcow2_state(check->node)->cluster_bytes;
}

static void count_compressed(struct qcow2_check *check, const struct walk *walk)
{
    if (!walk->active)
        return;
    /* Pieces of odd length never follow each other in whole clusters. */
    check->result->allocated_clusters++;
    check->result->compressed_clusters++;
    check->result->fragmented_clusters++;
}

/* Counts the clusters of a compressed piece, as far as they are in the file. */
static void add_compressed(struct qcow2_check *check, uint64_t entry, const struct walk *walk)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = qcow2_compressed_offset(entry, s->cluster_bits);
    uint64_t end = check->clusters * s->cluster_bytes;
    uint64_t bytes = qcow2_compressed_bytes(entry, s->cluster_bits);

    if (offset < end)
        qcow2_check_add_refs(check, offset, u64_min(bytes, end - offset), QCOW2_USE_DATA,
                             walk->times, "compressed data");
}

/* Those of the active tables are found, and mended, in entries.c. */
static void report_reserved(struct qcow2_check *check, const char *table, uint64_t entry)
{
    qcow2_check_corruption(check, "an %s entry of a snapshot has reserved bits set: 0x%" PRIx64,
                           table, entry);
}

static void collect_entry(struct qcow2_check *check, struct qcow2_entry entry, uint64_t guest,
                          struct walk *walk)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = entry.entry & QCOW2_ENTRY_OFFSET;
    enum qcow2_loss loss = qcow2_check_loss(check, entry, guest);

    if (loss != QCOW2_LOSS_NONE && !walk->again)
        qcow2_check_lost(check, guest, s->cluster_bytes, loss);
    if (entry.entry & QCOW2_ENTRY_COMPRESSED) {
        count_compressed(check, walk);
        if (!s->data_file)
            add_compressed(check, entry.entry, walk);
        return;
    }
    if (walk->reserved && entry.entry & QCOW2_L2_RESERVED)
        report_reserved(check, "L2", entry.entry);
    if (!qcow2_entry_has_host(s, entry))
        return;
    count_allocation(check, walk, offset);
    if (!s->data_file && loss != QCOW2_LOSS_OFFSET && loss != QCOW2_LOSS_PAST_END)
        qcow2_check_add_refs(check, offset, s->cluster_bytes, QCOW2_USE_DATA, walk->times,
                             "a data cluster");
}

/* A row of clusters that entries without any flag but COPIED map. */
static void collect_run(struct qcow2_check *check, uint64_t entry, uint32_t clusters,
                        struct walk *walk)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;

    if (walk->active) {
        count_allocation(check, walk, offset);
        check->result->allocated_clusters += clusters - 1;
        walk->next = offset + (uint64_t)clusters * s->cluster_bytes;
        check->odd_entries |= !(entry & QCOW2_ENTRY_COPIED);
    }
    qcow2_check_add_data(check, offset >> s->cluster_bits, clusters, walk->times);
}

static int collect_l2(struct qcow2_check_tables *tables, uint64_t offset, struct walk walk,
                      struct blk_error *err)
{
    struct qcow2_check *check = tables->check;
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t plain_end = qcow2_check_plain_end(check);
    uint8_t *buf;

    int ret = qcow2_check_tables_get(tables, offset, &buf, err);
    if (ret < 0)
        return ret;
    for (uint32_t i = 0, length; i < s->l2_entries; i += length) {
        struct qcow2_entry entry = qcow2_entry_get(s, buf, i);
        uint32_t most = s->l2_entries - i;
        length = 1;
        if (!entry.entry && plain_end) {
            length = qcow2_entries_in_row(buf + (uint64_t)i * 8, most, 0);
        } else if (qcow2_check_is_plain(entry.entry, s->cluster_bytes, plain_end)) {
            uint64_t clusters = (plain_end - (entry.entry & QCOW2_ENTRY_OFFSET)) >> s->cluster_bits;
            length = qcow2_entries_in_row(buf + (uint64_t)i * 8, (uint32_t)u64_min(most, clusters),
                                          s->cluster_bytes);
            collect_run(check, entry.entry, length, &walk);
        } else {
            check->odd_entries |= walk.active;
            collect_entry(check, entry, walk.guest + (uint64_t)i * s->cluster_bytes, &walk);
        }
    }
    return 0;
}

/*
 * L2 tables that are referred to more than once: so far what they point to has been counted only
 * once.
 */
static int collect_shared_l2(struct qcow2_check *check, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    struct qcow2_check_tables tables;

    int ret = check->shared ? qcow2_check_tables_begin(check, &tables, err) : 1;
    if (ret)
        return ret < 0 ? ret : 0;
    /* Nothing is added to an L2 table here, so what is found next is another one. */
    for (uint64_t cluster = qcow2_check_next_l2(check, 0); cluster < check->clusters && ret == 0;
         cluster = qcow2_check_next_l2(check, cluster + 1)) {
        uint64_t refs = qcow2_check_refs(check, cluster);
        if (refs > 1)
            ret = collect_l2(&tables, cluster * s->cluster_bytes,
                             (struct walk){ .times = refs - 1, .again = true }, err);
    }
    qcow2_check_tables_end(&tables);
    return ret;
}

/* ---- L1 tables ---- */

/* Follows an L1 entry: the first way to an L2 table walks it. */
static int collect_l1_entry(struct qcow2_check_tables *tables, uint64_t index, uint64_t l2,
                            struct blk_error *err)
{
    struct qcow2_check *check = tables->check;
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t cluster = l2 / s->cluster_bytes;
    uint64_t per_table = (uint64_t)s->l2_entries * s->cluster_bytes;
    bool active = !check->walked_snapshot;

    if (l2 % s->cluster_bytes || cluster >= check->clusters) {
        qcow2_check_lost(check, index * per_table, per_table,
                         l2 % s->cluster_bytes ? QCOW2_LOSS_L2_TABLE : QCOW2_LOSS_PAST_END);
        return 0;
    }
    enum qcow2_use before = qcow2_check_use(check, cluster);
    /* Not shared with a snapshot, as the active L1 is first: it shows at two places of the disk. */
    if (active && before == QCOW2_USE_L2)
        qcow2_check_corruption(check, "two L1 entries point to the L2 table at 0x%" PRIx64, l2);
    if (!qcow2_check_add_one(check, cluster, QCOW2_USE_L2, 1))
        qcow2_check_overlapping(check, cluster, "an L2 table");
    if (before != QCOW2_USE_NONE && before != QCOW2_USE_DATA)
        return 0;
    struct walk walk = {
        .times = 1,
        .guest = index * per_table,
        .active = active,
        .reserved = !active,
    };
    int ret = collect_l2(tables, l2, walk, err);
    uint64_t first = qcow2_check_cut_entry(check, l2);
    if (ret == 0 && first < s->l2_entries)
        qcow2_check_lost(check, walk.guest + first * s->cluster_bytes,
                         (s->l2_entries - first) * s->cluster_bytes, QCOW2_LOSS_L2_CUT);
    return ret;
}

/* The active one, or that of the snapshot that is being walked. */
static int collect_l1(struct qcow2_check *check, uint64_t l1_offset, uint64_t entries,
                      struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    BLK_AUTOFREE uint64_t *l1 = NULL;
    bool active = !check->walked_snapshot;

    if (entries * 8 > QCOW2_MAX_L1_BYTES) {
        qcow2_check_corruption(check, "an L1 table is larger than 32 MiB");
        check->incomplete = true;
        return 0;
    }
    if (!entries || !qcow2_check_add_table(check, l1_offset, entries * 8, "an L1 table"))
        return 0;
    check->l1_usable |= active;
    struct qcow2_check_tables tables;
    int ret = qcow2_check_tables_begin(check, &tables, err);
    if (ret == 0)
        ret = qcow2_read_table(check->node, &qcow2_l1_kind, l1_offset, entries, &l1, err);
    for (uint64_t i = 0; i < entries && ret == 0; i++) {
        if (!active && l1[i] & QCOW2_L1_RESERVED)
            report_reserved(check, "L1", l1[i]);
        check->odd_entries |= active && l1[i] &&
                              !qcow2_check_is_plain(l1[i], s->cluster_bytes, QCOW2_MAX_HOST_OFFSET);
        if (l1[i] & QCOW2_ENTRY_OFFSET) {
            check->odd_entries |= active && !(l1[i] & QCOW2_ENTRY_COPIED);
            ret = collect_l1_entry(&tables, i, l1[i] & QCOW2_ENTRY_OFFSET, err);
        }
    }
    qcow2_check_tables_end(&tables);
    qcow2_check_lost_end(check);
    return ret;
}

/* ---- snapshots ---- */

static int collect_snapshot(void *opaque, const struct qcow2_snapshot *snapshot,
                            struct blk_error *err)
{
    struct qcow2_check *check = opaque;

    if (snapshot->is_excess && check->drop_excess)
        return 0;
    if (snapshot->is_excess)
        qcow2_check_corruption(check,
                               "snapshot '%s' is past the limits: an image has at most %u, "
                               "in a table of 64 MiB",
                               snapshot->name, QCOW2_MAX_SNAPSHOTS);
    if (snapshot->stored_bytes != snapshot->raw_bytes)
        qcow2_check_corruption(check, "snapshot '%s' has more than 1 KiB of extra data",
                               snapshot->name);
    check->mend_snapshots |= snapshot->is_excess || snapshot->stored_bytes != snapshot->raw_bytes;
    /* A snapshot without a size is taken to have that of the disk, which may have changed since. */
    if (qcow2_state(check->node)->header.version >= 3 &&
        snapshot->extra_bytes < QCOW2_SNAPSHOT_EXTRA_V3_BYTES) {
        qcow2_check_corruption(check, "snapshot '%s' lacks the sizes that version 3 requires",
                               snapshot->name);
        check->mend_snapshots = true;
    }
    check->walked_snapshot = snapshot->name;
    check->walked_bytes = snapshot->vm_state_bytes ? UINT64_MAX : snapshot->disk_bytes;
    int ret = collect_l1(check, snapshot->l1_offset, snapshot->l1_entries, err);
    check->walked_snapshot = NULL;
    return ret;
}

static int collect_snapshots(struct qcow2_check *check, struct blk_error *err)
{
    const struct qcow2_header *header = &qcow2_state(check->node)->header;
    struct blk_error why = BLK_ERROR_INIT;
    uint64_t table_bytes = 0;

    if (!header->snapshot_count)
        return 0;
    int ret = qcow2_snapshot_table_walk(check->node, collect_snapshot, check, &table_bytes, &why);
    if (ret == -EINVAL || ret == -EFBIG) {
        qcow2_check_corruption(check, "the snapshot table is damaged: %s", why.why);
        check->incomplete = true;
        blk_error_clear(&why);
        return 0;
    }
    if (ret < 0) {
        if (err)
            *err = why;
        return ret;
    }
    qcow2_check_add_table(check, header->snapshots_offset, table_bytes, "the snapshot table");
    return 0;
}

int qcow2_check_l1_tables(struct qcow2_check *check, struct blk_error *err)
{
    const struct qcow2_header *header = &qcow2_state(check->node)->header;

    int ret = collect_l1(check, header->l1_offset, header->l1_entries, err);
    if (ret == 0)
        ret = collect_snapshots(check, err);
    return ret < 0 ? ret : collect_shared_l2(check, err);
}
