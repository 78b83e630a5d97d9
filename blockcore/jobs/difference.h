/* SPDX-License-Identifier: MIT */
/*
 * Finding out where two graphs show different content.
 *
 * Only what can differ is read: not what both know to be zero, and not what both get from the same
 * image further down their chains (an image that was opened twice is recognised by its files).
 */
#ifndef BLOCKCORE_JOBS_DIFFERENCE_H
#define BLOCKCORE_JOBS_DIFFERENCE_H

#include "blockcore/base/error.h"
#include "blockcore/bitmap/dirty_bitmap.h"
#include "blockcore/graph/node.h"
#include "blockcore/jobs/copy/copy.h"

struct blk_difference_params {
    struct blk_node *first, *second; /* NULL: zeroes, as past the end of the shorter one */
    uint64_t bytes;                  /* the range is [0, bytes) */
    struct blk_node *behind;         /* look only where its backing file shows; NULL: everywhere */
    const struct blk_dirty_bitmap *mask; /* look only where it is dirty; NULL: everywhere */
    unsigned workers;                    /* at least 1 */
    blk_progress_fn *progress;           /* or NULL */
    void *opaque;
};

/*
 * Marks in `marks`, which covers `bytes`, each granule of which a byte differs (or, with `behind`,
 * a byte that was looked at). Returns 0, -ECANCELED after a signal, or the first failure.
 */
int blk_difference_mark(const struct blk_difference_params *params, struct blk_dirty_bitmap *marks,
                        struct blk_error *err);

/*
 * Whether they differ: 0 with *differs and the offset of the first MiB in which they do, or as
 * blk_difference_mark().
 */
int blk_difference_find(const struct blk_difference_params *params, bool *differs, uint64_t *offset,
                        struct blk_error *err);

#endif
