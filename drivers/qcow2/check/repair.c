/* SPDX-License-Identifier: MIT */
/*
 * Correcting the refcounts.
 *
 * Counts that are too high are lowered in place, sector by sector: at any moment each is what it
 * was or what it should be. Counts are raised the same way where the file must not grow. Everything
 * else takes more than one sector at once: a new refcount structure is built in free space from the
 * references that the check found, and one write of the header's sector switches to it. If it is
 * killed at any moment, the image has the old structure or the new one, and the repair can be run
 * again.
 *
 * Where a table could not be followed, nobody knows what it refers to. Then nothing is freed.
 */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/snapshot/snapshot.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/shadow.h"

/* ---- in place ---- */

/* The new count of a cluster: with `raise` it never goes down, otherwise never up. */
static uint64_t new_count(uint64_t count, uint64_t refs, bool raise)
{
    return raise ? u64_max(count, refs) : u64_min(count, refs);
}

/* Changes counts in the refcount block at `offset`, which begins with cluster `first`. */
static int change_block(const struct qcow2_check *check, uint64_t offset, uint64_t first,
                        uint8_t *block, bool raise, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t entries = u64_min(s->refblock_entries, check->clusters - first);
    uint64_t bytes = qcow2_counts_bytes(check->order, s->refblock_entries);
    uint64_t changed_start = bytes, changed_end = 0;

    int ret = blk_child_pread(qcow2_file(check->node), offset, bytes, block, err);
    if (ret < 0)
        return ret;
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t count = qcow2_count_get(block, check->order, i);
        uint64_t wanted = new_count(count, qcow2_check_refs(check, first + i), raise);
        if (count == wanted)
            continue;
        qcow2_count_put(block, check->order, i, wanted);
        uint64_t at = (i << check->order) / 8;
        changed_start = u64_min(changed_start, round_down(at, BLK_SECTOR_BYTES));
        changed_end = round_down(at, BLK_SECTOR_BYTES) + BLK_SECTOR_BYTES;
    }
    if (changed_start >= changed_end)
        return 0;
    return blk_child_pwrite(qcow2_file(check->node), offset + changed_start,
                            changed_end - changed_start, block + changed_start, 0, err);
}

static int change_in_place(struct qcow2_check *check, bool raise, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t entries = (uint64_t)s->header.reftable_clusters * s->cluster_bytes / 8;
    BLK_AUTOFREE uint64_t *table = NULL;
    BLK_AUTOFREE uint8_t *block = blk_buffer_alloc(s->cluster_bytes);

    if (!block)
        return blk_fail(err, ENOMEM, "repairing '%s'", check->node->name);
    int ret = qcow2_read_table(check->node, &qcow2_reftable_kind, s->header.reftable_offset,
                               entries, &table, err);
    for (uint64_t i = 0; i < entries && i * s->refblock_entries < check->clusters && ret == 0; i++)
        if (table[i])
            ret = change_block(check, table[i], i * s->refblock_entries, block, raise, err);
    if (ret == 0)
        ret = blk_child_flush(qcow2_file(check->node), err);
    return ret;
}

int qcow2_repair_leaks(struct qcow2_check *check, struct blk_error *err)
{
    return check->incomplete ? 0 : change_in_place(check, false, err);
}

/*
 * A new structure may need a longer file, which would show guest data that lay past the end as
 * zeroes that nobody wrote. So counts are only raised in place.
 */
static int raise_in_place(struct qcow2_check *check, struct blk_error *err)
{
    if (!check->broken_counts && !check->tangled)
        return change_in_place(check, true, err);
    qcow2_check_note(check, "The refcounts are left as they are: a longer file would show zeroes "
                            "where guest data is lost; '-r lost' gives that data up");
    return 0;
}

/* ---- a new structure ---- */

/* What the image refers to now must stay readable until the switch, whatever its counts say. */
static void protect_all(const struct qcow2_check *check, struct qcow2_shadow *shadow)
{
    uint64_t cluster_bytes = qcow2_state(check->node)->cluster_bytes;

    for (uint64_t i = 0; i < check->clusters; i++)
        if (qcow2_check_refs(check, i))
            qcow2_shadow_protect(shadow, i * cluster_bytes, cluster_bytes);
}

/* The counts that the references ask for, without those of the refcount structure that is to go. */
static int counts_from_references(const struct qcow2_check *check, struct qcow2_shadow *shadow,
                                  struct blk_error *err)
{
    struct blk_check ignored = { .leaks = 0 };
    struct qcow2_check fresh;

    int ret = qcow2_check_begin(&fresh, check->node, &ignored, err);
    if (ret < 0)
        return ret;
    fresh.drop_excess = true;
    ret = qcow2_check_collect(&fresh, false, err);
    if (ret == 0) {
        ASSERT(shadow->order == fresh.order && shadow->clusters >= fresh.clusters);
        qcow2_check_write_counts(&fresh, 0, fresh.clusters, shadow->counts);
    }
    qcow2_check_end(&fresh);
    return ret;
}

/* Nothing is freed: a count is at least what it was, or 1 where that cannot be relied on. */
static void raise_counts(const struct qcow2_check *check, struct qcow2_shadow *shadow)
{
    for (uint64_t i = 0; i < check->clusters; i++) {
        uint64_t least = check->broken_counts || check->tangled;
        if (!check->broken_counts)
            least = u64_max(least, qcow2_shadow_get(shadow, i));
        uint64_t count = u64_max(qcow2_check_refs(check, i), least);
        if (count)
            qcow2_count_put(shadow->counts, shadow->order, i, count);
    }
}

struct mended_snapshots {
    struct qcow2_check *check;
    struct qcow2_snapshot_table table;
};

static int add_snapshot(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    struct mended_snapshots *mended = opaque;
    struct qcow2_snapshot entry = *snapshot;

    if (snapshot->is_excess) {
        qcow2_check_note(mended->check, "Removing snapshot '%s': it is past the limits",
                         snapshot->name);
        return 0;
    }
    if (entry.extra_bytes < QCOW2_SNAPSHOT_EXTRA_V3_BYTES)
        entry.raw = NULL;
    return qcow2_snapshot_table_add(&mended->table, &entry, err);
}

/* A snapshot table that is not too long, whose entries all have what version 3 asks for. */
static int mend_snapshots(struct qcow2_check *check, struct qcow2_shadow *shadow,
                          struct qcow2_header *next, struct blk_error *err)
{
    struct mended_snapshots mended = { .check = check };
    uint64_t old_bytes = 0;

    int ret = qcow2_snapshot_table_walk(shadow->node, add_snapshot, &mended, &old_bytes, err);
    if (ret == 0)
        ret = qcow2_snapshot_table_replace(shadow, &mended.table, old_bytes, next, err);
    free(mended.table.data);
    return ret;
}

int qcow2_repair_counts(struct qcow2_check *check, struct blk_error *err)
{
    struct blk_node *node = check->node;
    struct qcow2_header next = qcow2_state(node)->header;
    struct qcow2_shadow shadow;
    bool keep_counts = check->incomplete && !check->broken_counts;

    if (check->overflow)
        return blk_fail_why(err, ERANGE,
                            "the refcount width is too small for the number of references; "
                            "'blkimg amend -o refcount_bits=…' widens it",
                            "repairing '%s'", node->name);
    if (check->past_end)
        return raise_in_place(check, err);
    int ret = qcow2_shadow_begin(node, check->order, keep_counts, NULL, &shadow, err);
    if (ret < 0)
        return ret;
    protect_all(check, &shadow);
    if (check->incomplete)
        raise_counts(check, &shadow);
    else
        ret = counts_from_references(check, &shadow, err);
    if (ret == 0 && check->mend_snapshots && !check->incomplete)
        ret = mend_snapshots(check, &shadow, &next, err);
    if (ret == 0)
        ret = qcow2_shadow_finish(&shadow, keep_counts, &next, err);
    if (ret == 0)
        ret = blk_child_flush(qcow2_file(node), err);
    if (ret == 0)
        ret = qcow2_header_switch(node, &next, err);
    qcow2_shadow_end(&shadow);
    return ret;
}
