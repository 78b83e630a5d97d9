/* SPDX-License-Identifier: MIT */
/* Locks that know who holds them, and locks by scope. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockcore/base/lock.h"
#include "tests/unit/check.h"

static struct blk_mutex mutex = BLK_MUTEX_INIT;

/* Whether a child process that runs the function ends by an assertion. */
static bool aborts(void (*run)(void))
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(open("/dev/null", O_WRONLY), 2);
        run();
        _exit(0);
    }
    int status = 0;
    return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void *look(void *held)
{
    *(bool *)held = blk_is_locked(&mutex);
    return NULL;
}

static bool another_thread_holds_it(void)
{
    pthread_t thread;
    bool held = true;
    pthread_create(&thread, NULL, look, &held);
    pthread_join(thread, NULL);
    return held;
}

TEST(a_lock_knows_its_thread)
{
    CHECK(!blk_is_locked(&mutex));
    blk_mutex_lock(&mutex);
    CHECK(blk_is_locked(&mutex));
    CHECK(!another_thread_holds_it());
    CHECK(!blk_mutex_trylock(&mutex));
    blk_mutex_unlock(&mutex);
    CHECK(!blk_is_locked(&mutex));
    CHECK(blk_mutex_trylock(&mutex));
    CHECK(blk_is_locked(&mutex));
    blk_mutex_unlock(&mutex);
}

static bool is_held_before_the_return(void)
{
    LOCK_SCOPE(&mutex);
    return blk_is_locked(&mutex);
}

TEST(a_scope_ends_with_its_block)
{
    CHECK(is_held_before_the_return());
    CHECK(!blk_is_locked(&mutex));
    for (int i = 0; i < 3; i++) {
        LOCK_SCOPE(&mutex);
        if (i == 1)
            continue;
        CHECK(blk_is_locked(&mutex));
    }
    CHECK(!blk_is_locked(&mutex));
}

TEST(readers_and_writers)
{
    struct blk_rwlock lock;
    blk_rwlock_init(&lock);
    {
        READ_LOCK_SCOPE(&lock);
        CHECK(!blk_is_locked(&lock));
        ASSERT_READ_LOCKED(&lock);
    }
    CHECK_INT(blk_read_locks, 0);
    {
        WRITE_LOCK_SCOPE(&lock);
        CHECK(blk_is_locked(&lock));
        ASSERT_READ_LOCKED(&lock);
    }
    CHECK(!blk_is_locked(&lock));
    blk_rwlock_destroy(&lock);
}

TEST(a_wait_gives_the_lock_up_and_takes_it_back)
{
    pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    struct timespec now;
    LOCK_SCOPE(&mutex);
    clock_gettime(CLOCK_REALTIME, &now);
    CHECK(blk_cond_timedwait(&never, &mutex, &now) != 0);
    CHECK(blk_is_locked(&mutex));
}

static void assert_unlocked_mutex(void)
{
    ASSERT_LOCKED(&mutex);
}

static void unlock_what_is_free(void)
{
    blk_mutex_unlock(&mutex);
}

static void lock_twice(void)
{
    blk_mutex_lock(&mutex);
    blk_mutex_lock(&mutex);
}

TEST(a_broken_rule_ends_the_run)
{
    CHECK(aborts(assert_unlocked_mutex));
    CHECK(aborts(unlock_what_is_free));
    CHECK(aborts(lock_twice));
    blk_mutex_lock(&mutex);
    CHECK(!aborts(assert_unlocked_mutex));
    blk_mutex_unlock(&mutex);
}
