/* SPDX-License-Identifier: MIT */
/*
 * How often each host cluster is referred to: the refcount table in memory, its blocks through
 * the cache.
 *
 * Increments go into the cached blocks at once and reach the medium in an epoch before any
 * pointer to the cluster does; decrements wait until what pointed there is gone from the medium
 * (epoch.c). So a count on the medium is never below the references there (C1).
 */
#include "drivers/qcow2/tables/refcount.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "blockcore/graph/events.h"
#include "drivers/qcow2/header/corrupt.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"

int qcow2_reftable_load(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    if (s->reftable)
        return 0;

    uint64_t entries = s->header.reftable_clusters * (uint64_t)s->cluster_bytes / 8;
    blk_event(qcow2_file(node), BLK_EVENT_REFTABLE_LOAD);
    uint64_t *table;
    int ret = qcow2_read_table(node, &qcow2_reftable_kind, s->header.reftable_offset, entries,
                               &table, err);
    if (ret < 0)
        return ret;
    for (uint64_t i = 0; i < entries; i++)
        if (table[i] % s->cluster_bytes || table[i] >= QCOW2_MAX_HOST_OFFSET) {
            ret = qcow2_corrupt(node, err, "entry %" PRIu64 " of the refcount table is 0x%" PRIx64,
                                i, table[i]);
            free(table);
            return ret;
        }
    s->reftable = table;
    s->reftable_entries = entries;
    s->reftable_offset = s->header.reftable_offset;
    s->unwritten = round_up(blk_size(qcow2_file(node)), s->cluster_bytes);
    return 0;
}

int qcow2_refslice(struct blk_node *node, uint64_t cluster, struct qcow2_table **slice,
                   uint64_t *index, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    *slice = NULL;
    int ret = qcow2_reftable_load(node, err); /* asserts the lock for all lookups: once is enough */
    if (ret < 0)
        return ret;

    uint64_t block = cluster / s->refblock_entries;
    if (block >= s->reftable_entries || !s->reftable[block])
        return 0;
    uint64_t in_block = cluster % s->refblock_entries;
    uint64_t per_slice = qcow2_counts_per_slice(s);
    *index = in_block % per_slice;
    uint64_t offset = s->reftable[block] + in_block / per_slice * s->refblock_cache.entry_bytes;
    return qcow2_cache_get(node, &s->refblock_cache, offset, slice, err);
}

int qcow2_refcount(struct blk_node *node, uint64_t cluster, uint64_t *count, struct blk_error *err)
{
    struct qcow2_table *slice;
    uint64_t index;
    int ret = qcow2_refslice(node, cluster, &slice, &index, err);
    if (ret == 0)
        *count = slice ? qcow2_count_get(slice->data, qcow2_state(node)->refcount_order, index) : 0;
    return ret;
}

void qcow2_refslice_put(struct qcow2_state *s, struct qcow2_table *slice, uint64_t index,
                        uint64_t count)
{
    ASSERT_LOCKED(&s->lock);
    qcow2_count_put(slice->data, s->refcount_order, index, count);
    uint64_t byte = (index << s->refcount_order) / 8;
    uint32_t bytes = s->refcount_order > 3 ? 1u << (s->refcount_order - 3) : 1;
    qcow2_cache_dirty(&s->refblock_cache, slice, (uint32_t)byte, bytes);
}

static int no_count(struct blk_node *node, uint64_t cluster, struct blk_error *err)
{
    return qcow2_corrupt(node, err,
                         "the cluster at offset %" PRIu64 " is in use, but its refcount is 0",
                         (cluster << qcow2_state(node)->cluster_bits));
}

/* The count became 0. */
static void cluster_freed(struct qcow2_state *s, uint64_t cluster)
{
    s->free_hint = u64_min(s->free_hint, cluster);
    s->unwritten = u64_max(s->unwritten, (cluster + 1) << s->cluster_bits);
    /* Nothing may be packed into a cluster that somebody else can be given. */
    if (s->compressed_next && (s->compressed_next - 1) >> s->cluster_bits == cluster)
        s->compressed_next = 0;
}

/*
 * Adds `delta` to the counts of the clusters [first, last]; stops at the first that cannot change.
 */
static int change(struct blk_node *node, uint64_t first, uint64_t last, int delta, uint64_t *done,
                  struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    for (*done = first; *done <= last; ++*done) {
        struct qcow2_table *slice;
        uint64_t index;
        int ret = qcow2_refslice(node, *done, &slice, &index, err);
        if (ret < 0)
            return ret;
        uint64_t count = slice ? qcow2_count_get(slice->data, s->refcount_order, index) : 0;
        if (!count)
            return no_count(node, *done, err);
        if (delta > 0 && count == s->refcount_max)
            return blk_fail_why(err, ERANGE, "a refcount of that width cannot count further",
                                "sharing a cluster of '%s'", node->name);
        count += (uint64_t)(int64_t)delta;
        qcow2_refslice_put(s, slice, index, count);
        if (!count)
            cluster_freed(s, *done);
    }
    return 0;
}

int qcow2_refcount_increase(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    uint64_t first = offset >> s->cluster_bits, done;
    if (!bytes)
        return 0;
    int ret = change(node, first, (offset + bytes - 1) >> s->cluster_bits, 1, &done, err);
    uint64_t ignored;
    if (ret < 0 && done > first)
        change(node, first, done - 1, -1, &ignored, NULL);
    return ret;
}

int qcow2_refcount_decrease(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    uint64_t done;
    return bytes ? change(node, offset >> s->cluster_bits, (offset + bytes - 1) >> s->cluster_bits,
                          -1, &done, err)
                 : 0;
}

void qcow2_reftable_set(struct qcow2_state *s, uint64_t block, uint64_t offset)
{
    ASSERT_LOCKED(&s->lock);
    s->reftable[block] = offset;
    if (s->reftable_dirty_start == s->reftable_dirty_end) {
        s->reftable_dirty_start = block;
        s->reftable_dirty_end = block + 1;
    } else {
        s->reftable_dirty_start = u64_min(s->reftable_dirty_start, block);
        s->reftable_dirty_end = u64_max(s->reftable_dirty_end, block + 1);
    }
}
