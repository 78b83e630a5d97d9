/* SPDX-License-Identifier: MIT */
/*
 * The copy engine. Each worker repeats: take the next chunk (under the job's mutex, where the
 * iterator walks the source's block status), then move it (without the mutex). So at most `workers`
 * chunks are in flight, one buffer each, and no two workers ever have the same target range.
 */
#include "blockcore/jobs/copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/assert.h"
#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/clock.h"
#include "blockcore/base/lock.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/workers.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/ops.h"
#include "blockcore/graph/status.h"
#include "blockcore/jobs/digest.h"

/* Data moves in pieces of this size; a multiple of every cluster size. */
#define CHUNK_BYTES (2 * MIB)
/* Zeroes are cheap as holes; where they have to be written, a signal should not wait long. */
#define ZERO_CHUNK_BYTES (64 * MIB)

enum action {
    ACTION_SKIP, /* the target needs nothing here */
    ACTION_ZERO,
    ACTION_COPY,
};

struct chunk {
    uint64_t offset, bytes; /* relative to the start of the copy */
    enum action action;
    uint64_t turn;         /* its number: in_order, it is written after those before */
    uint64_t moved_before; /* when this many bytes may have been moved, it is this chunk's turn */
    bool unreadable;       /* salvage: the map is, and so is what it leads to */
    struct blk_node *host; /* where the source's bytes lie as they are, or NULL */
    uint64_t host_offset;
};

struct copy_job {
    const struct blk_copy_params *params;
    uint64_t unit; /* compressed writes: the target's cluster size; else 1 */

    struct blk_mutex mutex;         /* guards what follows */
    uint64_t next;                  /* everything before has been handed out */
    struct blk_dirty_cursor marked; /* of the mask, at `next` */
    uint64_t turns;                 /* chunks handed out */
    uint64_t turn;                  /* in_order: the chunk that may write now */
    pthread_cond_t turn_changed;    /* or the job has failed */
    struct blk_extent extent;       /* source state at `next`; bytes 0: unknown */
    bool unreadable;                /* the extent is, with salvage */
    struct blk_error why;           /* why it is */
    uint64_t done;
    uint64_t moved; /* bytes handed out to be read and written: what the rate counts */
    struct blk_rate rate;
    uint8_t **buffers; /* of workers that have not begun */
    unsigned free_buffers;
    bool no_copy_range; /* it was not supported: do not try again */
    int ret;            /* the first failure */
    struct blk_error err;
};

/* ---- the iterator; the job's mutex is held ---- */

static int ask_source(struct copy_job *job, uint64_t bytes, struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    const struct blk_node *base = p->only_allocated ? p->base : NULL;
    uint64_t offset = p->source_offset + job->next;

    return blk_block_status_above(blk_layers(p->source, base), offset, bytes,
                                  BLK_WANT_ZERO | BLK_WANT_HOLES, &job->extent, err);
}

/*
 * The map could not be read. It gets a second chance; then all that it leads to is lost, as far as
 * the failure reaches. Where that is not known, the reads decide, sector by sector.
 */
static void salvage_map(struct copy_job *job, uint64_t bytes)
{
    blk_error_clear(&job->why);
    if (ask_source(job, bytes, &job->why) == 0)
        return;
    job->unreadable = job->extent.bytes;
    if (job->unreadable)
        job->extent.flags = BLK_EXT_ZERO | BLK_EXT_ALLOCATED;
    else
        job->extent = (struct blk_extent){
            .bytes = u64_min(bytes, CHUNK_BYTES),
            .flags = BLK_EXT_DATA | BLK_EXT_ALLOCATED,
        };
}

static int look_at_source(struct copy_job *job, uint64_t bytes, struct blk_error *err)
{
    ASSERT_LOCKED(&job->mutex);
    job->unreadable = false;
    int ret = ask_source(job, bytes, err);
    if (ret == 0 || !job->params->salvage)
        return ret;
    blk_error_clear(err);
    salvage_map(job, bytes);
    return 0;
}

static enum action action_for(const struct blk_copy_params *p, unsigned flags)
{
    /* Zeroes past the end of a short base belong to this layer: the base need not have them. */
    bool decided = flags & BLK_EXT_ALLOCATED || (p->base && flags & BLK_EXT_ZERO);
    if (p->only_allocated && !decided)
        return ACTION_SKIP;
    if (!(flags & BLK_EXT_ZERO) || p->sparse_bytes == 0)
        return ACTION_COPY;
    return p->target_reads_zero ? ACTION_SKIP : ACTION_ZERO;
}

/* Compressed writes are whole clusters: an extent that ends inside one is widened, or read. */
static void fit_to_unit(const struct copy_job *job, struct chunk *chunk)
{
    uint64_t left = job->params->bytes - chunk->offset;
    uint64_t whole = round_down(chunk->bytes, job->unit);

    if (chunk->bytes == left)
        return;
    if (whole && chunk->action != ACTION_COPY) {
        chunk->bytes = whole;
        return;
    }
    chunk->bytes = u64_min(round_up(chunk->bytes, job->unit), left);
    if (!whole)
        chunk->action = ACTION_COPY;
    chunk->host = NULL;
}

/* Moves on to the next range that the mask marks. What is skipped is done. Returns its length. */
static uint64_t skip_to_marked(struct copy_job *job)
{
    ASSERT_LOCKED(&job->mutex);
    const struct blk_copy_params *p = job->params;
    uint64_t bytes = p->bytes - job->next;

    if (!p->mask || !bytes || blk_dirty_cursor_look(&job->marked, job->next, &bytes))
        return bytes;
    job->done += bytes;
    job->next += bytes;
    job->extent.bytes = 0;
    if (job->next == p->bytes)
        return 0;
    blk_dirty_cursor_look(&job->marked, job->next, &bytes);
    return bytes;
}

/* Returns 1 with the next chunk, 0 at the end, or -errno. */
static int next_chunk(struct copy_job *job, struct chunk *chunk, struct blk_error *err)
{
    ASSERT_LOCKED(&job->mutex);
    const struct blk_copy_params *p = job->params;
    uint64_t marked = skip_to_marked(job);

    if (job->next == p->bytes)
        return 0;
    if (!job->extent.bytes) {
        int ret = look_at_source(job, marked, err);
        if (ret < 0)
            return ret;
    }

    const struct blk_extent *extent = &job->extent;
    bool as_is = (extent->flags & BLK_EXT_OFFSET_VALID) && (extent->flags & BLK_EXT_DATA);
    *chunk = (struct chunk){
        .offset = job->next,
        .action = action_for(p, extent->flags),
        .host = as_is ? extent->host : NULL,
        .host_offset = extent->host_offset,
    };
    uint64_t most = chunk->action == ACTION_COPY ? CHUNK_BYTES : ZERO_CHUNK_BYTES;
    if (job->unit > 1 && chunk->action == ACTION_COPY)
        most = job->unit;
    /* Chunks end on multiples of their size in the target, so that clusters are written whole. */
    uint64_t to_boundary = most - (p->target_offset + job->next) % most;
    chunk->bytes = u64_min(extent->bytes, to_boundary);
    if (job->unit > 1)
        fit_to_unit(job, chunk);
    chunk->unreadable = job->unreadable && chunk->bytes <= extent->bytes;
    if (chunk->unreadable && p->salvaged)
        p->salvaged(p->opaque, p->source_offset + chunk->offset, chunk->bytes, &job->why);

    job->next += chunk->bytes;
    chunk->turn = job->turns++;
    chunk->moved_before = job->moved;
    if (chunk->action == ACTION_COPY)
        job->moved += chunk->bytes;
    if (chunk->bytes < extent->bytes) {
        job->extent.bytes -= chunk->bytes;
        job->extent.host_offset += chunk->bytes;
    } else {
        job->extent.bytes = 0;
    }
    return 1;
}

/* ---- moving one chunk ---- */

/*
 * Waits until all chunks before are written. Reading needs no turn. Every chunk that was handed out
 * ends its turn or fails the job, so nobody waits forever, and after a failure nobody waits at all.
 */
static void await_turn(struct copy_job *job, const struct chunk *chunk)
{
    if (!job->params->in_order)
        return;
    LOCK_SCOPE(&job->mutex);
    while (job->turn != chunk->turn && job->ret == 0)
        blk_cond_wait(&job->turn_changed, &job->mutex);
}

static void end_turn(struct copy_job *job, const struct chunk *chunk)
{
    if (!job->params->in_order)
        return;
    await_turn(job, chunk);
    LOCK_SCOPE(&job->mutex);
    job->turn = chunk->turn + 1;
    pthread_cond_broadcast(&job->turn_changed);
}

static int zero_target(const struct copy_job *job, uint64_t offset, uint64_t bytes,
                       struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    return blk_write_zeroes(p->target, p->target_offset + offset, bytes, BLK_REQ_MAY_UNMAP, err);
}

/* A run of sectors that could not be read. Bytes 0: none. */
struct unread {
    uint64_t offset, bytes;
    struct blk_error why; /* of the first */
};

static void report_unread(struct copy_job *job, struct unread *unread)
{
    const struct blk_copy_params *p = job->params;

    if (unread->bytes && p->salvaged) {
        LOCK_SCOPE(&job->mutex);
        p->salvaged(p->opaque, unread->offset, unread->bytes, &unread->why);
    }
    blk_error_clear(&unread->why);
    unread->bytes = 0;
}

/* Reads what can be read, sector by sector; the rest is zeroes, and reported run by run. */
static void read_salvaging(struct copy_job *job, const struct chunk *chunk, uint8_t *buf)
{
    const struct blk_copy_params *p = job->params;
    struct unread unread = { .why = BLK_ERROR_INIT };

    for (uint64_t at = 0; at < chunk->bytes; at += BLK_SECTOR_BYTES) {
        uint64_t offset = p->source_offset + chunk->offset + at;
        uint64_t bytes = u64_min(BLK_SECTOR_BYTES, chunk->bytes - at);
        int ret =
            blk_pread_padded(p->source, offset, bytes, buf + at, unread.bytes ? NULL : &unread.why);
        if (ret == 0) {
            report_unread(job, &unread);
            continue;
        }
        memset(buf + at, 0, bytes);
        if (!unread.bytes)
            unread.offset = offset;
        unread.bytes += bytes;
    }
    report_unread(job, &unread);
}

static int read_source(struct copy_job *job, const struct chunk *chunk, uint8_t *buf,
                       struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    if (chunk->unreadable) {
        memset(buf, 0, chunk->bytes);
        return 0;
    }
    int ret = blk_pread_padded(p->source, p->source_offset + chunk->offset, chunk->bytes, buf, err);
    if (ret < 0 && p->salvage) {
        blk_error_clear(err);
        read_salvaging(job, chunk, buf);
        return 0;
    }
    return ret;
}

/*
 * The length of the run at the start of [buf, buf + bytes) that is all zero or all "keep", in steps
 * of `step` measured from `offset`, so that runs fall on multiples of `step` in the target. A short
 * step at either end counts as zero if all of it is: what lies beyond it is decided by itself, and
 * is a hole more often than not.
 */
static uint64_t run_length(const uint8_t *buf, uint64_t bytes, uint64_t offset, uint64_t step,
                           bool *zero)
{
    uint64_t run = u64_min(step - offset % step, bytes);

    *zero = bytes_are_zero(buf, run);
    while (run < bytes) {
        uint64_t piece = u64_min(step, bytes - run);
        if (bytes_are_zero(buf + run, piece) != *zero)
            break;
        run += piece;
    }
    return run;
}

static int write_sparse(struct copy_job *job, const struct chunk *chunk, const uint8_t *buf,
                        struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    /* Longer runs of zeroes than a chunk cannot be seen here. */
    uint64_t step = u64_min(p->sparse_bytes, CHUNK_BYTES);
    uint64_t at = 0;
    int ret = 0;

    while (at < chunk->bytes && ret == 0) {
        bool zero;
        uint64_t offset = p->target_offset + chunk->offset + at;
        uint64_t run = run_length(buf + at, chunk->bytes - at, offset, step, &zero);
        if (!zero)
            ret = blk_pwrite(p->target, offset, run, buf + at, 0, err);
        else if (!p->target_reads_zero)
            ret = zero_target(job, chunk->offset + at, run, err);
        at += run;
    }
    return ret;
}

static int write_compressed(struct copy_job *job, const struct chunk *chunk, const uint8_t *buf,
                            struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    uint64_t at = 0;
    int ret = 0;

    while (at < chunk->bytes && ret == 0) {
        uint64_t piece = u64_min(job->unit, chunk->bytes - at);
        uint64_t offset = p->target_offset + chunk->offset + at;
        if (p->sparse_bytes && bytes_are_zero(buf + at, piece))
            ret = p->target_reads_zero ? 0 : zero_target(job, chunk->offset + at, piece, err);
        else
            ret = blk_write_compressed(p->target, offset, piece, buf + at, err);
        at += piece;
    }
    return ret;
}

/* Lets the kernel copy. Returns -ENOTSUP when that is not possible, and remembers it. */
static int copy_in_kernel(struct copy_job *job, const struct chunk *chunk, struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;

    if (!p->allow_copy_range || p->compressed || p->digest || !chunk->host)
        return -ENOTSUP;
    blk_mutex_lock(&job->mutex);
    bool tried_in_vain = job->no_copy_range;
    blk_mutex_unlock(&job->mutex);
    if (tried_in_vain)
        return -ENOTSUP;

    await_turn(job, chunk);
    int ret = blk_copy_range(p->target, p->target_offset + chunk->offset, chunk->host,
                             chunk->host_offset, chunk->bytes, err);
    if (ret == -ENOTSUP) {
        blk_error_clear(err);
        LOCK_SCOPE(&job->mutex);
        job->no_copy_range = true;
    }
    return ret;
}

static int copy_chunk(struct copy_job *job, const struct chunk *chunk, uint8_t *buf,
                      struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;

    int ret = copy_in_kernel(job, chunk, err);
    if (ret != -ENOTSUP)
        return ret;
    ret = read_source(job, chunk, buf, err);
    if (ret == 0 && p->digest)
        ret = blk_digest_add(p->digest, chunk->offset, chunk->bytes, buf, err);
    if (ret < 0)
        return ret;
    await_turn(job, chunk);
    if (p->compressed)
        return write_compressed(job, chunk, buf, err);
    if (p->sparse_bytes)
        return write_sparse(job, chunk, buf, err);
    return blk_pwrite(p->target, p->target_offset + chunk->offset, chunk->bytes, buf, 0, err);
}

static int move_chunk(struct copy_job *job, const struct chunk *chunk, uint8_t *buf,
                      struct blk_error *err)
{
    struct blk_digest *digest = job->params->digest;
    if (digest && chunk->action != ACTION_COPY) {
        int ret = blk_digest_add_zeroes(digest, chunk->offset, chunk->bytes, err);
        if (ret < 0)
            return ret;
    }
    switch (chunk->action) {
    case ACTION_SKIP:
        return 0;
    case ACTION_ZERO:
        await_turn(job, chunk);
        return zero_target(job, chunk->offset, chunk->bytes, err);
    case ACTION_COPY:
        return copy_chunk(job, chunk, buf, err);
    }
    return 0;
}

/* ---- workers ---- */

static void fail_job(struct copy_job *job, int ret, const struct blk_error *err)
{
    LOCK_SCOPE(&job->mutex);
    if (job->ret == 0) {
        job->ret = ret;
        job->err = *err;
    }
    pthread_cond_broadcast(&job->turn_changed);
}

static bool has_failed(struct copy_job *job)
{
    LOCK_SCOPE(&job->mutex);
    return job->ret < 0;
}

/* Sleeps until it is the chunk's turn; a signal or a failure ends the wait. */
static void keep_to_rate(struct copy_job *job, const struct chunk *chunk)
{
    if (chunk->action != ACTION_COPY)
        return;
    while (blk_rate_pause(&job->rate, chunk->moved_before) && !blk_cancelled() && !has_failed(job))
        continue;
}

/* Counts a chunk as done and reports the progress. */
static void count_done(struct copy_job *job, const struct chunk *chunk)
{
    const struct blk_copy_params *p = job->params;

    LOCK_SCOPE(&job->mutex);
    job->done += chunk->bytes;
    if (p->remaining)
        blk_dirty_bitmap_clear(p->remaining, p->source_offset + chunk->offset, chunk->bytes);
    if (p->progress)
        p->progress(p->opaque, job->done, p->bytes);
}

/* Returns 1 with a chunk, 0 when there is nothing more to do, or -errno. */
static int take_chunk(struct copy_job *job, struct chunk *chunk, struct blk_error *err)
{
    if (blk_cancelled())
        return blk_fail_why(err, ECANCELED, "stopped by a signal", "copying to '%s'",
                            job->params->target->name);
    LOCK_SCOPE(&job->mutex);
    return job->ret < 0 ? 0 : next_chunk(job, chunk, err);
}

static void *copy_work(void *argument)
{
    struct copy_job *job = argument;
    struct blk_error err = BLK_ERROR_INIT;
    struct chunk chunk = { .bytes = 0 };
    int ret;

    blk_mutex_lock(&job->mutex);
    uint8_t *buf = job->buffers[--job->free_buffers];
    blk_mutex_unlock(&job->mutex);
    while ((ret = take_chunk(job, &chunk, &err)) > 0) {
        keep_to_rate(job, &chunk);
        ret = move_chunk(job, &chunk, buf, &err);
        if (ret < 0)
            break;
        end_turn(job, &chunk);
        count_done(job, &chunk);
    }
    if (ret < 0)
        fail_job(job, ret, &err);
    free(buf);
    return NULL;
}

/*
 * A buffer for each worker, before anything is written. Where memory is short there are fewer; the
 * first one must be there.
 */
static int allocate_buffers(struct copy_job *job, struct blk_error *err)
{
    unsigned wanted = job->params->workers > 1 ? job->params->workers : 1;

    job->buffers = blk_calloc(wanted, sizeof(*job->buffers));
    while (job->buffers && job->free_buffers < wanted) {
        uint8_t *buf = blk_buffer_alloc(u64_max(CHUNK_BYTES, job->unit));
        if (!buf)
            break;
        job->buffers[job->free_buffers++] = buf;
    }
    if (job->free_buffers)
        return 0;
    free(job->buffers);
    return blk_fail(err, ENOMEM, "copying to '%s'", job->params->target->name);
}

/* The cluster size of a target that is written compressed. */
static int find_unit(const struct blk_copy_params *params, uint64_t *unit, struct blk_error *err)
{
    struct blk_node *format = blk_skip_filters(params->target);

    *unit = 1;
    if (!params->compressed)
        return 0;
    int ret =
        blk_require(format, BLK_COMPRESSION, err, "compressing to '%s'", params->target->name);
    if (ret == 0)
        ret = blk_child_cluster_bytes(format, unit, err);
    ASSERT(ret < 0 || *unit);
    return ret;
}

int blk_copy_run(const struct blk_copy_params *params, struct blk_error *err)
{
    struct copy_job job = {
        .params = params,
        .marked = { .bitmap = params->mask, .end = params->bytes },
        .rate = { params->bytes_per_second, blk_now_ns() },
        .why = BLK_ERROR_INIT,
    };
    int ret = find_unit(params, &job.unit, err);
    if (ret == 0)
        ret = allocate_buffers(&job, err);
    if (ret < 0)
        return ret;
    blk_mutex_init(&job.mutex);
    pthread_cond_init(&job.turn_changed, NULL);

    blk_run_workers(job.free_buffers, copy_work, &job);
    /* Threads that could not be started left theirs. */
    while (job.free_buffers)
        free(job.buffers[--job.free_buffers]);
    free(job.buffers);
    if (params->moved)
        *params->moved += job.moved;

    pthread_cond_destroy(&job.turn_changed);
    blk_mutex_destroy(&job.mutex);
    if (job.ret < 0 && err)
        *err = job.err;
    return job.ret;
}
