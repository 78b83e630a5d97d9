/* SPDX-License-Identifier: MIT */
/*
 * Version 3 to version 2, which has no flag for clusters that read as zeroes.
 *
 * Where nothing shows through, such a cluster becomes unallocated; above a backing file it becomes
 * data, a new cluster of zeroes. That goes for the active image and all snapshots. The tables that
 * change are built next to the old ones, and the header that makes them valid is the one that says
 * version 2 (C8).
 */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/cancel.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/shape/amend.h"
#include "drivers/qcow2/snapshot/snapshot.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/shadow.h"

struct downgrade {
    struct blk_node *node;
    struct qcow2_shadow shadow;
    struct qcow2_header next;
    struct qcow2_snapshot_table table;
    uint8_t *l2;        /* one cluster to work in */
    bool table_changed; /* a snapshot has another L1 */
    const struct blk_progress *progress;
    uint64_t entries_done, entries; /* of all L1 tables */
};

static int refuse_downgrade(const struct blk_node *node, struct blk_error *err, const char *why)
{
    return blk_fail_why(err, ENOTSUP, why, "changing the version of '%s' to 2 (compat=0.10)",
                        node->name);
}

/* ---- what version 2 cannot have ---- */

static int visit_check(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    struct downgrade *d = opaque;
    const struct blk_node *node = d->node;

    d->entries += snapshot->l1_entries;
    if (snapshot->vm_state_bytes > UINT32_MAX)
        return refuse_downgrade(node, err, "a snapshot has a VM state of 4 GiB or more");
    if (snapshot->disk_bytes != qcow2_state(node)->header.size)
        return refuse_downgrade(node, err, "a snapshot was taken when the disk had another size");
    return 0;
}

/* Counts the L1 entries, too. */
static int check_expressible(struct downgrade *d, struct blk_error *err)
{
    struct blk_node *node = d->node;
    const struct qcow2_state *s = qcow2_state(node);

    d->entries = s->header.l1_entries;
    if (s->data_file)
        return refuse_downgrade(node, err, "it has an external data file");
    if (s->extended)
        return refuse_downgrade(node, err, "it has extended L2 entries");
    if (s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS &&
        qcow2_tail_find(&s->tail, QCOW2_EXT_BITMAPS))
        return refuse_downgrade(node, err,
                                "it has dirty bitmaps, which would be lost; remove them first");
    if (s->header.incompatible & ~QCOW2_INCOMPAT_COMPRESSION)
        return refuse_downgrade(node, err, "it is marked as dirty or corrupt");
    return qcow2_snapshot_table_walk(node, visit_check, d, NULL, err);
}

/* ---- tables ---- */

/* A new cluster of zeroes for an entry. */
static int make_zeroes(struct downgrade *d, uint64_t *entry, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(d->node);
    uint64_t offset;

    int ret = qcow2_shadow_alloc(&d->shadow, s->cluster_bytes, &offset, err);
    if (ret == 0)
        ret = blk_child_write_zeroes(qcow2_file(d->node), offset, s->cluster_bytes, 0, err);
    *entry = offset | QCOW2_ENTRY_COPIED;
    return ret;
}

/* Rewrites the zero clusters of the L2 table in d->l2; *changed says whether there were any. */
static int expand_l2(struct downgrade *d, bool *changed, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(d->node);
    int ret = 0;

    *changed = false;
    for (uint32_t i = 0; i < s->l2_entries && ret == 0; i++) {
        uint64_t entry = be64_get(d->l2 + (uint64_t)i * 8), expanded = 0;
        if (entry & QCOW2_ENTRY_COMPRESSED) {
            if (s->header.compression != QCOW2_DEFLATE)
                return refuse_downgrade(d->node, err, "it has clusters compressed with zstd");
            continue;
        }
        if (!(entry & QCOW2_ENTRY_ZERO))
            continue;
        uint64_t host = entry & QCOW2_ENTRY_OFFSET;
        if (host)
            ret = qcow2_shadow_add(&d->shadow, host, s->cluster_bytes, -1, err);
        if (ret == 0 && d->node->backing_name)
            ret = make_zeroes(d, &expanded, err);
        be64_put(d->l2 + (uint64_t)i * 8, expanded);
        *changed = true;
    }
    return ret;
}

/* Rewrites what one L1 entry reaches, in a new place if it changes. */
static int expand_table(struct downgrade *d, uint64_t *l1_entry, bool *changed,
                        struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(d->node);
    uint64_t offset = *l1_entry & QCOW2_ENTRY_OFFSET, place;
    bool expanded = false;

    int ret = blk_child_pread(qcow2_file(d->node), offset, s->cluster_bytes, d->l2, err);
    if (ret == 0)
        ret = expand_l2(d, &expanded, err);
    if (ret < 0 || !expanded)
        return ret;
    ret = qcow2_shadow_add(&d->shadow, offset, s->cluster_bytes, -1, err);
    if (ret == 0)
        ret = qcow2_shadow_alloc(&d->shadow, s->cluster_bytes, &place, err);
    if (ret == 0)
        ret = blk_child_pwrite(qcow2_file(d->node), place, s->cluster_bytes, d->l2, 0, err);
    if (ret < 0)
        return ret;
    *l1_entry = place | QCOW2_ENTRY_COPIED;
    *changed = true;
    return 0;
}

/*
 * Rewrites what an L1 table reaches; tables that change get new places. A table shared by several
 * L1 tables is then shared no longer.
 */
static int expand_l1(struct downgrade *d, uint64_t *l1, uint64_t entries, bool *changed,
                     struct blk_error *err)
{
    int ret = 0;

    *changed = false;
    for (uint64_t i = 0; i < entries && ret == 0; i++) {
        if (blk_cancelled())
            return blk_fail_why(err, ECANCELED, "stopped by a signal", "amending '%s'",
                                d->node->name);
        if (l1[i] & QCOW2_ENTRY_OFFSET)
            ret = expand_table(d, &l1[i], changed, err);
        blk_progress_tell(d->progress, ++d->entries_done, d->entries);
    }
    return ret;
}

/* Puts a changed L1 table into a new place. */
static int move_l1(struct downgrade *d, const uint64_t *l1, uint64_t entries, uint64_t *offset,
                   struct blk_error *err)
{
    int ret = qcow2_shadow_add(&d->shadow, *offset, entries * 8, -1, err);
    return ret < 0 ? ret : qcow2_tree_write_l1(&d->shadow, l1, entries, offset, err);
}

static int visit_expand(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    struct downgrade *d = opaque;
    struct qcow2_snapshot copy = *snapshot;
    bool changed = false;
    uint64_t *l1;

    int ret = qcow2_read_table(d->node, &qcow2_snapshot_l1_kind, copy.l1_offset, copy.l1_entries,
                               &l1, err);
    if (ret == 0)
        ret = expand_l1(d, l1, copy.l1_entries, &changed, err);
    if (ret == 0 && changed)
        ret = move_l1(d, l1, copy.l1_entries, &copy.l1_offset, err);
    free(l1);
    d->table_changed |= changed;
    return ret < 0 ? ret : qcow2_snapshot_table_add(&d->table, &copy, err);
}

/* Last, for the flags depend on what snapshots have let go of. */
static int expand_active(struct downgrade *d, struct blk_error *err)
{
    uint64_t entries = d->next.l1_entries, *l1;
    bool expanded = false, flags_changed = false;

    int ret = qcow2_read_table(d->node, &qcow2_l1_kind, d->next.l1_offset, entries, &l1, err);
    if (ret == 0)
        ret = expand_l1(d, l1, entries, &expanded, err);
    if (ret == 0)
        ret = qcow2_tree_set_copied(&d->shadow, l1, entries, &flags_changed, err);
    if (ret == 0 && (expanded || flags_changed))
        ret = move_l1(d, l1, entries, &d->next.l1_offset, err);
    free(l1);
    return ret;
}

static int expand_all(struct downgrade *d, struct blk_error *err)
{
    uint64_t old_table_bytes;
    int ret = qcow2_snapshot_table_walk(d->node, visit_expand, d, &old_table_bytes, err);
    if (ret < 0)
        return ret;
    ret = expand_active(d, err);
    if (ret < 0)
        return ret;
    if (d->table_changed)
        ret = qcow2_snapshot_table_replace(&d->shadow, &d->table, old_table_bytes, &d->next, err);
    return ret;
}

/* ---- the switch ---- */

static int switch_version(struct downgrade *d, struct blk_error *err)
{
    struct blk_node *node = d->node;
    struct qcow2_tail tail;

    int ret = qcow2_shadow_finish(&d->shadow, true, &d->next, err);
    if (ret == 0)
        ret = qcow2_barrier(node, err);
    if (ret < 0)
        return ret;

    d->next.version = 2;
    d->next.incompatible = d->next.compatible = d->next.autoclear = 0;
    d->next.compression = QCOW2_DEFLATE;
    qcow2_tail_copy(&tail, &qcow2_state(node)->tail);
    qcow2_tail_remove(&tail, QCOW2_EXT_FEATURE_NAMES);
    qcow2_tail_remove(&tail, QCOW2_EXT_BITMAPS); /* it did not count */
    ret = qcow2_header_relayout(node, &d->next, &tail, err);
    qcow2_tail_free(&tail);
    if (ret == 0)
        qcow2_forget_tables(node);
    return ret;
}

int qcow2_downgrade(struct blk_node *node, const struct blk_progress *progress,
                    struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct downgrade d = { .node = node, .progress = progress };

    int ret = qcow2_commit_all(node, err);
    if (ret == 0)
        ret = check_expressible(&d, err);
    if (ret < 0)
        return ret;

    d.next = s->header;
    d.l2 = blk_buffer_alloc(s->cluster_bytes);
    ret = d.l2 ? qcow2_shadow_begin(node, s->refcount_order, true, NULL, &d.shadow, err)
               : blk_fail(err, ENOMEM, "amending '%s'", node->name);
    if (ret == 0)
        ret = expand_all(&d, err);
    if (ret == 0)
        ret = switch_version(&d, err);
    qcow2_shadow_end(&d.shadow);
    free(d.l2);
    free(d.table.data);
    if (ret < 0)
        blk_context(err, "changing the version to 2");
    return ret;
}
