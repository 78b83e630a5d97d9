/* SPDX-License-Identifier: MIT */
/*
 * An iterator walks the block status under the job's mutex; the workers take one block of the
 * digest at a time from it, read and hash it. Runs of zeroes are added by the iterator itself.
 */
#include "blockcore/jobs/checksum.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/lock.h"
#include "blockcore/base/workers.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"

#define BLOCK BLK_DIGEST_BLOCK_BYTES

struct checksum_job {
    const struct blk_checksum_params *params;
    struct blk_digest *digest;
    uint64_t size;

    struct blk_mutex mutex; /* guards what follows */
    uint64_t next; /* everything before has been handed out; a multiple of BLOCK or the end */
    struct blk_extent extent; /* at `next`; bytes 0: unknown */
    uint64_t done;
    int ret; /* the first failure */
    struct blk_error err;
};

/* A block to be read. */
struct checksum_chunk {
    uint64_t offset, bytes;
    bool mixed; /* it begins, but does not end, in one extent: parts of it may be zero */
};

static int status_at(struct checksum_job *job, uint64_t offset, uint64_t bytes,
                     struct blk_extent *extent, struct blk_error *err)
{
    return blk_block_status_above(blk_layers(job->params->node, NULL), offset, bytes, BLK_WANT_ZERO,
                                  extent, err);
}

static void count_checksummed(struct checksum_job *job, uint64_t bytes)
{
    ASSERT_LOCKED(&job->mutex);
    job->done += bytes;
    if (job->params->progress)
        job->params->progress(job->params->opaque, job->done, job->size);
}

/* Moves on by `bytes`. */
static void advance_checksum(struct checksum_job *job, uint64_t bytes)
{
    ASSERT_LOCKED(&job->mutex);
    job->next += bytes;
    job->extent.bytes -= u64_min(bytes, job->extent.bytes);
}

/* Returns 1 with the next block to read, 0 at the end, or -errno. The mutex is held. */
static int next_checksum_chunk(struct checksum_job *job, struct checksum_chunk *chunk,
                               struct blk_error *err)
{
    ASSERT_LOCKED(&job->mutex);
    while (job->ret == 0 && job->next < job->size) {
        uint64_t left = job->size - job->next;
        int ret = job->extent.bytes ? 0 : status_at(job, job->next, left, &job->extent, err);
        if (ret < 0)
            return ret;
        if (blk_cancelled())
            return blk_fail_why(err, ECANCELED, "stopped by a signal", "reading '%s'",
                                job->params->node->name);

        bool to_end = job->extent.bytes == left;
        uint64_t whole = to_end ? left : round_down(job->extent.bytes, BLOCK);
        if (job->extent.flags & BLK_EXT_ZERO && whole) {
            ret = blk_digest_add_zeroes(job->digest, job->next, whole, err);
            if (ret < 0)
                return ret;
            advance_checksum(job, whole);
            count_checksummed(job, whole);
            continue;
        }
        *chunk = (struct checksum_chunk){ .offset = job->next, .bytes = u64_min(left, BLOCK) };
        chunk->mixed = job->extent.bytes < chunk->bytes;
        advance_checksum(job, chunk->bytes);
        return 1;
    }
    return 0;
}

/* Reads a block, leaving out what is known to be zero. */
static int read_chunk(struct checksum_job *job, const struct checksum_chunk *chunk, uint8_t *buf,
                      struct blk_error *err)
{
    struct blk_node *node = job->params->node;
    struct blk_extent extent;

    if (!chunk->mixed)
        return blk_pread(node, chunk->offset, chunk->bytes, buf, err);
    for (uint64_t at = 0; at < chunk->bytes; at += extent.bytes) {
        int ret = status_at(job, chunk->offset + at, chunk->bytes - at, &extent, err);
        if (ret == 0 && extent.flags & BLK_EXT_ZERO)
            memset(buf + at, 0, extent.bytes);
        else if (ret == 0)
            ret = blk_pread(node, chunk->offset + at, extent.bytes, buf + at, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static void fail_checksum(struct checksum_job *job, int ret, const struct blk_error *err)
{
    ASSERT_LOCKED(&job->mutex);
    if (job->ret == 0) {
        job->ret = ret;
        job->err = *err;
    }
}

static void *checksum_work(void *argument)
{
    struct checksum_job *job = argument;
    struct blk_error err = BLK_ERROR_INIT;
    struct checksum_chunk chunk = { .bytes = 0 };
    uint8_t *buf = blk_buffer_alloc(BLOCK);
    int ret = buf ? 0 : blk_fail(&err, ENOMEM, "reading '%s'", job->params->node->name);

    blk_mutex_lock(&job->mutex);
    while (ret == 0 && (ret = next_checksum_chunk(job, &chunk, &err)) > 0) {
        blk_mutex_unlock(&job->mutex);
        ret = read_chunk(job, &chunk, buf, &err);
        if (ret == 0)
            ret = blk_digest_add(job->digest, chunk.offset, chunk.bytes, buf, &err);
        blk_mutex_lock(&job->mutex);
        if (ret == 0)
            count_checksummed(job, chunk.bytes);
    }
    if (ret < 0)
        fail_checksum(job, ret, &err);
    blk_mutex_unlock(&job->mutex);
    free(buf);
    return NULL;
}

int blk_checksum(const struct blk_checksum_params *params, uint8_t digest[BLK_DIGEST_BYTES],
                 struct blk_error *err)
{
    struct checksum_job job = { .params = params, .size = blk_size(params->node) };
    int ret = blk_digest_begin(job.size, &job.digest, err);
    if (ret < 0) {
        blk_context(err, "'%s'", params->node->name);
        return ret;
    }

    blk_mutex_init(&job.mutex);
    blk_run_workers(params->workers, checksum_work, &job);
    blk_mutex_destroy(&job.mutex);
    if (job.ret < 0 && err)
        *err = job.err;
    ret = job.ret < 0 ? job.ret : blk_digest_finish(job.digest, digest, err);
    blk_digest_free(job.digest);
    return ret;
}
