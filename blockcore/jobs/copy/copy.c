/* SPDX-License-Identifier: MIT */
/*
 * The copy engine. Each worker repeats: take the next chunk (under the job's mutex), then move it
 * (without the mutex). So at most `workers` chunks are in flight, and no two workers ever have the
 * same target range.
 */
#include "blockcore/jobs/copy/copy.h"

#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/assert.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/workers.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/ops.h"
#include "blockcore/graph/pieces.h"
#include "blockcore/jobs/copy/job.h"

/* ---- workers ---- */

static void fail_job(struct copy_job *job, int ret, const struct blk_error *err)
{
    LOCK_SCOPE(&job->mutex);
    if (job->ret == 0) {
        job->ret = ret;
        job->err = *err;
    }
    copy_wake_all(job);
}

static bool has_failed(struct copy_job *job)
{
    LOCK_SCOPE(&job->mutex);
    return job->ret < 0;
}

/* Sleeps until the rate allows the chunk; a signal or a failure ends the wait. */
static void keep_to_rate(struct copy_job *job, const struct copy_chunk *chunk)
{
    if (chunk->action != COPY_DATA || !job->rate.bytes_per_second)
        return;
    while (blk_rate_pause(&job->rate, chunk->moved_before) && !blk_cancelled() && !has_failed(job))
        continue;
}

/* Returns 1 with a chunk, 0 when there is nothing more to do, or -errno. */
static int take_chunk(struct copy_job *job, struct copy_chunk *chunk, struct blk_error *err)
{
    LOCK_SCOPE(&job->mutex);
    return job->ret < 0 ? 0 : copy_next_chunk(job, chunk, err);
}

static void chunk_is_done(struct copy_job *job, const struct copy_chunk *chunk)
{
    LOCK_SCOPE(&job->mutex);
    copy_count_done(job, chunk->offset, chunk->bytes);
}

static void free_worker(struct copy_worker *worker)
{
    free(worker->buf);
    free(worker->packed);
    free(worker->lengths);
    free(worker->runs);
}

static void *copy_work(void *argument)
{
    struct copy_job *job = argument;
    struct blk_error err = BLK_ERROR_INIT;
    struct copy_chunk chunk = { .bytes = 0 };
    int ret;

    blk_mutex_lock(&job->mutex);
    struct copy_worker worker = job->workers[--job->free_workers];
    blk_mutex_unlock(&job->mutex);
    while ((ret = take_chunk(job, &chunk, &err)) > 0) {
        keep_to_rate(job, &chunk);
        ret = copy_move(job, &chunk, &worker, &err);
        if (ret < 0)
            break;
        copy_end_turn(job, &chunk);
        chunk_is_done(job, &chunk);
    }
    if (ret < 0)
        fail_job(job, ret, &err);
    free_worker(&worker);
    return NULL;
}

static bool make_worker(const struct copy_job *job, struct copy_worker *worker)
{
    uint64_t bytes = u64_max(COPY_CHUNK_BYTES, job->cluster);
    *worker = (struct copy_worker){
        .buf = blk_buffer_alloc(bytes),
        .packed = job->pieces ? blk_buffer_alloc(bytes + BLK_PIECE_ROOM) : NULL,
        .lengths = job->pieces ? blk_calloc(bytes / job->cluster, sizeof(*worker->lengths)) : NULL,
        .runs = blk_calloc(COPY_CHUNK_BYTES / BLK_SECTOR_BYTES + 2, sizeof(*worker->runs)),
    };
    bool packs = worker->packed && worker->lengths;
    if (worker->buf && worker->runs && (packs || !job->pieces))
        return true;
    free_worker(worker);
    return false;
}

/*
 * What each worker works in, before anything is written. Where memory is short there are fewer; the
 * first one must be there.
 */
static int make_workers(struct copy_job *job, struct blk_error *err)
{
    unsigned wanted = job->params->workers > 1 ? job->params->workers : 1;

    job->workers = blk_calloc(wanted, sizeof(*job->workers));
    job->turns_changed = blk_calloc(wanted, sizeof(*job->turns_changed));
    while (job->workers && job->turns_changed && job->slots < wanted &&
           make_worker(job, &job->workers[job->slots]))
        pthread_cond_init(&job->turns_changed[job->slots++], NULL);
    job->free_workers = job->slots;
    if (job->slots)
        return 0;
    free(job->workers);
    free(job->turns_changed);
    return blk_fail(err, ENOMEM, "copying to '%s'", job->params->target->name);
}

static void free_workers(struct copy_job *job)
{
    /* Threads that could not be started left theirs. */
    while (job->free_workers)
        free_worker(&job->workers[--job->free_workers]);
    free(job->workers);
    for (unsigned i = 0; i < job->slots; i++)
        pthread_cond_destroy(&job->turns_changed[i]);
    free(job->turns_changed);
}

/* ---- the target ---- */

/* How the target wants to be written. */
static int look_at_target(struct copy_job *job, struct blk_error *err)
{
    const struct blk_copy_params *params = job->params;
    struct blk_node *format = blk_skip_filters(params->target);

    int ret = blk_child_cluster_bytes(format, &job->cluster, err);
    if (ret == 0 && params->compressed)
        ret =
            blk_require(format, BLK_COMPRESSION, err, "compressing to '%s'", params->target->name);
    if (ret < 0)
        return ret;
    ASSERT(!params->compressed || job->cluster);
    job->cluster = u64_max(job->cluster, 1);
    job->pieces = params->compressed && blk_has_pieces(params->target);
    job->source_has_pieces =
        job->pieces &&
        blk_same_pieces(blk_skip_filters(params->source)->pieces, params->target->pieces);
    return 0;
}

static void find_order(struct copy_job *job)
{
    const struct blk_copy_params *params = job->params;
    job->order = params->in_order ? blk_write_order(params->target) : BLK_ORDER_NONE;
    /* Who packs by itself does not place; an attempt of the kernel that fails may leave traces. */
    bool whole = (params->compressed && !job->pieces) || params->allow_copy_range;
    if (job->order == BLK_ORDER_PLACES && whole)
        job->order = BLK_ORDER_WRITES;
}

int blk_copy_run(const struct blk_copy_params *params, struct blk_error *err)
{
    struct copy_job job = {
        .params = params,
        .marked = { .bitmap = params->mask, .end = params->bytes },
        .rate = { params->bytes_per_second, blk_now_ns() },
        .why = BLK_ERROR_INIT,
    };
    int ret = look_at_target(&job, err);
    find_order(&job);
    if (ret == 0)
        ret = make_workers(&job, err);
    if (ret < 0)
        return ret;
    blk_mutex_init(&job.mutex);

    blk_run_workers(job.slots, copy_work, &job);
    free_workers(&job);
    if (job.order == BLK_ORDER_PLACES)
        blk_end_places(params->target);
    if (params->moved)
        *params->moved += job.moved;

    blk_mutex_destroy(&job.mutex);
    if (job.ret < 0 && err)
        *err = job.err;
    return job.ret;
}
