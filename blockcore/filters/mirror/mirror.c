/* SPDX-License-Identifier: MIT */
/*
 * Synchronous writes and the job's own hold their range exclusively, from before the source is
 * touched until the target is written: so the target gets them in the source's order. While the
 * filter is not synchronous it needs no lock: the dirty bits decide.
 */
#include "blockcore/filters/mirror/mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/lock.h"
#include "blockcore/filters/filters.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/pass.h"
#include "blockcore/graph/pieces.h"

#define MIN_GRANULARITY_BITS 16
#define PIECE_BYTES (1 * MIB)

struct mirror {
    struct blk_node *source, *target;
    struct blk_dirty_bitmap *dirty;
    bool synchronous;             /* changed only with the filter drained */
    struct blk_range_lock ranges; /* see above */

    struct blk_mutex mutex; /* guards what follows */
    int ret;                /* the first failure of a write to the target */
    struct blk_error err;
};

static struct mirror *mirror_of(const struct blk_node *filter)
{
    return filter->state;
}

/* ---- copying ---- */

/* Makes the target show what the source has there now. The caller holds the range. */
static int mirror_held(const struct mirror *mirror, uint64_t offset, uint64_t bytes,
                       struct blk_error *err)
{
    ASSERT_RANGE_HELD(&mirror->ranges, offset, bytes, BLK_RANGE_EXCLUSIVE);
    int ret = 0;
    uint8_t *buf = blk_buffer_alloc(u64_min(bytes, PIECE_BYTES));
    if (!buf)
        return blk_fail(err, ENOMEM, "mirroring '%s'", mirror->source->name);
    while (bytes && ret == 0) {
        uint64_t piece = u64_min(bytes, PIECE_BYTES);
        ret = blk_pread(mirror->source, offset, piece, buf, err);
        if (ret == 0 && bytes_are_zero(buf, piece))
            ret = blk_write_zeroes(mirror->target, offset, piece, BLK_REQ_MAY_UNMAP, err);
        else if (ret == 0)
            ret = blk_pwrite(mirror->target, offset, piece, buf, 0, err);
        offset += piece;
        bytes -= piece;
    }
    free(buf);
    return ret;
}

/* A write to the target has failed: the job has, but not the guest's write. */
static void fail_mirror(struct mirror *mirror, int ret, const struct blk_error *err)
{
    LOCK_SCOPE(&mirror->mutex);
    if (mirror->ret == 0) {
        mirror->ret = ret;
        mirror->err = *err;
    }
}

static int check(struct mirror *mirror, struct blk_error *err)
{
    LOCK_SCOPE(&mirror->mutex);
    int ret = mirror->ret;
    if (ret < 0 && err)
        *err = mirror->err;
    return ret;
}

/* ---- the guest's requests ---- */

struct mirror_change {
    struct blk_range range;
    uint64_t offset, bytes;
};

static void begin_mirrored(struct mirror *mirror, struct mirror_change *change, uint64_t offset,
                           uint64_t bytes)
{
    *change = (struct mirror_change){ .offset = offset, .bytes = bytes };
    if (mirror->synchronous)
        blk_range_take(&mirror->ranges, &change->range, offset, bytes,
                       UINT64_C(1) << mirror->dirty->granularity_bits);
    else
        blk_dirty_bitmap_set(mirror->dirty, offset, bytes);
}

/*
 * After the source's request, which returned `ret`. `target_ret` (with `err`) is what writing the
 * same to the target returned; it is not looked at unless the filter is synchronous. After a
 * failure nobody knows what is where.
 */
static int end_mirrored(struct mirror *mirror, struct mirror_change *change, int ret,
                        int target_ret, const struct blk_error *target_err)
{
    if (!mirror->synchronous) {
        blk_dirty_bitmap_set(mirror->dirty, change->offset, change->bytes);
        return ret;
    }
    if (ret < 0 || target_ret < 0)
        blk_dirty_bitmap_set(mirror->dirty, change->offset, change->bytes);
    if (ret == 0 && target_ret < 0)
        fail_mirror(mirror, target_ret, target_err);
    blk_range_release(&mirror->ranges, &change->range);
    return ret;
}

static int mirror_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                         unsigned flags, struct blk_error *err)
{
    struct mirror *mirror = mirror_of(node);
    struct blk_error target_err = BLK_ERROR_INIT;
    struct mirror_change change;
    int target_ret = 0;

    begin_mirrored(mirror, &change, offset, bytes);
    int ret = blk_child_pwrite(mirror->source, offset, bytes, buf, flags, err);
    if (ret == 0 && mirror->synchronous)
        target_ret = blk_pwrite(mirror->target, offset, bytes, buf, 0, &target_err);
    return end_mirrored(mirror, &change, ret, target_ret, &target_err);
}

static int mirror_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes,
                               unsigned flags, struct blk_error *err)
{
    struct mirror *mirror = mirror_of(node);
    struct blk_error target_err = BLK_ERROR_INIT;
    struct mirror_change change;
    int target_ret = 0;

    begin_mirrored(mirror, &change, offset, bytes);
    int ret = blk_child_write_zeroes(mirror->source, offset, bytes, flags, err);
    if (ret == 0 && mirror->synchronous)
        target_ret =
            blk_write_zeroes(mirror->target, offset, bytes, BLK_REQ_MAY_UNMAP, &target_err);
    return end_mirrored(mirror, &change, ret, target_ret, &target_err);
}

/* What is read after a discard is the source's own affair: the target gets that. */
static int mirror_discard(struct blk_node *node, uint64_t offset, uint64_t bytes,
                          struct blk_error *err)
{
    struct mirror *mirror = mirror_of(node);
    struct blk_error target_err = BLK_ERROR_INIT;
    struct mirror_change change;
    int target_ret = 0;

    begin_mirrored(mirror, &change, offset, bytes);
    int ret = blk_child_discard(mirror->source, offset, bytes, err);
    if (ret == 0 && mirror->synchronous)
        target_ret = mirror_held(mirror, offset, bytes, &target_err);
    return end_mirrored(mirror, &change, ret, target_ret, &target_err);
}

static int mirror_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                   const void *buf, struct blk_error *err)
{
    struct mirror *mirror = mirror_of(node);
    struct blk_error target_err = BLK_ERROR_INIT;
    struct mirror_change change;
    int target_ret = 0;

    begin_mirrored(mirror, &change, offset, bytes);
    int ret = blk_child_write_compressed(mirror->source, offset, bytes, buf, err);
    if (ret == 0 && mirror->synchronous)
        target_ret = blk_pwrite(mirror->target, offset, bytes, buf, 0, &target_err);
    return end_mirrored(mirror, &change, ret, target_ret, &target_err);
}

static int mirror_release(struct blk_node *node, struct blk_error *err)
{
    struct mirror *mirror = mirror_of(node);
    (void)err;
    blk_range_lock_destroy(&mirror->ranges);
    blk_mutex_destroy(&mirror->mutex);
    blk_dirty_bitmap_free(mirror->dirty);
    return 0;
}

/* Without open: there is nothing that options could name. */
const struct blk_driver blk_driver_mirror = {
    .name = "mirror",
    .kind = BLK_FILTER,
    .state_bytes = sizeof(struct mirror),
    .supports_fua = true,
    .release = mirror_release,
    .data = {
        .pread = blk_pass_pread,
        .pwrite = mirror_pwrite,
        .write_zeroes = mirror_write_zeroes,
        .discard = mirror_discard,
        .write_compressed = mirror_write_compressed,
        .block_status = blk_pass_block_status,
    },
};

/* ---- the job ---- */

/* The larger of both nodes' units: neither has to read for a piece that is whole. */
static int new_bitmap(const struct blk_node *source, const struct blk_node *target,
                      struct blk_dirty_bitmap **bitmap, struct blk_error *err)
{
    uint64_t unit = u64_max(source->limits.zero_alignment, target->limits.zero_alignment);
    unsigned bits = MIN_GRANULARITY_BITS;

    while (bits < BLK_BITMAP_MAX_GRANULARITY_BITS && UINT64_C(1) << bits < unit)
        bits++;
    bits = blk_dirty_bitmap_fit_granularity(blk_size(source), bits);
    return blk_dirty_bitmap_new("mirror", blk_size(source), bits, bitmap, err);
}

int blk_mirror_insert(struct blk_node *source, struct blk_node *target, struct blk_node **filter,
                      struct blk_error *err)
{
    struct blk_dirty_bitmap *dirty;

    *filter = NULL;
    if (blk_size(target) < blk_size(source))
        return blk_fail_why(err, EINVAL, "the target is smaller", "mirroring '%s' to '%s'",
                            source->name, target->name);
    int ret = new_bitmap(source, target, &dirty, err);
    if (ret < 0)
        return ret;

    struct blk_node *node =
        blk_node_new(&blk_driver_mirror, source->name, source->flags, source->cache);
    struct mirror *mirror = mirror_of(node);
    mirror->source = source;
    mirror->target = target;
    mirror->dirty = dirty;
    blk_range_lock_init(&mirror->ranges);
    blk_mutex_init(&mirror->mutex);
    blk_node_attach(node, BLK_ROLE_FILE, source);
    blk_node_set_size(node, blk_size(source));
    node->limits.zero_alignment = source->limits.zero_alignment;
    *filter = node;
    return 0;
}

int blk_mirror_new_bitmap(struct blk_node *filter, struct blk_dirty_bitmap **bitmap,
                          struct blk_error *err)
{
    const struct mirror *mirror = mirror_of(filter);
    return new_bitmap(mirror->source, mirror->target, bitmap, err);
}

void blk_mirror_take_dirty(struct blk_node *filter, struct blk_dirty_bitmap *taken)
{
    struct blk_dirty_bitmap *dirty = mirror_of(filter)->dirty;
    uint64_t at = 0, start, bytes;

    while (blk_dirty_bitmap_next(dirty, at, dirty->size, &start, &bytes)) {
        blk_dirty_bitmap_clear(dirty, start, bytes);
        blk_dirty_bitmap_set(taken, start, bytes);
        at = start + bytes;
    }
}

uint64_t blk_mirror_dirty_bytes(const struct blk_node *filter)
{
    return blk_dirty_bitmap_count(mirror_of(filter)->dirty);
}

void blk_mirror_synchronise(struct blk_node *filter)
{
    blk_gate_drain_begin(&filter->gate);
    mirror_of(filter)->synchronous = true;
    blk_gate_drain_end(&filter->gate);
}

int blk_mirror_catch_up(struct blk_node *filter, struct blk_error *err)
{
    struct mirror *mirror = mirror_of(filter);
    struct blk_dirty_bitmap *dirty = mirror->dirty;
    struct blk_range range;
    uint64_t piece = u64_max(PIECE_BYTES, UINT64_C(1) << dirty->granularity_bits);
    uint64_t at = 0, start, bytes;

    int ret = check(mirror, err);
    while (ret == 0) {
        if (!blk_dirty_bitmap_next_piece(dirty, at, dirty->size, piece, &start, &bytes)) {
            /* Once more from the start, for what was marked behind us. */
            if (!at)
                break;
            at = 0;
            continue;
        }
        at = start + bytes;
        if (blk_cancelled())
            return blk_fail_why(err, ECANCELED, "stopped by a signal", "mirroring '%s'",
                                mirror->source->name);
        blk_range_take(&mirror->ranges, &range, start, bytes, 1);
        blk_dirty_bitmap_clear(dirty, start, bytes);
        ret = mirror_held(mirror, start, bytes, err);
        if (ret < 0)
            blk_dirty_bitmap_set(dirty, start, bytes);
        blk_range_release(&mirror->ranges, &range);
        if (ret == 0)
            ret = check(mirror, err);
    }
    return ret;
}
