/*
 * For filters: operations that leave all to the file child. They fit into the driver's table as
 * they are (driver.h has their contracts).
 */
#ifndef BLOCKCORE_GRAPH_PASS_H
#define BLOCKCORE_GRAPH_PASS_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

/* The range is what the file child has there. */
int blk_pass_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                          struct blk_extent *extent, struct blk_error *err);

/* The filter is as large as its file child afterwards. */
int blk_pass_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                      struct blk_error *err);

#endif
