#include "blockcore/graph/range_lock.h"

#include <assert.h>
#include <stddef.h>

#include "blockcore/base/bytes.h"

void blk_range_lock_init(struct blk_range_lock *lock)
{
    lock->list = NULL;
    pthread_mutex_init(&lock->mutex, NULL);
    pthread_cond_init(&lock->released, NULL);
}

void blk_range_lock_destroy(struct blk_range_lock *lock)
{
    assert(!lock->list);
    pthread_cond_destroy(&lock->released);
    pthread_mutex_destroy(&lock->mutex);
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

/* Whether a held range keeps `range` waiting. The mutex is held. */
static bool must_wait(const struct blk_range_lock *lock, const struct blk_range *range)
{
    for (const struct blk_range *other = lock->list; other; other = other->next)
        if (other != range && other->held && ranges_conflict(other, range))
            return true;
    return false;
}

/*
 * Gives those who wait what they can have, in order of arrival. After it, whoever waits conflicts
 * with a holder: so one that arrives need only look at holders. The mutex is held.
 */
static void grant(struct blk_range_lock *lock)
{
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
    };

    pthread_mutex_lock(&lock->mutex);
    struct blk_range **tail = &lock->list;
    while (*tail)
        tail = &(*tail)->next;
    range->held = !must_wait(lock, range);
    *tail = range;
    while (!range->held)
        pthread_cond_wait(&lock->released, &lock->mutex);
    pthread_mutex_unlock(&lock->mutex);
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
    pthread_mutex_lock(&lock->mutex);
    assert(range->held && range->mode == BLK_RANGE_UPDATE);
    range->mode = BLK_RANGE_EXCLUSIVE;
    while (must_wait(lock, range))
        pthread_cond_wait(&lock->released, &lock->mutex);
    pthread_mutex_unlock(&lock->mutex);
}

void blk_range_release(struct blk_range_lock *lock, struct blk_range *range)
{
    pthread_mutex_lock(&lock->mutex);
    assert(range->held);
    struct blk_range **at = &lock->list;
    while (*at != range)
        at = &(*at)->next;
    *at = range->next;
    range->held = false;
    grant(lock);
    pthread_cond_broadcast(&lock->released);
    pthread_mutex_unlock(&lock->mutex);
}
