/* SPDX-License-Identifier: MIT */
/* Range locks: who excludes whom, in which order, and that nothing is lost under many threads. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "blockcore/graph/range_lock.h"
#include "tests/unit/check.h"

/* A thread that takes one range, says so, and gives it back when told to. */
struct taker {
    struct blk_range_lock *lock;
    uint64_t offset, bytes, alignment;
    enum blk_range_mode mode;
    atomic_bool took, let_go;
    pthread_t thread;
};

static void *take(void *argument)
{
    struct taker *t = argument;
    struct blk_range range;
    static void (*const take_as[])(struct blk_range_lock *, struct blk_range *, uint64_t, uint64_t,
                                   uint64_t) = {
        [BLK_RANGE_READ] = blk_range_take_read,
        [BLK_RANGE_SHARED] = blk_range_take_shared,
        [BLK_RANGE_UPDATE] = blk_range_take_update,
        [BLK_RANGE_EXCLUSIVE] = blk_range_take,
    };
    take_as[t->mode](t->lock, &range, t->offset, t->bytes, t->alignment);
    t->took = true;
    while (!t->let_go)
        usleep(500);
    blk_range_release(t->lock, &range);
    return NULL;
}

/* Starts the thread and waits until it holds its range or stands in the queue. */
static void start(struct taker *t)
{
    blk_mutex_lock(&t->lock->mutex);
    size_t before = 0, now = 0;
    for (struct blk_range *r = t->lock->list; r; r = r->next)
        before++;
    blk_mutex_unlock(&t->lock->mutex);

    pthread_create(&t->thread, NULL, take, t);
    while (now <= before) {
        usleep(500);
        now = 0;
        blk_mutex_lock(&t->lock->mutex);
        for (struct blk_range *r = t->lock->list; r; r = r->next)
            now++;
        blk_mutex_unlock(&t->lock->mutex);
    }
    usleep(5000); /* time to take what may be taken */
}

/* Waits until what must happen has happened; 10 seconds at most, for a machine that is busy. */
static bool comes_true(const atomic_bool *what)
{
    for (int tries = 0; !*what && tries < 20000; tries++)
        usleep(500);
    return *what;
}

static void finish(struct taker *t)
{
    t->let_go = true;
    pthread_join(t->thread, NULL);
}

/* Whether the range that came last is held, and does not wait. */
static bool last_is_held(struct blk_range_lock *lock)
{
    LOCK_SCOPE(&lock->mutex);
    const struct blk_range *last = lock->list;
    while (last->next)
        last = last->next;
    return last->held;
}

/* Whether a second range gets in while the first is held. */
static bool both_hold(struct taker first, struct taker second)
{
    struct blk_range_lock lock;
    blk_range_lock_init(&lock);
    first.lock = second.lock = &lock;
    start(&first);
    start(&second);
    bool both = last_is_held(&lock);
    finish(&first);
    finish(&second);
    CHECK(second.took);
    blk_range_lock_destroy(&lock);
    return both;
}

#define RANGE(at, length, unit, how) \
    ((struct taker){ .offset = at, .bytes = length, .alignment = unit, .mode = BLK_RANGE_##how })

TEST(who_excludes_whom)
{
    CHECK(!both_hold(RANGE(0, 10, 1, EXCLUSIVE), RANGE(9, 1, 1, EXCLUSIVE)));
    CHECK(!both_hold(RANGE(0, 10, 1, EXCLUSIVE), RANGE(9, 1, 1, SHARED)));
    CHECK(!both_hold(RANGE(0, 10, 1, SHARED), RANGE(9, 1, 1, EXCLUSIVE)));
    CHECK(both_hold(RANGE(0, 10, 1, SHARED), RANGE(9, 1, 1, SHARED)));
    CHECK(both_hold(RANGE(0, 10, 1, EXCLUSIVE), RANGE(10, 1, 1, EXCLUSIVE)));
}

TEST(readers_wait_for_changes_only)
{
    CHECK(both_hold(RANGE(0, 10, 1, READ), RANGE(9, 1, 1, READ)));
    CHECK(both_hold(RANGE(0, 10, 1, READ), RANGE(9, 1, 1, SHARED)));
    CHECK(both_hold(RANGE(0, 10, 1, UPDATE), RANGE(9, 1, 1, READ)));
    CHECK(!both_hold(RANGE(0, 10, 1, READ), RANGE(9, 1, 1, EXCLUSIVE)));
    CHECK(!both_hold(RANGE(0, 10, 1, UPDATE), RANGE(9, 1, 1, SHARED)));
    CHECK(!both_hold(RANGE(0, 10, 1, UPDATE), RANGE(9, 1, 1, UPDATE)));
}

static void *upgrade(void *argument)
{
    struct taker *t = argument;
    struct blk_range range;
    blk_range_take_update(t->lock, &range, t->offset, t->bytes, t->alignment);
    blk_range_upgrade(t->lock, &range);
    t->took = true;
    while (!t->let_go)
        usleep(500);
    blk_range_release(t->lock, &range);
    return NULL;
}

/* Waits until somebody stands in the upgrade. */
static void await_upgrade(struct blk_range_lock *lock)
{
    for (bool waits = false; !waits; usleep(500)) {
        LOCK_SCOPE(&lock->mutex);
        for (const struct blk_range *r = lock->list; r; r = r->next)
            waits |= r->mode == BLK_RANGE_EXCLUSIVE;
    }
}

TEST(an_upgrade_waits_for_readers_and_keeps_others_out)
{
    struct blk_range_lock lock;
    struct taker first = RANGE(0, 10, 1, READ), change = RANGE(0, 10, 1, UPDATE),
                 late = RANGE(5, 1, 1, READ);
    blk_range_lock_init(&lock);
    first.lock = change.lock = late.lock = &lock;
    start(&first);
    pthread_create(&change.thread, NULL, upgrade, &change);
    await_upgrade(&lock);
    CHECK(!change.took);
    start(&late);
    CHECK(!late.took);
    finish(&first);
    CHECK(comes_true(&change.took) && !late.took);
    finish(&change);
    finish(&late);
    CHECK(late.took);
    blk_range_lock_destroy(&lock);
}

TEST(ranges_are_rounded_outwards)
{
    CHECK(!both_hold(RANGE(100, 1, 512, EXCLUSIVE), RANGE(400, 1, 512, EXCLUSIVE)));
    CHECK(both_hold(RANGE(100, 1, 512, EXCLUSIVE), RANGE(512, 1, 512, EXCLUSIVE)));
    CHECK(!both_hold(RANGE(1000, BLK_RANGE_TO_END - 1000, 512, EXCLUSIVE),
                     RANGE(UINT64_C(1) << 62, 1, 1, EXCLUSIVE)));
}

TEST(a_range_that_waits_keeps_nobody_waiting)
{
    struct blk_range_lock lock;
    struct taker stuck = RANGE(0, 10, 1, EXCLUSIVE), waiting = RANGE(5, 10, 1, EXCLUSIVE),
                 writer = RANGE(12, 2, 1, EXCLUSIVE), reader = RANGE(14, 4, 1, READ);
    blk_range_lock_init(&lock);
    stuck.lock = waiting.lock = writer.lock = reader.lock = &lock;
    start(&stuck);
    start(&waiting);
    start(&writer);
    start(&reader);
    CHECK(comes_true(&stuck.took) && comes_true(&writer.took) && comes_true(&reader.took));
    CHECK(!waiting.took);
    finish(&stuck);
    usleep(5000);
    CHECK(!waiting.took); /* now it waits for those that overtook it */
    finish(&writer);
    finish(&reader);
    finish(&waiting);
    CHECK(waiting.took);
    blk_range_lock_destroy(&lock);
}

TEST(the_first_to_wait_is_the_first_to_go_on)
{
    struct blk_range_lock lock;
    struct taker holder = RANGE(0, 10, 1, EXCLUSIVE), first = RANGE(2, 4, 1, EXCLUSIVE),
                 second = RANGE(4, 4, 1, EXCLUSIVE);
    blk_range_lock_init(&lock);
    holder.lock = first.lock = second.lock = &lock;
    start(&holder);
    start(&first);
    start(&second);
    finish(&holder);
    CHECK(comes_true(&first.took) && !second.took);
    finish(&first);
    finish(&second);
    CHECK(second.took);
    blk_range_lock_destroy(&lock);
}

/* ---- many threads on a few slots; what they share is guarded by the lock alone ---- */

enum { SLOTS = 16, ROUNDS = 2000, THREADS = 6 };

struct crowd {
    struct blk_range_lock lock;
    int value[SLOTS];
    atomic_uint seed;
};

static void *mingle(void *argument)
{
    struct crowd *crowd = argument;
    unsigned seed = atomic_fetch_add(&crowd->seed, 1);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t from = (uint64_t)rand_r(&seed) % SLOTS;
        uint64_t count = 1 + (uint64_t)rand_r(&seed) % (SLOTS - from);
        struct blk_range range;
        blk_range_take(&crowd->lock, &range, from, count, 1);
        for (uint64_t i = from; i < from + count; i++)
            crowd->value[i]++;
        for (uint64_t i = from; i < from + count; i++)
            crowd->value[i]--;
        blk_range_release(&crowd->lock, &range);
    }
    return NULL;
}

TEST(many_threads)
{
    static struct crowd crowd;
    pthread_t threads[THREADS];
    crowd.seed = check_seed();
    blk_range_lock_init(&crowd.lock);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, mingle, &crowd);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < SLOTS; i++)
        CHECK_INT(crowd.value[i], 0);
    blk_range_lock_destroy(&crowd.lock);
}
