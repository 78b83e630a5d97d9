/* SPDX-License-Identifier: MIT */
/* What every request begins and ends with, for the files that offer requests (io.c, pieces.c). */
#ifndef BLOCKCORE_GRAPH_REQUEST_H
#define BLOCKCORE_GRAPH_REQUEST_H

#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

/* -EIO where the range ends past the end of the node. `action`: "reading", "writing", ... */
int blk_check_range(const struct blk_node *node, const char *action, uint64_t offset,
                    uint64_t bytes, struct blk_error *err);
int blk_check_writable(const struct blk_node *node, struct blk_error *err);

/* What comes before every change of data: is it allowed, and do the bitmaps know of it? */
int blk_begin_change(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

/* The flags of a request as it enters the graph; writethrough: all are durable at their end. */
unsigned blk_entry_flags(const struct blk_node *node, unsigned flags);

/* After a change that must be durable, where the driver could not make it so by itself. */
int blk_finish_fua(struct blk_node *node, unsigned flags, struct blk_error *err);

/* Return `ret`, with a general message where there is none. */
int blk_read_failed(const struct blk_node *node, int ret, uint64_t offset, uint64_t bytes,
                    struct blk_error *err);
int blk_write_failed(const struct blk_node *node, int ret, const char *action, uint64_t offset,
                     uint64_t bytes, struct blk_error *err);

#endif
