/* SPDX-License-Identifier: MIT */
/*
 * Mutexes and read-write locks that know which thread holds them, so that "the mutex is held" can
 * be an assertion instead of a comment: a function that needs it begins with ASSERT_LOCKED().
 * Knowing the owner costs two plain stores for each time a lock is taken. Where a lock is held to
 * the end of a block, LOCK_SCOPE() takes it, and leaving the block releases it, on whatever path.
 */
#ifndef BLOCKCORE_BASE_LOCK_H
#define BLOCKCORE_BASE_LOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include "blockcore/base/assert.h"

/* Its address stands for the thread; its value counts the read locks that the thread holds. */
extern _Thread_local unsigned blk_read_locks;

struct blk_mutex {
    pthread_mutex_t mutex;
    _Atomic(const void *) owner; /* NULL: nobody. A thread may only compare it with itself */
};

#define BLK_MUTEX_INIT ((struct blk_mutex){ .mutex = PTHREAD_MUTEX_INITIALIZER })

struct blk_rwlock {
    pthread_rwlock_t rwlock;
    _Atomic(const void *) owner; /* the writer */
};

/* Whether this thread holds the mutex, or the read-write lock for writing. */
#define blk_is_locked(lock) \
    (atomic_load_explicit(&(lock)->owner, memory_order_relaxed) == (const void *)&blk_read_locks)
#define ASSERT_LOCKED(lock) ASSERT(blk_is_locked(lock))
/* For reading at least. Which lock is held for reading is not known: any read lock will do. */
#define ASSERT_READ_LOCKED(lock) ASSERT(blk_is_locked(lock) || blk_read_locks)

/* ---- mutexes ---- */

void blk_mutex_init(struct blk_mutex *mutex);
void blk_mutex_destroy(struct blk_mutex *mutex);

/* Records that this thread has taken the lock, or is about to release it. */
#define blk_set_owner(lock) \
    atomic_store_explicit(&(lock)->owner, (const void *)&blk_read_locks, memory_order_relaxed)
#define blk_clear_owner(lock) atomic_store_explicit(&(lock)->owner, NULL, memory_order_relaxed)

static inline void blk_mutex_lock(struct blk_mutex *mutex)
{
    ASSERT(!blk_is_locked(mutex));
    pthread_mutex_lock(&mutex->mutex);
    blk_set_owner(mutex);
}

/* Takes the mutex if it is free; whether it did. */
static inline bool blk_mutex_trylock(struct blk_mutex *mutex)
{
    if (pthread_mutex_trylock(&mutex->mutex) != 0)
        return false;
    blk_set_owner(mutex);
    return true;
}

static inline void blk_mutex_unlock(struct blk_mutex *mutex)
{
    ASSERT_LOCKED(mutex);
    blk_clear_owner(mutex);
    pthread_mutex_unlock(&mutex->mutex);
}

/* Like their namesakes in pthreads; the mutex is held before and after. */
void blk_cond_wait(pthread_cond_t *cond, struct blk_mutex *mutex);
int blk_cond_timedwait(pthread_cond_t *cond, struct blk_mutex *mutex, const struct timespec *until);

/* ---- read-write locks ---- */

void blk_rwlock_init(struct blk_rwlock *lock);
void blk_rwlock_destroy(struct blk_rwlock *lock);

static inline void blk_read_lock(struct blk_rwlock *lock)
{
    ASSERT(!blk_is_locked(lock));
    pthread_rwlock_rdlock(&lock->rwlock);
    blk_read_locks++;
}

static inline void blk_read_unlock(struct blk_rwlock *lock)
{
    ASSERT(blk_read_locks > 0);
    blk_read_locks--;
    pthread_rwlock_unlock(&lock->rwlock);
}

static inline void blk_write_lock(struct blk_rwlock *lock)
{
    ASSERT(!blk_is_locked(lock));
    pthread_rwlock_wrlock(&lock->rwlock);
    blk_set_owner(lock);
}

static inline void blk_write_unlock(struct blk_rwlock *lock)
{
    ASSERT_LOCKED(lock);
    blk_clear_owner(lock);
    pthread_rwlock_unlock(&lock->rwlock);
}

/* ---- scopes ---- */

/* Declares a variable for which end(&variable) is called when it goes out of scope. */
#define BLK_SCOPE_(type, end, value, counter) \
    __attribute__((cleanup(end), unused)) type *const blk_scope_##counter = (value)
#define BLK_SCOPE(type, end, value, counter) BLK_SCOPE_(type, end, value, counter)

static inline struct blk_mutex *blk_lock_scope(struct blk_mutex *mutex)
{
    blk_mutex_lock(mutex);
    return mutex;
}

static inline void blk_lock_scope_end(struct blk_mutex *const *mutex)
{
    blk_mutex_unlock(*mutex);
}

static inline struct blk_rwlock *blk_read_scope(struct blk_rwlock *lock)
{
    blk_read_lock(lock);
    return lock;
}

static inline void blk_read_scope_end(struct blk_rwlock *const *lock)
{
    blk_read_unlock(*lock);
}

static inline struct blk_rwlock *blk_write_scope(struct blk_rwlock *lock)
{
    blk_write_lock(lock);
    return lock;
}

static inline void blk_write_scope_end(struct blk_rwlock *const *lock)
{
    blk_write_unlock(*lock);
}

/* Held from here to the end of the block. */
#define LOCK_SCOPE(mutex) \
    BLK_SCOPE(struct blk_mutex, blk_lock_scope_end, blk_lock_scope(mutex), __COUNTER__)
#define READ_LOCK_SCOPE(lock) \
    BLK_SCOPE(struct blk_rwlock, blk_read_scope_end, blk_read_scope(lock), __COUNTER__)
#define WRITE_LOCK_SCOPE(lock) \
    BLK_SCOPE(struct blk_rwlock, blk_write_scope_end, blk_write_scope(lock), __COUNTER__)

#endif
