/* SPDX-License-Identifier: MIT */
/*
 * The threads of aio requests. Threads are started as they are needed and stay: a request that
 * waits at a breakpoint or for another's range keeps its thread, and those behind it must still
 * run.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "cmd/io/io.h"

#define MAX_THREADS 64

struct pool_job {
    void (*run)(void *opaque);
    void *opaque;
    struct pool_job *next;
};

struct io_pool {
    pthread_mutex_t mutex; /* guards the fields below */
    pthread_cond_t submitted, done;
    struct pool_job *first, **last;
    unsigned pending; /* submitted and not done */
    unsigned threads;
    bool stopping;
    pthread_t ids[MAX_THREADS];
};

struct io_pool *io_pool_new(void)
{
    struct io_pool *pool = blk_xcalloc(1, sizeof(*pool));
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->submitted, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->last = &pool->first;
    return pool;
}

/* Waits for a job and takes it; NULL when the pool ends. The mutex is held. */
static struct pool_job *take_job(struct io_pool *pool)
{
    while (!pool->first && !pool->stopping)
        pthread_cond_wait(&pool->submitted, &pool->mutex);
    struct pool_job *job = pool->first;
    if (job) {
        pool->first = job->next;
        if (!pool->first)
            pool->last = &pool->first;
    }
    return job;
}

static void *thread_main(void *opaque)
{
    struct io_pool *pool = opaque;

    pthread_mutex_lock(&pool->mutex);
    for (struct pool_job *job = take_job(pool); job; job = take_job(pool)) {
        pthread_mutex_unlock(&pool->mutex);
        job->run(job->opaque);
        free(job);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->pending == 0)
            pthread_cond_broadcast(&pool->done);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

/* Signals go to the main thread, where they end a wait for input. */
static int start_thread(struct io_pool *pool)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int ret = pthread_create(&pool->ids[pool->threads], NULL, thread_main, pool);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret == 0)
        pool->threads++;
    return -ret;
}

int io_pool_submit(struct io_pool *pool, void (*run)(void *opaque), void *opaque)
{
    struct pool_job *job = blk_xcalloc(1, sizeof(*job));
    *job = (struct pool_job){ .run = run, .opaque = opaque };

    pthread_mutex_lock(&pool->mutex);
    int ret = 0;
    if (pool->pending >= pool->threads && pool->threads < MAX_THREADS)
        ret = start_thread(pool);
    /* With a thread that will come back, a missing one only means to wait longer. */
    if (ret < 0 && pool->threads == 0) {
        pthread_mutex_unlock(&pool->mutex);
        free(job);
        return ret;
    }
    *pool->last = job;
    pool->last = &job->next;
    pool->pending++;
    pthread_cond_signal(&pool->submitted);
    pthread_mutex_unlock(&pool->mutex);
    return 0;
}

void io_pool_wait(struct io_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    while (pool->pending)
        pthread_cond_wait(&pool->done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

void io_pool_free(struct io_pool *pool)
{
    io_pool_wait(pool);
    pthread_mutex_lock(&pool->mutex);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->submitted);
    pthread_mutex_unlock(&pool->mutex);
    for (unsigned i = 0; i < pool->threads; i++)
        pthread_join(pool->ids[i], NULL);
    pthread_cond_destroy(&pool->submitted);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}
