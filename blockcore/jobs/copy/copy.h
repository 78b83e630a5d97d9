/* SPDX-License-Identifier: MIT */
/*
 * The one engine that moves guest data: convert, backup, commit, rebase, mirror and dd.
 *
 * An iterator walks the source's block status and passes over what the target does not need; worker
 * threads take chunks of the rest and move each the cheapest true way: zero, share or copy blocks
 * inside the kernel, compress, or read and write. Memory is bounded by workers times chunk, whatever
 * the image's size.
 */
#ifndef BLOCKCORE_JOBS_COPY_COPY_H
#define BLOCKCORE_JOBS_COPY_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/bitmap/dirty_bitmap.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

struct blk_digest;

struct blk_copy_params {
    struct blk_node *source;
    uint64_t source_offset;
    struct blk_node *target;
    uint64_t target_offset;
    uint64_t bytes; /* length of the copy; what lies past the source's end reads as zeroes */

    /*
     * Copy only what the layers above `base` (not included; NULL: the whole chain) decide. The rest
     * stays untouched in the target, where its backing file shows it. Otherwise everything is
     * copied.
     */
    bool only_allocated;
    const struct blk_node *base;

    const struct blk_dirty_bitmap *mask; /* copy only what it marks (source_offset is 0); or NULL */
    uint64_t *moved; /* increased by the bytes that were read and written; or NULL */
    struct blk_dirty_bitmap *remaining; /* cleared where a whole granule was copied; or NULL */

    struct blk_digest *digest; /* gets all content, when everything is copied; or NULL */

    bool target_reads_zero;    /* what is not written is zero: zero extents are skipped */
    uint64_t sparse_bytes;     /* zeroes of at least this length become holes; 0: none do */
    bool compressed;           /* write compressed clusters */
    bool allow_copy_range;     /* let the kernel copy where it can, without looking for zeroes */
    bool share;                /* where it can only share blocks (reflinks): the same */
    bool in_order;             /* the same input gives the same file, byte for byte */
    bool salvage;              /* what cannot be read is written as zeroes and counted */
    unsigned workers;          /* at least 1 */
    uint64_t bytes_per_second; /* 0: no limit */

    blk_progress_fn *progress;
    void *opaque;
    /* A range of the source that could not be read, and the first reason; one call at a time. */
    void (*salvaged)(void *opaque, uint64_t offset, uint64_t bytes, const struct blk_error *why);
};

/*
 * Runs the copy to its end. Returns 0, -ECANCELED after a signal (blk_cancelled() says which), or
 * the first failure. Nothing is flushed: that is the close's or the caller's business.
 */
int blk_copy_run(const struct blk_copy_params *params, struct blk_error *err);

#endif
