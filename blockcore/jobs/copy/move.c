/* SPDX-License-Identifier: MIT */
/*
 * Moving one chunk, the cheapest true way.
 *
 * Whatever takes time is done without waiting for others: reading, packing, looking for zeroes,
 * and writing data to places that were chosen in order. Only what decides where something comes to
 * lie in the target's file has to be the chunk's turn (turns.c).
 */
#include <errno.h>
#include <string.h>

#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/pieces.h"
#include "blockcore/jobs/copy/job.h"
#include "blockcore/jobs/digest.h"

/* Refusals in a row after which the kernel is not asked any more. */
#define MANY_REFUSALS 4

/* Instead of a length: the cluster is zeroes, or is written as data. */
#define PACKED_ZERO UINT32_MAX
#define PACKED_DATA 0

static int zero_target(const struct copy_job *job, uint64_t offset, uint64_t bytes,
                       struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    if (p->target_reads_zero)
        return 0;
    return blk_write_zeroes(p->target, p->target_offset + offset, bytes, BLK_REQ_MAY_UNMAP, err);
}

static int write_target(const struct copy_job *job, uint64_t offset, uint64_t bytes,
                        const uint8_t *buf, struct blk_error *err)
{
    return blk_pwrite(job->params->target, job->params->target_offset + offset, bytes, buf, 0, err);
}

/* ---- data and zeroes ---- */

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

/* Cuts what was read into runs that are zeroes and data by turns. */
static void find_runs(const struct copy_job *job, uint64_t offset, uint64_t bytes,
                      struct copy_worker *worker)
{
    const struct blk_copy_params *p = job->params;
    /* Longer runs of zeroes than what was read cannot be seen here. */
    uint64_t step = p->sparse_bytes ? u64_min(p->sparse_bytes, COPY_CHUNK_BYTES) : bytes;

    worker->run_count = 0;
    worker->first_is_zero = false;
    for (uint64_t at = 0; at < bytes; worker->run_count++) {
        bool zero = false;
        uint64_t run = bytes;
        if (p->sparse_bytes)
            run = run_length(worker->buf + at, bytes - at, p->target_offset + offset + at, step,
                             &zero);
        if (!at)
            worker->first_is_zero = zero;
        worker->runs[worker->run_count] = (uint32_t)run;
        at += run;
    }
}

/* What is done with the data among the runs. */
typedef int data_fn(const struct copy_job *job, uint64_t offset, uint64_t bytes, const uint8_t *buf,
                    struct blk_error *err);

static int place(const struct copy_job *job, uint64_t offset, uint64_t bytes, const uint8_t *buf,
                 struct blk_error *err)
{
    (void)buf;
    return blk_place(job->params->target, job->params->target_offset + offset, bytes, err);
}

/* Goes through the runs of what worker->buf has from `offset` on; zeroes are written if asked. */
static int for_runs(const struct copy_job *job, uint64_t offset, const struct copy_worker *worker,
                    data_fn *data, bool zeroes, struct blk_error *err)
{
    uint64_t at = 0;
    int ret = 0;

    for (unsigned i = 0; i < worker->run_count && ret == 0; at += worker->runs[i++]) {
        bool zero = (i % 2 == 0) == worker->first_is_zero;
        if (!zero)
            ret = data(job, offset + at, worker->runs[i], worker->buf + at, err);
        else if (zeroes)
            ret = zero_target(job, offset + at, worker->runs[i], err);
    }
    return ret;
}

/* Writes what worker->buf has of the chunk from `at` on. */
static int write_sparse(struct copy_job *job, struct copy_chunk *chunk, uint64_t at, uint64_t bytes,
                        struct copy_worker *worker, struct blk_error *err)
{
    uint64_t offset = chunk->offset + at;
    find_runs(job, offset, bytes, worker);

    copy_await_turn(job, chunk);
    if (job->order != BLK_ORDER_PLACES)
        return for_runs(job, offset, worker, write_target, true, err);
    int ret = for_runs(job, offset, worker, place, true, err);
    if (ret == 0 && at + bytes == chunk->bytes)
        copy_end_turn(job, chunk);
    return ret < 0 ? ret : for_runs(job, offset, worker, write_target, false, err);
}

static int copy_by_reading(struct copy_job *job, struct copy_chunk *chunk,
                           struct copy_worker *worker, struct blk_error *err)
{
    struct blk_digest *digest = job->params->digest;
    int ret = 0;

    for (uint64_t at = 0, bytes; at < chunk->bytes && ret == 0; at += bytes) {
        bytes = u64_min(chunk->bytes - at, COPY_CHUNK_BYTES);
        ret = copy_read(job, chunk, at, bytes, worker->buf, err);
        if (ret == 0 && digest)
            ret = blk_digest_add(digest, chunk->offset + at, bytes, worker->buf, err);
        if (ret == 0)
            ret = write_sparse(job, chunk, at, bytes, worker, err);
    }
    return ret;
}

/* ---- without reading ---- */

/* Whether the kernel may share the chunk's blocks. Asking leaves no traces; trying might. */
static bool can_share(struct copy_job *job, const struct copy_chunk *chunk)
{
    const struct blk_copy_params *p = job->params;
    ASSERT_LOCKED(&job->mutex);
    if ((chunk->host_offset | (p->target_offset + chunk->offset) | chunk->bytes) % BLK_SHARE_BYTES)
        return false;
    if (job->asked_host != chunk->host) {
        job->asked_host = chunk->host;
        job->can_share = blk_can_share(p->target, chunk->host);
    }
    return job->can_share;
}

static bool may_be_blind(struct copy_job *job, const struct copy_chunk *chunk)
{
    if (!copy_is_blind(job->params) || !chunk->host)
        return false;
    LOCK_SCOPE(&job->mutex);
    return job->refused < MANY_REFUSALS && (job->params->allow_copy_range || can_share(job, chunk));
}

/* Lets the kernel copy, or share blocks. -ENOTSUP when that is not possible here. */
static int copy_blindly(struct copy_job *job, const struct copy_chunk *chunk, struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    const struct blk_copy_from from = {
        .node = chunk->host,
        .offset = chunk->host_offset,
        .share = !p->allow_copy_range,
    };
    if (!may_be_blind(job, chunk))
        return -ENOTSUP;
    copy_await_turn(job, chunk);
    int ret = blk_copy_range(p->target, p->target_offset + chunk->offset, &from, chunk->bytes, err);
    if (ret == -ENOTSUP)
        blk_error_clear(err);
    LOCK_SCOPE(&job->mutex);
    job->refused = ret == -ENOTSUP ? job->refused + 1 : 0;
    job->blind_works = ret == 0;
    return ret;
}

/* ---- packed ---- */

/* Reads the whole chunk; behind its end the last cluster is zeroes. */
static int read_chunk(struct copy_job *job, const struct copy_chunk *chunk,
                      const struct copy_worker *worker, struct blk_error *err)
{
    uint64_t padding = round_up(chunk->bytes, job->cluster) - chunk->bytes;
    memset(worker->buf + chunk->bytes, 0, padding);
    return copy_read(job, chunk, 0, chunk->bytes, worker->buf, err);
}

/* Gets the content of the i-th cluster, and its piece where the source has that. */
static int read_packed(struct copy_job *job, const struct copy_chunk *chunk,
                       const struct copy_worker *worker, unsigned i, uint8_t *piece,
                       struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    uint64_t at = i * job->cluster, bytes = u64_min(job->cluster, chunk->bytes - at);
    uint64_t offset = p->source_offset + chunk->offset + at;
    struct blk_piece_read read = {
        .kind = p->target->pieces,
        .cluster = worker->buf + at,
        .piece = piece,
    };

    memset(read.cluster + bytes, 0, job->cluster - bytes);
    if (bytes < job->cluster || offset % job->cluster || chunk->unreadable)
        return copy_read(job, chunk, at, bytes, read.cluster, err);
    int ret = blk_read_piece(p->source, offset, &read, err);
    if (ret < 0 && p->salvage) {
        blk_error_clear(err);
        return copy_read(job, chunk, at, bytes, read.cluster, err);
    }
    worker->lengths[i] = read.length;
    return ret;
}

/* Fills the worker's buffers: content, lengths, and pieces one behind the other. */
static int pack(struct copy_job *job, const struct copy_chunk *chunk,
                const struct copy_worker *worker, struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    unsigned count = (unsigned)div_round_up(chunk->bytes, job->cluster);
    uint8_t *piece = worker->packed;
    int ret = job->source_has_pieces ? 0 : read_chunk(job, chunk, worker, err);

    for (unsigned i = 0; i < count && ret == 0; i++) {
        const uint8_t *cluster = worker->buf + i * job->cluster;
        uint32_t *length = &worker->lengths[i];
        *length = PACKED_DATA;
        if (job->source_has_pieces)
            ret = read_packed(job, chunk, worker, i, piece, err);
        if (ret < 0)
            return ret;
        if (p->sparse_bytes && bytes_are_zero(cluster, job->cluster)) {
            *length = PACKED_ZERO;
            continue;
        }
        if (*length == PACKED_DATA)
            ret = blk_compress(p->target, cluster, piece, length, err);
        piece += *length;
    }
    if (ret == 0 && p->digest)
        ret = blk_digest_add(p->digest, chunk->offset, chunk->bytes, worker->buf, err);
    return ret;
}

/* How many clusters from `i` on are pieces. */
static unsigned pieces_in_row(const struct copy_worker *worker, unsigned i, unsigned count)
{
    unsigned end = i;
    while (end < count && worker->lengths[end] != PACKED_ZERO &&
           worker->lengths[end] != PACKED_DATA)
        end++;
    return end - i;
}

/* In the chunk's turn: writes pieces and zeroes, and places data. */
static int write_pieces(struct copy_job *job, const struct copy_chunk *chunk,
                        const struct copy_worker *worker, struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    unsigned count = (unsigned)div_round_up(chunk->bytes, job->cluster);
    const uint8_t *piece = worker->packed;
    int ret = 0;

    for (unsigned i = 0; i < count && ret == 0;) {
        uint64_t at = i * job->cluster, bytes = u64_min(job->cluster, chunk->bytes - at);
        uint64_t offset = chunk->offset + at;
        const struct blk_pieces row = { piece, worker->lengths + i,
                                        pieces_in_row(worker, i, count) };
        if (row.count) {
            ret = blk_write_pieces(p->target, p->target_offset + offset, &row, err);
            for (unsigned end = i + row.count; i < end; i++)
                piece += worker->lengths[i];
            continue;
        }
        if (worker->lengths[i] == PACKED_ZERO)
            ret = zero_target(job, offset, bytes, err);
        else if (job->order == BLK_ORDER_PLACES)
            ret = place(job, offset, bytes, NULL, err);
        i++;
    }
    return ret;
}

static int copy_packed(struct copy_job *job, struct copy_chunk *chunk,
                       const struct copy_worker *worker, struct blk_error *err)
{
    int ret = pack(job, chunk, worker, err);
    if (ret < 0)
        return ret;
    copy_await_turn(job, chunk);
    ret = write_pieces(job, chunk, worker, err);
    if (ret == 0 && job->order == BLK_ORDER_PLACES)
        copy_end_turn(job, chunk);
    for (uint64_t at = 0, i = 0; at < chunk->bytes && ret == 0; at += job->cluster, i++)
        if (worker->lengths[i] == PACKED_DATA)
            ret = write_target(job, chunk->offset + at, u64_min(job->cluster, chunk->bytes - at),
                               worker->buf + at, err);
    return ret;
}

/* Where the target packs by itself: one cluster. */
static int copy_compressed(struct copy_job *job, const struct copy_chunk *chunk,
                           const struct copy_worker *worker, struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    int ret = copy_read(job, chunk, 0, chunk->bytes, worker->buf, err);
    if (ret == 0 && p->digest)
        ret = blk_digest_add(p->digest, chunk->offset, chunk->bytes, worker->buf, err);
    if (ret < 0)
        return ret;
    copy_await_turn(job, chunk);
    if (p->sparse_bytes && bytes_are_zero(worker->buf, chunk->bytes))
        return zero_target(job, chunk->offset, chunk->bytes, err);
    return blk_write_compressed(p->target, p->target_offset + chunk->offset, chunk->bytes,
                                worker->buf, err);
}

/* ---- a chunk ---- */

static int move_zeroes(struct copy_job *job, const struct copy_chunk *chunk, struct blk_error *err)
{
    struct blk_digest *digest = job->params->digest;
    int ret = digest ? blk_digest_add_zeroes(digest, chunk->offset, chunk->bytes, err) : 0;
    if (ret < 0)
        return ret;
    copy_await_turn(job, chunk);
    return zero_target(job, chunk->offset, chunk->bytes, err);
}

int copy_move(struct copy_job *job, struct copy_chunk *chunk, struct copy_worker *worker,
              struct blk_error *err)
{
    if (chunk->action == COPY_ZERO)
        return move_zeroes(job, chunk, err);
    if (job->pieces)
        return copy_packed(job, chunk, worker, err);
    if (job->params->compressed)
        return copy_compressed(job, chunk, worker, err);
    int ret = copy_blindly(job, chunk, err);
    return ret == -ENOTSUP ? copy_by_reading(job, chunk, worker, err) : ret;
}
