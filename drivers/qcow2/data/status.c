/* SPDX-License-Identifier: MIT */
/* The state of guest ranges as others see it. */
#include <errno.h>

#include "blockcore/graph/driver.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/map.h"
#include "drivers/qcow2/tables/refcount.h"

/*
 * Whether the image has clearly more clusters in use than its file has space allocated: then it
 * was preallocated without data, and it pays to ask the file which mapped clusters are holes.
 */
static int looks_preallocated(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct blk_node *bottom = blk_bottom(qcow2_file(node));
    uint64_t allocated;

    if (!bottom->driver->allocated_bytes)
        return 0;
    int ret = bottom->driver->allocated_bytes(bottom, &allocated, err);
    if (ret < 0)
        return ret;

    uint64_t real = allocated >> s->cluster_bits;
    uint64_t threshold = u64_max(real * 10 / 9, real + 2);
    uint64_t end = blk_size(qcow2_file(node)) >> s->cluster_bits;
    uint64_t in_use = 0;
    for (uint64_t cluster = 0; cluster < end && in_use < threshold; cluster++) {
        uint64_t count;
        ret = qcow2_refcount(node, cluster, &count, err);
        if (ret < 0)
            return ret;
        in_use += count > 0;
    }
    return in_use >= threshold;
}

static int is_preallocated(struct blk_node *node, bool *result, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int known = atomic_load(&s->preallocation);

    if (known < 0) {
        QCOW2_LOCK_SCOPE(s);
        known = looks_preallocated(node, err);
        /*
         * Reading takes no refcounts: where some are damaged, all mapped clusters are data. Where
         * the medium fails, it fails.
         */
        if (known == -EIO && !blk_is_writable(node) &&
            atomic_load(&qcow2_state(node)->saw_damage)) {
            blk_error_clear(err);
            known = 0;
        }
        if (known >= 0)
            atomic_store(&s->preallocation, known);
    }
    *result = known > 0;
    return known < 0 ? known : 0;
}

int qcow2_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                       struct blk_extent *extent, struct blk_error *err)
{
    static const unsigned flags[] = {
        [QCOW2_UNALLOCATED] = 0,
        [QCOW2_UNALLOCATED_HOST] = BLK_EXT_OFFSET_VALID,
        [QCOW2_ZERO] = BLK_EXT_ZERO | BLK_EXT_ALLOCATED,
        [QCOW2_ZERO_HOST] = BLK_EXT_ZERO | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID,
        [QCOW2_DATA] = BLK_EXT_DATA | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID,
        [QCOW2_COMPRESSED] = BLK_EXT_DATA | BLK_EXT_ALLOCATED | BLK_EXT_COMPRESSED,
    };
    struct qcow2_mapping mapping;
    int ret = qcow2_map(node, offset, bytes, &mapping, err);
    extent->bytes = mapping.bytes;
    if (ret < 0)
        return ret;

    extent->flags = flags[mapping.kind];
    if (extent->flags & BLK_EXT_OFFSET_VALID) {
        extent->host = qcow2_data(node);
        extent->host_offset = mapping.host_offset;
    }
    if (want & BLK_WANT_ZERO && mapping.kind == QCOW2_DATA) {
        /* What is in use of a data file, only that file knows. */
        bool preallocated = want & BLK_WANT_HOLES && qcow2_state(node)->data_file;
        if (!preallocated)
            ret = is_preallocated(node, &preallocated, err);
        /* What a file that was cut off has lost is no hole: a reader gets an error. */
        bool lost = qcow2_is_cut_off(node, qcow2_data(node), mapping.host_offset, mapping.bytes);
        if (ret == 0 && preallocated && !lost)
            extent->flags |= BLK_EXT_RECURSE;
        if (ret < 0)
            extent->bytes = 0; /* where the data is, is known */
    }
    return ret;
}
