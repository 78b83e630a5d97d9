/* SPDX-License-Identifier: MIT */
/*
 * What must never be overwritten.
 *
 * Structures at known places (header, L1, refcount table, snapshot table, bitmap directory) are
 * compared as ranges; what snapshots have is in inactive.c.
 * Active L2 tables and refcount blocks can be anywhere: a hash set of their clusters is filled
 * from L1 and refcount table before the first change and kept in step, so that a check costs one
 * probe a cluster.
 */
#include "drivers/qcow2/tables/metadata.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "drivers/qcow2/header/corrupt.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/cluster_set.h"
#include "drivers/qcow2/tables/inactive.h"
#include "drivers/qcow2/tables/l1.h"
#include "drivers/qcow2/tables/refcount.h"

int qcow2_metadata_add(struct qcow2_state *s, uint64_t offset, struct blk_error *err)
{
    ASSERT_LOCKED(&s->lock);
    if (!s->metadata_known)
        return 0;
    return qcow2_cluster_set_add(&s->metadata, offset >> s->cluster_bits, err);
}

void qcow2_metadata_remove(struct qcow2_state *s, uint64_t offset)
{
    ASSERT_LOCKED(&s->lock);
    qcow2_cluster_set_remove(&s->metadata, offset >> s->cluster_bits);
}

/* ---- overlaps ---- */

static int found_overlap(struct blk_node *node, uint64_t offset, uint64_t bytes, const char *what,
                         struct blk_error *err)
{
    return qcow2_corrupt(node, err,
                         "Preventing invalid write of %" PRIu64 " bytes at offset %" PRIu64
                         " of the file (overlaps with %s)",
                         bytes, offset, what);
}

static int check_ranges(struct blk_node *node, uint64_t offset, uint64_t bytes,
                        struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t cluster_bytes = s->cluster_bytes;
    unsigned checks = atomic_load(&s->overlap_checks);
    uint64_t bitmaps = atomic_load(&s->bitmaps_start);
    const struct {
        unsigned check;
        uint64_t offset, bytes;
        const char *what;
    } ranges[] = {
        { QCOW2_OVERLAP_HEADER, 0, cluster_bytes, "the header" },
        { QCOW2_OVERLAP_L1, s->l1_offset, (uint64_t)s->l1_entries * 8, "the L1 table" },
        { QCOW2_OVERLAP_REFTABLE, s->reftable_unplaced ? 0 : s->reftable_offset,
          s->reftable_unplaced ? 0 : s->reftable_entries * 8, "the refcount table" },
        { QCOW2_OVERLAP_SNAPSHOTS, s->header.snapshots_offset,
          s->header.snapshot_count ? cluster_bytes : 0, "the snapshot table" },
        { QCOW2_OVERLAP_BITMAPS, bitmaps, atomic_load(&s->bitmaps_end) - bitmaps,
          "the bitmap directory" },
    };
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++)
        if (checks & ranges[i].check &&
            ranges_overlap(ranges[i].offset, ranges[i].bytes, offset, bytes))
            return found_overlap(node, offset, bytes, ranges[i].what, err);
    return 0;
}

/* One table that L1 or refcount table points to; two pointers to one place are a contradiction. */
static int note_table(struct blk_node *node, uint64_t offset, const char *what,
                      struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    if (offset & (s->cluster_bytes - 1))
        return qcow2_corrupt(node, err, "%s at the unaligned offset %" PRIu64, what, offset);
    if (qcow2_cluster_set_contains(&s->metadata, offset >> s->cluster_bits))
        return qcow2_corrupt(
            node, err, "%s at offset %" PRIu64 " is also in use for something else", what, offset);
    int ret = check_ranges(node, offset, s->cluster_bytes, err);
    return ret < 0 ? ret : qcow2_metadata_add(s, offset, err);
}

static int fill_set(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret = qcow2_l1_load(node, err);
    if (ret == 0)
        ret = qcow2_reftable_load(node, err);

    s->metadata_known = true;
    for (uint32_t i = 0; ret == 0 && i < s->l1_entries; i++)
        if (s->l1[i] & QCOW2_ENTRY_OFFSET)
            ret = note_table(node, s->l1[i] & QCOW2_ENTRY_OFFSET, "an L2 table", err);
    for (uint64_t i = 0; ret == 0 && i < s->reftable_entries; i++)
        if (s->reftable[i])
            ret = note_table(node, s->reftable[i], "a refcount block", err);
    if (ret < 0) {
        free(s->metadata.slots);
        s->metadata = (struct qcow2_cluster_set){ .capacity = 0 };
        s->metadata_known = false;
    }
    return ret;
}

int qcow2_metadata_load(struct blk_node *node, struct blk_error *err)
{
    ASSERT_READ_LOCKED(&qcow2_state(node)->lock);
    if (qcow2_state(node)->metadata_known || node->flags & BLK_IN_CHECK)
        return 0;
    ASSERT_LOCKED(&qcow2_state(node)->lock);
    return fill_set(node, err);
}

int qcow2_check_overlap(struct blk_node *node, uint64_t offset, uint64_t bytes,
                        struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_READ_LOCKED(&s->lock);
    /* First, so that the places of all tables are known. */
    int ret = qcow2_metadata_load(node, err);
    if (ret == 0)
        ret = qcow2_inactive_load(node, err);
    if (ret == 0)
        ret = check_ranges(node, offset, bytes, err);
    const char *inactive = ret == 0 ? qcow2_inactive_find(s, offset, bytes) : NULL;
    if (inactive)
        return found_overlap(node, offset, bytes, inactive, err);
    /* The set does not tell tables from blocks: either check looks for both. */
    if (ret < 0 || !(atomic_load(&s->overlap_checks) & (QCOW2_OVERLAP_L2 | QCOW2_OVERLAP_REFBLOCK)))
        return ret;

    uint64_t end = (offset + bytes - 1) >> s->cluster_bits;
    for (uint64_t cluster = offset >> s->cluster_bits; bytes && cluster <= end; cluster++)
        if (qcow2_cluster_set_contains(&s->metadata, cluster))
            return found_overlap(node, offset, bytes, "an L2 table or refcount block", err);
    return 0;
}

/* The tables' places are nearly always known, so that the lock can be shared. */
int qcow2_check_target(struct blk_node *node, uint64_t host, uint64_t bytes, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    if (s->data_file)
        return 0;

    blk_read_lock(&s->lock);
    bool known = s->metadata_known && qcow2_inactive_is_loaded(s);
    int ret = known ? qcow2_check_overlap(node, host, bytes, err) : 0;
    blk_read_unlock(&s->lock);
    if (known)
        return ret;

    QCOW2_LOCK_SCOPE(s);
    return qcow2_check_overlap(node, host, bytes, err);
}
