/* SPDX-License-Identifier: MIT */
/* Who excludes whom, and in which order those who wait go on: see range_lock.h. */
#include "blockcore/graph/range_lock.h"

#include <stddef.h>

#include "blockcore/base/assert.h"
#include "blockcore/base/bytes.h"

/* The ranges of this thread, of whatever lock: one a node, so there are few. */
static _Thread_local struct blk_range *own_ranges;

/* The range of `lock` that this thread has, or NULL. */
static const struct blk_range *own_range(const struct blk_range_lock *lock)
{
    const struct blk_range *range = own_ranges;
    while (range && range->lock != lock)
        range = range->next_of_thread;
    return range;
}

static void note_own(struct blk_range *range)
{
    range->next_of_thread = own_ranges;
    own_ranges = range;
}

static void forget_own(const struct blk_range *range)
{
    struct blk_range **at = &own_ranges;
    while (*at && *at != range)
        at = &(*at)->next_of_thread;
    ASSERT(*at == range);
    *at = range->next_of_thread;
}

bool blk_range_is_held(const struct blk_range_lock *lock, uint64_t offset, uint64_t bytes,
                       enum blk_range_mode mode)
{
    const struct blk_range *range = own_range(lock);
    return range && range->mode >= mode && offset >= range->offset &&
           range_within(offset - range->offset, bytes, range->bytes);
}

void blk_range_lock_init(struct blk_range_lock *lock)
{
    lock->list = NULL;
    blk_mutex_init(&lock->mutex);
    pthread_cond_init(&lock->released, NULL);
}

void blk_range_lock_destroy(struct blk_range_lock *lock)
{
    ASSERT(!lock->list);
    pthread_cond_destroy(&lock->released);
    blk_mutex_destroy(&lock->mutex);
}

static bool ranges_conflict(const struct blk_range *a, const struct blk_range *b)
{
    static const bool excludes[4][4] = {
        [BLK_RANGE_READ] = { [BLK_RANGE_EXCLUSIVE] = true },
        [BLK_RANGE_SHARED] = { [BLK_RANGE_UPDATE] = true, [BLK_RANGE_EXCLUSIVE] = true },
        [BLK_RANGE_UPDATE] = { [BLK_RANGE_SHARED] = true,
                               [BLK_RANGE_UPDATE] = true,
                               [BLK_RANGE_EXCLUSIVE] = true },
        [BLK_RANGE_EXCLUSIVE] = { true, true, true, true },
    };
    return excludes[a->mode][b->mode] && ranges_overlap(a->offset, a->bytes, b->offset, b->bytes);
}

/* Whether a held range keeps `range` waiting. */
static bool must_wait(const struct blk_range_lock *lock, const struct blk_range *range)
{
    ASSERT_LOCKED(&lock->mutex);
    for (const struct blk_range *other = lock->list; other; other = other->next)
        if (other != range && other->held && ranges_conflict(other, range))
            return true;
    return false;
}

/*
 * Gives those who wait what they can have, in order of arrival. After it, whoever waits conflicts
 * with a holder: so one that arrives need only look at holders.
 */
static void grant(struct blk_range_lock *lock)
{
    ASSERT_LOCKED(&lock->mutex);
    for (struct blk_range *range = lock->list; range; range = range->next)
        if (!range->held && !must_wait(lock, range))
            range->held = true;
}

static void take_range(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                       uint64_t bytes, uint64_t alignment, enum blk_range_mode mode)
{
    uint64_t start = round_down(offset, alignment);
    *range = (struct blk_range){
        .offset = start,
        .bytes = round_up(offset + bytes, alignment) - start,
        .mode = mode,
        .lock = lock,
    };
    ASSERT(!own_range(lock));
    note_own(range);

    LOCK_SCOPE(&lock->mutex);
    struct blk_range **tail = &lock->list;
    while (*tail)
        tail = &(*tail)->next;
    range->held = !must_wait(lock, range);
    *tail = range;
    while (!range->held)
        blk_cond_wait(&lock->released, &lock->mutex);
}

void blk_range_take(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                    uint64_t bytes, uint64_t alignment)
{
    take_range(lock, range, offset, bytes, alignment, BLK_RANGE_EXCLUSIVE);
}

void blk_range_take_shared(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                           uint64_t bytes, uint64_t alignment)
{
    take_range(lock, range, offset, bytes, alignment, BLK_RANGE_SHARED);
}

void blk_range_take_read(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                         uint64_t bytes, uint64_t alignment)
{
    take_range(lock, range, offset, bytes, alignment, BLK_RANGE_READ);
}

void blk_range_take_update(struct blk_range_lock *lock, struct blk_range *range, uint64_t offset,
                           uint64_t bytes, uint64_t alignment)
{
    take_range(lock, range, offset, bytes, alignment, BLK_RANGE_UPDATE);
}

void blk_range_upgrade(struct blk_range_lock *lock, struct blk_range *range)
{
    LOCK_SCOPE(&lock->mutex);
    ASSERT(range->held && range->mode == BLK_RANGE_UPDATE);
    range->mode = BLK_RANGE_EXCLUSIVE;
    while (must_wait(lock, range))
        blk_cond_wait(&lock->released, &lock->mutex);
}

void blk_range_release(struct blk_range_lock *lock, struct blk_range *range)
{
    forget_own(range);
    LOCK_SCOPE(&lock->mutex);
    ASSERT(range->held);
    struct blk_range **at = &lock->list;
    while (*at != range)
        at = &(*at)->next;
    *at = range->next;
    range->held = false;
    grant(lock);
    pthread_cond_broadcast(&lock->released);
}
