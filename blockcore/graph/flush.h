/* SPDX-License-Identifier: MIT */
/* Flushing a node: flush.c says what its two levels are. */
#ifndef BLOCKCORE_GRAPH_FLUSH_H
#define BLOCKCORE_GRAPH_FLUSH_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

/*
 * Makes all completed writes survive the death of this process and, unless the cache mode is
 * unsafe, of the machine. A failure is permanent for the node: every later flush returns it too.
 */
int blk_flush(struct blk_node *node, struct blk_error *err);

/* For drivers, on their children: not counted in flight. */
int blk_child_flush(struct blk_node *node, struct blk_error *err);

#endif
