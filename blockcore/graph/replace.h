/* SPDX-License-Identifier: MIT */
/*
 * Changing the edges of a graph that is in use: another node where one was.
 *
 * Requests enter at the root and are counted there alone (gate.h), so it is the root that is
 * drained, whatever edge below it changes. Nothing is opened or closed here: both can fail, and
 * belong before and after.
 */
#ifndef BLOCKCORE_GRAPH_REPLACE_H
#define BLOCKCORE_GRAPH_REPLACE_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

/* -ELOOP when an edge from `parent` to `child` would make a loop: `parent` is in child's graph. */
int blk_graph_check_loop(const struct blk_node *parent, const struct blk_node *child,
                         struct blk_error *err);

/*
 * Leads every edge of root's graph that leads to `from` to `to` instead (NULL: removes it), all of
 * them at once for all that send requests to `root`. Edges of `to`'s own graph stay: `to` may be an
 * overlay of `from`. Each edge's reference changes with it; the caller has own references to both,
 * and closes `from`. -ENOENT when no edge leads there, -ELOOP when `to` is above such an edge;
 * nothing has changed then.
 */
int blk_graph_replace_node(struct blk_node *root, struct blk_node *from, struct blk_node *to,
                           struct blk_error *err);

#endif
