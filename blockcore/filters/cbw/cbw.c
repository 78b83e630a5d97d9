/* SPDX-License-Identifier: MIT */
/*
 * The life of the record of copy-before-write, and what a guest's write must wait for. record.h
 * says what keeps it right.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "blockcore/base/assert.h"
#include "blockcore/base/bytes.h"
#include "blockcore/filters/cbw/record.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/ops.h"

#define MIN_CLUSTER_BYTES (64 * KIB)

/* ---- life ---- */

/* The clusters in which a node is written best; 1 where it has none. */
static int cluster_bytes_of(struct blk_node *node, uint64_t *bytes, struct blk_error *err)
{
    int ret = blk_child_cluster_bytes(blk_skip_filters(node), bytes, err);
    *bytes = u64_max(*bytes, 1);
    return ret;
}

static int find_cluster_bytes(struct blk_cbw *cbw, uint64_t at_least, struct blk_error *err)
{
    uint64_t source, target;
    int ret = cluster_bytes_of(cbw->source, &source, err);
    if (ret == 0)
        ret = cluster_bytes_of(cbw->target, &target, err);
    if (ret < 0)
        return ret;
    cbw->cluster_bytes = u64_max(u64_max(source, target), u64_max(MIN_CLUSTER_BYTES, at_least));
    ASSERT(is_power_of_two(cbw->cluster_bytes));
    return 0;
}

static unsigned bits_of(uint64_t power_of_two)
{
    return (unsigned)__builtin_ctzll(power_of_two);
}

static int make_bitmaps(struct blk_cbw *cbw, const struct blk_dirty_bitmap *mask,
                        struct blk_error *err)
{
    unsigned bits = bits_of(cbw->cluster_bytes);
    int ret = blk_dirty_bitmap_new("pending", cbw->size, bits, &cbw->pending, err);
    if (ret < 0)
        return ret;
    if (!mask) {
        blk_dirty_bitmap_set(cbw->pending, 0, cbw->size);
        return 0;
    }
    blk_dirty_bitmap_merge(cbw->pending, mask);
    ret = blk_dirty_bitmap_copy(cbw->pending, &cbw->mask, err);
    if (ret < 0)
        blk_dirty_bitmap_free(cbw->pending);
    return ret;
}

static void init_locks(struct blk_cbw *cbw)
{
    pthread_condattr_t clock;

    blk_range_lock_init(&cbw->reads);
    blk_mutex_init(&cbw->mutex);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&cbw->changed, &clock);
    pthread_condattr_destroy(&clock);
}

static int check_nodes(const struct blk_cbw *cbw, struct blk_error *err)
{
    if (blk_size(cbw->target) < cbw->size)
        return blk_fail_why(err, EINVAL, "it is smaller than the image",
                            "saving the old data of '%s' to '%s'", cbw->source->name,
                            cbw->target->name);
    return 0;
}

int cbw_begin(struct blk_node *filter, const struct blk_cbw_params *params, struct blk_error *err)
{
    struct blk_cbw *cbw = filter->state;

    cbw->source = blk_child(filter, BLK_ROLE_FILE);
    cbw->target = blk_child(filter, BLK_ROLE_TARGET);
    cbw->size = blk_size(cbw->source);
    cbw->on_error = params->on_error;
    cbw->timeout_ms = params->timeout_ms;
    int ret = check_nodes(cbw, err);
    if (ret == 0)
        ret = find_cluster_bytes(cbw, params->min_cluster_bytes, err);
    if (ret == 0)
        ret = make_bitmaps(cbw, params->mask, err);
    if (ret < 0)
        return ret;
    init_locks(cbw);
    blk_node_set_size(filter, cbw->size);
    filter->limits.zero_alignment = cbw->source->limits.zero_alignment;
    return 0;
}

void cbw_end(struct blk_cbw *cbw)
{
    cbw_stop_helpers(cbw);
    blk_range_lock_destroy(&cbw->reads);
    pthread_cond_destroy(&cbw->changed);
    blk_mutex_destroy(&cbw->mutex);
    blk_dirty_bitmap_free(cbw->pending);
    blk_dirty_bitmap_free(cbw->mask);
}

/* ---- the state ---- */

uint64_t blk_cbw_size(const struct blk_cbw *cbw)
{
    return cbw->size;
}

uint64_t blk_cbw_pending_bytes(const struct blk_cbw *cbw)
{
    return blk_dirty_bitmap_count(cbw->pending);
}

/* Keeps the first reason. All that wait for a claim wake up: there is nothing to copy any more. */
static void break_snapshot(struct blk_cbw *cbw, const struct blk_error *why)
{
    LOCK_SCOPE(&cbw->mutex);
    if (!cbw->broken) {
        cbw->broken = true;
        cbw->why = *why;
        pthread_cond_broadcast(&cbw->changed);
    }
}

/* ---- before a guest's write ---- */

/* Saves what must be saved. A failure is returned, or breaks the snapshot. */
static int save_for_guest(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes,
                          struct blk_error *err)
{
    struct blk_error own = BLK_ERROR_INIT;
    int ret = cbw->timeout_ms ? cbw_save_in_time(cbw, offset, bytes, &own)
                              : blk_cbw_save(cbw, offset, bytes, &own);
    if (ret == 0)
        return 0;
    blk_context(&own, "saving the old data of '%s'", cbw->source->name);
    if (cbw->on_error == BLK_CBW_BREAK_SNAPSHOT) {
        break_snapshot(cbw, &own);
        return 0;
    }
    if (err)
        *err = own;
    return ret;
}

static bool is_broken(struct blk_cbw *cbw)
{
    LOCK_SCOPE(&cbw->mutex);
    return cbw->broken;
}

int blk_cbw_before_write(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes,
                         struct blk_error *err)
{
    struct blk_range range;
    uint64_t start, pending;

    if (offset >= cbw->size || !bytes)
        return 0;
    bytes = u64_min(bytes, cbw->size - offset);
    uint64_t first = round_down(offset, cbw->cluster_bytes);
    if (blk_dirty_bitmap_next(cbw->pending, first, offset + bytes, &start, &pending) &&
        !is_broken(cbw)) {
        int ret = save_for_guest(cbw, offset, bytes, err);
        if (ret < 0)
            return ret;
    }
    /* Reads of the view that saw these clusters pending must have ended. */
    blk_range_take(&cbw->reads, &range, offset, bytes, cbw->cluster_bytes);
    blk_range_release(&cbw->reads, &range);
    return 0;
}
