/* SPDX-License-Identifier: MIT */
/*
 * The state of ranges: what is data, what reads as zeroes, and which layer says so. `want`: enum
 * blk_want.
 */
#ifndef BLOCKCORE_GRAPH_STATUS_H
#define BLOCKCORE_GRAPH_STATUS_H

#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

/*
 * State of the longest uniform range at `offset`, at most `bytes`, in this node alone. ALLOCATED is
 * clear where its backing file shows through. Past the end: ZERO | EOF.
 */
int blk_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                     struct blk_extent *extent, struct blk_error *err);

/* What shows from `top` down to but not including `base` (NULL: the whole chain). */
struct blk_layers {
    struct blk_node *top;
    const struct blk_node *base;
};

static inline struct blk_layers blk_layers(struct blk_node *top, const struct blk_node *base)
{
    return (struct blk_layers){ top, base };
}

/*
 * The same for the content seen through the backing chain. ALLOCATED is clear when nothing above
 * `base` decides. extent->depth says which layer does. Past the end of `top`: ZERO | EOF.
 */
int blk_block_status_above(struct blk_layers layers, uint64_t offset, uint64_t bytes, unsigned want,
                           struct blk_extent *extent, struct blk_error *err);

/* For drivers, on their children: not counted in flight. */
int blk_child_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                           struct blk_extent *extent, struct blk_error *err);
int blk_child_block_status_above(struct blk_layers layers, uint64_t offset, uint64_t bytes,
                                 unsigned want, struct blk_extent *extent, struct blk_error *err);

#endif
