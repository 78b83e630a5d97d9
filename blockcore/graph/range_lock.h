/* SPDX-License-Identifier: MIT */
/*
 * Locks on byte ranges of one node. Used by everything that must not overlap: read-modify-write of
 * unaligned requests, allocation with copy-on-write, compressed writes, discard, copy-before-write.
 *
 * A thread holds at most one range of a node at a time, and takes ranges of a parent before those
 * of its children, so ranges cannot deadlock.
 *
 * A range waits for holders only, never for another that waits: a request that has nothing to do
 * with the one that is stuck (at a breakpoint, say) goes on, whatever else queues for the stuck
 * one. Among those that could go on when a holder leaves, the first to arrive goes first. The price
 * is that a wide range may be overtaken by narrow ones for as long as they keep coming.
 */
#ifndef BLOCKCORE_GRAPH_RANGE_LOCK_H
#define BLOCKCORE_GRAPH_RANGE_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/lock.h"

/* An end that no request reaches: for a range that means "and everything behind it". */
#define BLK_RANGE_TO_END (UINT64_C(1) << 63)

/* In the order of how much they exclude: see blk_range_take() and its siblings. */
enum blk_range_mode { BLK_RANGE_READ, BLK_RANGE_SHARED, BLK_RANGE_UPDATE, BLK_RANGE_EXCLUSIVE };

/* One held (or awaited) range; lives on the holder's stack. */
struct blk_range {
    uint64_t offset, bytes;
    enum blk_range_mode mode;
    bool held;
    struct blk_range *next;
    const struct blk_range_lock *lock; /* whose it is */
    struct blk_range *next_of_thread;  /* of those that this thread holds or awaits */
};

struct blk_range_lock {
    struct blk_mutex mutex; /* guards the list */
    pthread_cond_t released;
    struct blk_range *list; /* holders and those who wait, in order of arrival */
};

void blk_range_lock_init(struct blk_range_lock *lock);
void blk_range_lock_destroy(struct blk_range_lock *lock);

/*
 * Waits until nobody holds a range that overlaps [offset, offset + bytes), then holds it. The range
 * is rounded outwards to `alignment` (a power of two or any unit above 0).
 */
void blk_range_take(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                    uint64_t bytes, uint64_t alignment);

/* The same, but shared holders exclude neither each other nor readers. */
void blk_range_take_shared(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                           uint64_t bytes, uint64_t alignment);

/* The same, excluding only exclusive holders: those of blk_range_take() and after an upgrade. */
void blk_range_take_read(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                         uint64_t bytes, uint64_t alignment);

/*
 * For a change that is prepared in another place and takes effect at the end: excludes all but
 * readers, until blk_range_upgrade() has waited for those and keeps them out, too.
 */
void blk_range_take_update(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                           uint64_t bytes, uint64_t alignment);
void blk_range_upgrade(struct blk_range_lock *lock, struct blk_range *range);

/* By the thread that took it. */
void blk_range_release(struct blk_range_lock *lock, struct blk_range *range);

/* Whether this thread holds [offset, offset + bytes) in that mode, or in one that excludes more. */
bool blk_range_is_held(const struct blk_range_lock *lock, uint64_t offset, uint64_t bytes,
                       enum blk_range_mode mode);

#define ASSERT_RANGE_HELD(lock, offset, bytes, mode) \
    ASSERT(blk_range_is_held(lock, offset, bytes, mode))

#endif
