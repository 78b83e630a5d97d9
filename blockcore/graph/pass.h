/* SPDX-License-Identifier: MIT */
/*
 * For filters: operations that leave all to the file child. They fit into the driver's table as
 * they are (driver.h has their contracts).
 */
#ifndef BLOCKCORE_GRAPH_PASS_H
#define BLOCKCORE_GRAPH_PASS_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

/*
 * The range of the file child at the same offset. A filter that passes writes on with their flags
 * says supports_fua.
 */
int blk_pass_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                   struct blk_error *err);
int blk_pass_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                    unsigned flags, struct blk_error *err);
int blk_pass_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                          struct blk_error *err);
int blk_pass_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);
int blk_pass_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                              const void *buf, struct blk_error *err);

/* The range is what the file child has there. */
int blk_pass_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                          struct blk_extent *extent, struct blk_error *err);

/* The filter is as large as its file child afterwards. */
int blk_pass_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                      struct blk_error *err);

#endif
