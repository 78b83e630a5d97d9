/* SPDX-License-Identifier: MIT */
/*
 * Cutting the source into chunks, by its block status.
 *
 * What needs nothing in the target is passed over here and never seen by a worker: an empty disk
 * is copied by the one that asks for the first chunk. Extents of data that follow each other make
 * one chunk.
 */
#include <errno.h>

#include "blockcore/base/cancel.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/status.h"
#include "blockcore/jobs/copy/job.h"
#include "blockcore/jobs/digest.h"

/* Zeroes are cheap as holes; where they have to be written, a signal should not wait long. */
#define ZERO_CHUNK_BYTES (64 * MIB)
/* What the kernel shares or copies goes in longer pieces. */
#define BLIND_CHUNK_BYTES (32 * MIB)
/* Compressed clusters that are packed together. */
#define PACKED_CHUNK_BYTES (512 * KIB)

void copy_count_done(struct copy_job *job, uint64_t offset, uint64_t bytes)
{
    ASSERT_LOCKED(&job->mutex);
    const struct blk_copy_params *p = job->params;

    job->done += bytes;
    if (p->remaining)
        blk_dirty_bitmap_clear(p->remaining, p->source_offset + offset, bytes);
    if (p->progress)
        p->progress(p->opaque, job->done, p->bytes);
}

/* ---- looking at the source ---- */

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
            .bytes = u64_min(bytes, COPY_CHUNK_BYTES),
            .flags = BLK_EXT_DATA | BLK_EXT_ALLOCATED,
        };
}

/*
 * Finds out the extent at job->next, where it is not known; at most `bytes`. False: job->unknown
 * and job->why say why not.
 */
static bool look_at_source(struct copy_job *job, uint64_t bytes)
{
    ASSERT_LOCKED(&job->mutex);
    if (job->extent.bytes || job->unknown)
        return !job->unknown;
    job->unreadable = false;
    blk_error_clear(&job->why);
    int ret = ask_source(job, bytes, &job->why);
    if (ret < 0 && job->params->salvage)
        salvage_map(job, bytes);
    else
        job->unknown = ret;
    return !job->unknown;
}

/* Whether it is for the layers that are copied to say what is there. */
static bool is_decided(const struct blk_copy_params *p, unsigned flags)
{
    /* Zeroes past the end of a short base belong to this layer: the base need not have them. */
    return !p->only_allocated || flags & BLK_EXT_ALLOCATED || (p->base && flags & BLK_EXT_ZERO);
}

static enum copy_action action_for(const struct blk_copy_params *p, unsigned flags)
{
    if (!is_decided(p, flags))
        return COPY_SKIP;
    if (!(flags & BLK_EXT_ZERO) || p->sparse_bytes == 0)
        return COPY_DATA;
    return p->target_reads_zero ? COPY_SKIP : COPY_ZERO;
}

static struct blk_node *host_of(const struct blk_extent *extent)
{
    bool as_is = (extent->flags & BLK_EXT_OFFSET_VALID) && (extent->flags & BLK_EXT_DATA);
    return as_is ? extent->host : NULL;
}

/* ---- moving on ---- */

/* Moves on by `bytes`, of which the extent may have less. */
static void pass(struct copy_job *job, uint64_t bytes)
{
    job->next += bytes;
    if (bytes < job->extent.bytes) {
        job->extent.bytes -= bytes;
        job->extent.host_offset += bytes;
    } else {
        job->extent.bytes = 0;
    }
}

/* Passes over what the mask does not mark: it is done. Returns how far the marked range goes. */
static uint64_t pass_unmarked(struct copy_job *job)
{
    const struct blk_copy_params *p = job->params;
    uint64_t bytes = p->bytes - job->next;

    if (!p->mask || !bytes || blk_dirty_cursor_look(&job->marked, job->next, &bytes))
        return bytes;
    job->done += bytes;
    pass(job, bytes);
    if (job->next == p->bytes)
        return 0;
    blk_dirty_cursor_look(&job->marked, job->next, &bytes);
    return bytes;
}

static void report_unreadable(const struct copy_job *job, uint64_t offset, uint64_t bytes)
{
    const struct blk_copy_params *p = job->params;
    if (p->salvaged)
        p->salvaged(p->opaque, p->source_offset + offset, bytes, &job->why);
}

/* ---- chunks ---- */

static void lengthen(struct copy_job *job, struct copy_chunk *chunk, uint64_t bytes)
{
    chunk->bytes += bytes;
    pass(job, bytes);
}

/* What is cut off its end is left to the next chunk. */
static void shorten(struct copy_job *job, struct copy_chunk *chunk, uint64_t bytes)
{
    chunk->bytes -= bytes;
    job->next -= bytes;
    job->extent.bytes = 0;
}

/* Adds whatever the next bytes are: they have to be read. */
static void lengthen_as_data(struct copy_job *job, struct copy_chunk *chunk, uint64_t bytes)
{
    chunk->action = COPY_DATA;
    chunk->host = NULL;
    chunk->unreadable = false;
    lengthen(job, chunk, bytes);
}

/* Leaves the last bytes, which are a part of a cluster, to the next chunk if they can be. */
static bool leave_part_of_cluster(struct copy_job *job, struct copy_chunk *chunk, uint64_t part)
{
    if (chunk->action == COPY_DATA || chunk->bytes <= part)
        return false;
    shorten(job, chunk, part);
    return true;
}

static uint64_t most_bytes(const struct copy_job *job, const struct copy_chunk *chunk)
{
    if (chunk->action == COPY_ZERO)
        return ZERO_CHUNK_BYTES;
    if (job->params->compressed)
        return job->pieces ? u64_max(PACKED_CHUNK_BYTES, job->cluster) : job->cluster;
    if (chunk->host && job->blind_works && !job->rate.bytes_per_second)
        return BLIND_CHUNK_BYTES;
    return COPY_CHUNK_BYTES;
}

/*
 * Adds the extents that follow, as far as they can be copied with the chunk. Zeroes that are copied
 * as data stay apart from other data: the target may have its own way of finding them.
 */
static void add_extents(struct copy_job *job, struct copy_chunk *chunk, uint64_t end,
                        uint64_t marked_end)
{
    unsigned zero = job->extent.flags & BLK_EXT_ZERO;
    while (job->next < end && !job->unreadable) {
        if (!look_at_source(job, marked_end - job->next))
            return; /* it is reported in place of the next chunk */
        const struct blk_extent *extent = &job->extent;
        if (job->unreadable || action_for(job->params, extent->flags) != COPY_DATA ||
            (extent->flags & BLK_EXT_ZERO) != zero)
            return;
        bool goes_on = chunk->host && host_of(extent) == chunk->host &&
                       extent->host_offset == chunk->host_offset + chunk->bytes;
        if (chunk->host && !goes_on && copy_is_blind(job->params))
            return;
        if (!goes_on)
            chunk->host = NULL;
        lengthen(job, chunk, u64_min(extent->bytes, end - job->next));
    }
}

/* Blocks are shared as a whole: the bytes behind the last one are a chunk of their own. */
static void fit_to_block(struct copy_job *job, struct copy_chunk *chunk)
{
    uint64_t rest = chunk->bytes % BLK_SHARE_BYTES;
    if (!chunk->host || !copy_is_blind(job->params) || !rest || rest == chunk->bytes)
        return;
    shorten(job, chunk, rest);
}

/* Compressed writes are whole clusters: a chunk that ends inside one is cut or lengthened. */
static void fill_cluster(struct copy_job *job, struct copy_chunk *chunk)
{
    uint64_t part = chunk->bytes % job->cluster, left = job->params->bytes - job->next;

    if (part && left && !leave_part_of_cluster(job, chunk, part))
        lengthen_as_data(job, chunk, u64_min(job->cluster - part, left));
}

/*
 * Others are, as far as the source allows: of a cluster that is partly data, the zeroes are found by
 * the worker that has the data. Otherwise the result would depend on which of two comes first.
 */
static void try_to_fill_cluster(struct copy_job *job, struct copy_chunk *chunk, uint64_t marked_end)
{
    const struct blk_copy_params *p = job->params;
    uint64_t part = (p->target_offset + job->next) % job->cluster;

    if (!part || job->next == p->bytes || !p->sparse_bytes || (chunk->host && copy_is_blind(p)) ||
        leave_part_of_cluster(job, chunk, part))
        return;
    uint64_t end = u64_min(job->next + job->cluster - part, marked_end);
    while (job->next < end && !chunk->unreadable && look_at_source(job, end - job->next)) {
        if (job->unreadable || !is_decided(p, job->extent.flags))
            return;
        lengthen_as_data(job, chunk, u64_min(job->extent.bytes, end - job->next));
    }
}

static void cut_chunk(struct copy_job *job, struct copy_chunk *chunk, uint64_t marked)
{
    const struct blk_copy_params *p = job->params;
    uint64_t most = most_bytes(job, chunk);
    /* Chunks end on multiples of their size in the target, so that clusters are written whole. */
    uint64_t to_boundary = most - (p->target_offset + job->next) % most;
    uint64_t marked_end = job->next + marked;
    uint64_t end = job->next + u64_min(marked, to_boundary);

    lengthen(job, chunk, u64_min(job->extent.bytes, end - job->next));
    if (chunk->action == COPY_DATA && !chunk->unreadable)
        add_extents(job, chunk, end, marked_end);
    if (p->compressed) {
        fill_cluster(job, chunk);
    } else {
        fit_to_block(job, chunk);
        try_to_fill_cluster(job, chunk, marked_end);
    }
}

/* Passes over an extent that needs nothing, but for a cluster that has to be written as a whole. */
static int skip(struct copy_job *job, struct copy_chunk *chunk, struct blk_error *err)
{
    struct blk_digest *digest = job->params->digest;

    lengthen(job, chunk, job->extent.bytes);
    if (job->params->compressed)
        fill_cluster(job, chunk);
    if (chunk->action != COPY_SKIP)
        return 0;
    if (chunk->unreadable)
        report_unreadable(job, chunk->offset, chunk->bytes);
    int ret = digest ? blk_digest_add_zeroes(digest, chunk->offset, chunk->bytes, err) : 0;
    if (ret == 0)
        copy_count_done(job, chunk->offset, chunk->bytes);
    return ret;
}

static int cancelled(const struct copy_job *job, struct blk_error *err)
{
    if (!blk_cancelled())
        return 0;
    return blk_fail_why(err, ECANCELED, "stopped by a signal", "copying to '%s'",
                        job->params->target->name);
}

int copy_next_chunk(struct copy_job *job, struct copy_chunk *chunk, struct blk_error *err)
{
    ASSERT_LOCKED(&job->mutex);
    const struct blk_copy_params *p = job->params;

    do {
        int ret = cancelled(job, err);
        if (ret < 0)
            return ret;
        uint64_t marked = pass_unmarked(job);
        if (job->next == p->bytes)
            return 0;
        if (!look_at_source(job, marked)) {
            *err = job->why;
            return job->unknown;
        }
        *chunk = (struct copy_chunk){
            .offset = job->next,
            .action = action_for(p, job->extent.flags),
            .host = host_of(&job->extent),
            .host_offset = job->extent.host_offset,
            .unreadable = job->unreadable,
        };
        if (chunk->action == COPY_SKIP)
            ret = skip(job, chunk, err);
        else
            cut_chunk(job, chunk, marked);
        if (ret < 0)
            return ret;
    } while (chunk->action == COPY_SKIP);

    if (chunk->unreadable)
        report_unreadable(job, chunk->offset, chunk->bytes);
    chunk->turn = job->turns++;
    chunk->moved_before = job->moved;
    if (chunk->action == COPY_DATA)
        job->moved += chunk->bytes;
    return 1;
}
