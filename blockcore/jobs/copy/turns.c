/* SPDX-License-Identifier: MIT */
/*
 * Turns: chunks end them in the order in which they were handed out. At most as many chunks as
 * there are workers have a turn to come, so each waits on a condition of its own, and the end of a
 * turn wakes just the one whose turn it is.
 */
#include "blockcore/jobs/copy/job.h"

void copy_await_turn(struct copy_job *job, const struct copy_chunk *chunk)
{
    if (job->order == BLK_ORDER_NONE)
        return;
    LOCK_SCOPE(&job->mutex);
    while (job->turn < chunk->turn && job->ret == 0)
        blk_cond_wait(&job->turns_changed[chunk->turn % job->slots], &job->mutex);
}

void copy_end_turn(struct copy_job *job, struct copy_chunk *chunk)
{
    if (job->order == BLK_ORDER_NONE)
        return;
    copy_await_turn(job, chunk);
    LOCK_SCOPE(&job->mutex);
    if (job->turn != chunk->turn)
        return;
    job->turn++;
    pthread_cond_signal(&job->turns_changed[job->turn % job->slots]);
}

void copy_wake_all(struct copy_job *job)
{
    ASSERT_LOCKED(&job->mutex);
    for (unsigned i = 0; i < job->slots; i++)
        pthread_cond_broadcast(&job->turns_changed[i]);
}
