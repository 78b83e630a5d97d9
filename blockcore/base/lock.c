/* SPDX-License-Identifier: MIT */
/* Locks that know their thread: see lock.h, where what is short and often called is inline. */
#include "blockcore/base/lock.h"

_Thread_local unsigned blk_read_locks;

void blk_mutex_init(struct blk_mutex *mutex)
{
    pthread_mutex_init(&mutex->mutex, NULL);
    blk_clear_owner(mutex);
}

void blk_mutex_destroy(struct blk_mutex *mutex)
{
    pthread_mutex_destroy(&mutex->mutex);
}

void blk_cond_wait(pthread_cond_t *cond, struct blk_mutex *mutex)
{
    ASSERT_LOCKED(mutex);
    blk_clear_owner(mutex);
    pthread_cond_wait(cond, &mutex->mutex);
    blk_set_owner(mutex);
}

int blk_cond_timedwait(pthread_cond_t *cond, struct blk_mutex *mutex, const struct timespec *until)
{
    ASSERT_LOCKED(mutex);
    blk_clear_owner(mutex);
    int ret = pthread_cond_timedwait(cond, &mutex->mutex, until);
    blk_set_owner(mutex);
    return ret;
}

void blk_rwlock_init(struct blk_rwlock *lock)
{
    pthread_rwlock_init(&lock->rwlock, NULL);
    blk_clear_owner(lock);
}

void blk_rwlock_destroy(struct blk_rwlock *lock)
{
    pthread_rwlock_destroy(&lock->rwlock);
}
