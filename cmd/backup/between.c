/* SPDX-License-Identifier: MIT */
/*
 * A base that is newer than what a bitmap counts from, as after status 6: the backup is complete,
 * but the bitmap still counts from the one before, which the new one builds on. Both can be the
 * base of the next backup. Over the newer one, the target must also cover whatever the layers of
 * that one hold: all of it has to be marked.
 */
#include <errno.h>
#include <inttypes.h>

#include "blockcore/base/bytes.h"
#include "blockcore/graph/status.h"
#include "cmd/backup/backup.h"

/* The largest cluster of the layers from `newer` down to, without, `older`; at least `bits`. */
static int between_granularity(struct blk_node *newer, const struct blk_node *older, unsigned *bits,
                               struct blk_error *err)
{
    int ret = 0;

    for (struct blk_node *node = newer; node != older && ret == 0;
         node = blk_child(blk_skip_filters(node), BLK_ROLE_BACKING)) {
        uint64_t cluster_bytes;
        ret = blk_cluster_bytes(node, &cluster_bytes, err);
        while (ret == 0 && UINT64_C(1) << *bits < cluster_bytes)
            ++*bits;
    }
    return ret;
}

/* Marks where `newer` may show something else than `older`. */
static int mark_layers(struct blk_node *newer, struct blk_node *older,
                       struct blk_dirty_bitmap *between, struct blk_error *err)
{
    uint64_t end = u64_min(blk_size(newer), between->size);
    uint64_t below = u64_min(blk_size(older), between->size);
    struct blk_extent extent;

    for (uint64_t offset = 0; offset < end; offset += extent.bytes) {
        int ret =
            blk_block_status_above(blk_layers(newer, older), offset, end - offset, 0, &extent, err);
        if (ret < 0)
            return ret;
        if (extent.flags & BLK_EXT_ALLOCATED)
            blk_dirty_bitmap_set(between, offset, extent.bytes);
    }
    if (below > end)
        blk_dirty_bitmap_set(between, end, below - end);
    return 0;
}

/* The first granule of `between` in which `mask` marks nothing. */
static bool find_unmarked(const struct blk_dirty_bitmap *between,
                          const struct blk_dirty_bitmap *mask, uint64_t *offset)
{
    const uint64_t granule = UINT64_C(1) << between->granularity_bits;
    uint64_t start, bytes, at, marked;

    for (at = 0; blk_dirty_bitmap_next(between, at, between->size, &start, &bytes);
         at = start + bytes)
        for (*offset = start; *offset < start + bytes; *offset += granule)
            if (!blk_dirty_bitmap_next(mask, *offset, *offset + granule, &at, &marked))
                return true;
    return false;
}

int backup_mark_between(struct backup_disk *disk, struct blk_node *newer, struct blk_node *older,
                        struct blk_error *err)
{
    unsigned bits = disk->mask->granularity_bits;
    struct blk_dirty_bitmap *between;
    uint64_t offset;

    int ret = between_granularity(newer, older, &bits, err);
    if (ret < 0)
        return ret;
    ret = blk_dirty_bitmap_new("between", disk->bytes, bits, &between, err);
    if (ret < 0)
        return ret;
    ret = mark_layers(newer, older, between, err);
    /* A cluster of the base is larger than what changed in it; but none changed without a mark. */
    if (ret == 0 && find_unmarked(between, disk->mask, &offset))
        ret = blk_fail_why(err, EINVAL,
                           "it holds data that no bitmap marks, so it is from another "
                           "disk or another time (--trust uses it anyway)",
                           "base '%s' for '%s' at offset %" PRIu64, newer->name, disk->source_name,
                           offset);
    if (ret == 0)
        blk_dirty_bitmap_merge(disk->mask, between);
    blk_dirty_bitmap_free(between);
    return ret;
}
