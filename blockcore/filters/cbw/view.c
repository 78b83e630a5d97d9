/* SPDX-License-Identifier: MIT */
/*
 * The frozen view. What is copied stays in the target as it is, so that is read without a lock;
 * what is pending is read from the source under the range lock `reads`, which keeps the guest from
 * overwriting it. That is done first: a guest never waits for the target because of a reader.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "blockcore/base/bytes.h"
#include "blockcore/filters/cbw/record.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"

/*
 * The state of more is not looked up at once: a caller that goes through short extents of the
 * source would have the bits of all that follows scanned for each.
 */
#define STATUS_BYTES (UINT64_C(1) << 30)

static int left_out(const struct blk_cbw *cbw, uint64_t offset, struct blk_error *err)
{
    return blk_fail_why(err, EACCES, "it is outside of what this snapshot keeps",
                        "reading the frozen content of '%s' at offset %" PRIu64, cbw->source->name,
                        offset);
}

/* The length of the run at `offset`, at most `bytes`, whose bits are all set or all clear. */
static uint64_t run_at(const struct blk_dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                       bool *set)
{
    uint64_t start, length;
    *set = blk_dirty_bitmap_next(bitmap, offset, offset + bytes, &start, &length);
    if (!*set)
        return bytes;
    if (start == offset)
        return length;
    *set = false;
    return start - offset;
}

static int check_mask(const struct blk_cbw *cbw, uint64_t offset, uint64_t bytes,
                      struct blk_error *err)
{
    bool inside;
    if (!cbw->mask)
        return 0;
    uint64_t length = run_at(cbw->mask, offset, bytes, &inside);
    if (inside && length == bytes)
        return 0;
    return left_out(cbw, inside ? offset + length : offset, err);
}

/* ---- reading ---- */

/* A read, and which of its clusters were pending when it began. */
struct view_read {
    uint64_t offset, bytes;
    uint8_t *buf;
    uint64_t first_cluster;
    bool *pending; /* by cluster */
};

/* Notes what is pending, in one step. The range is held. */
static int note_pending(struct blk_cbw *cbw, struct view_read *read, struct blk_error *err)
{
    ASSERT_RANGE_HELD(&cbw->reads, read->offset, read->bytes, BLK_RANGE_SHARED);
    uint64_t last = (read->offset + read->bytes - 1) / cbw->cluster_bytes;

    LOCK_SCOPE(&cbw->mutex);
    int ret = cbw_check_locked(cbw, err);
    for (uint64_t i = read->first_cluster; i <= last && ret == 0; i++)
        read->pending[i - read->first_cluster] =
            blk_dirty_bitmap_get(cbw->pending, i * cbw->cluster_bytes);
    return ret;
}

/* Reads those clusters from `node` that were pending, or those that were not. */
static int read_those(const struct blk_cbw *cbw, const struct view_read *read, bool pending,
                      struct blk_node *node, struct blk_error *err)
{
    uint64_t end = read->offset + read->bytes, next;

    for (uint64_t at = read->offset; at < end; at = next) {
        uint64_t cluster = at / cbw->cluster_bytes;
        bool first = read->pending[cluster - read->first_cluster];
        do
            next = u64_min(++cluster * cbw->cluster_bytes, end);
        while (next < end && read->pending[cluster - read->first_cluster] == first);
        int ret = first == pending
                      ? blk_child_pread(node, at, next - at, read->buf + (at - read->offset), err)
                      : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}

int blk_cbw_read(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, void *buf,
                 struct blk_error *err)
{
    int ret = bytes ? check_mask(cbw, offset, bytes, err) : 0;
    if (ret < 0 || !bytes)
        return ret;

    struct view_read read = {
        .offset = offset,
        .bytes = bytes,
        .buf = buf,
        .first_cluster = offset / cbw->cluster_bytes,
        .pending = calloc(bytes / cbw->cluster_bytes + 2, sizeof(bool)),
    };
    if (!read.pending)
        return blk_fail(err, ENOMEM, "reading the frozen content of '%s'", cbw->source->name);

    struct blk_range range;
    blk_range_take_shared(&cbw->reads, &range, offset, bytes, cbw->cluster_bytes);
    ret = note_pending(cbw, &read, err);
    if (ret == 0)
        ret = read_those(cbw, &read, true, cbw->source, err);
    blk_range_release(&cbw->reads, &range);
    if (ret == 0)
        ret = read_those(cbw, &read, false, cbw->target, err);
    free(read.pending);
    return ret;
}

/* ---- block status ---- */

/* A host offset would let others read past the lock; compression is no property of the view. */
static void show_source(struct blk_extent *extent)
{
    unsigned flags = extent->flags & (BLK_EXT_DATA | BLK_EXT_ZERO | BLK_EXT_ALLOCATED);
    if (extent->depth > 0)
        flags &= ~(unsigned)BLK_EXT_ALLOCATED;
    *extent = (struct blk_extent){ .bytes = extent->bytes, .flags = flags };
}

static void show_target(struct blk_extent *extent)
{
    unsigned flags = extent->flags & BLK_EXT_ZERO ? BLK_EXT_ZERO : BLK_EXT_DATA;
    *extent = (struct blk_extent){ .bytes = extent->bytes, .flags = flags | BLK_EXT_ALLOCATED };
}

int blk_cbw_block_status(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, unsigned want,
                         struct blk_extent *extent, struct blk_error *err)
{
    struct blk_range range;
    bool pending = false, inside = true;

    bytes = u64_min(bytes, STATUS_BYTES);
    if (cbw->mask)
        bytes = run_at(cbw->mask, offset, bytes, &inside);
    if (!inside)
        return left_out(cbw, offset, err);

    blk_range_take_shared(&cbw->reads, &range, offset, bytes, cbw->cluster_bytes);
    int ret = blk_cbw_check(cbw, err);
    if (ret == 0)
        bytes = run_at(cbw->pending, offset, bytes, &pending);
    if (ret == 0 && pending)
        ret = blk_child_block_status_above(blk_layers(cbw->source, NULL), offset, bytes, want,
                                           extent, err);
    blk_range_release(&cbw->reads, &range);
    if (ret < 0)
        return ret;

    if (pending) {
        show_source(extent);
        return 0;
    }
    ret = blk_child_block_status_above(blk_layers(cbw->target, NULL), offset, bytes, want, extent,
                                       err);
    if (ret == 0)
        show_target(extent);
    return ret;
}
