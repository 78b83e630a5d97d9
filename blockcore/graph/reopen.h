/* SPDX-License-Identifier: MIT */
/*
 * Reopening nodes with other access, cache modes, options or backing nodes as a transaction, level
 * by level.
 */
#ifndef BLOCKCORE_GRAPH_REOPEN_H
#define BLOCKCORE_GRAPH_REOPEN_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

struct blk_options;

/* The change of one node; for drivers. */
struct blk_reopen {
    struct blk_node *node;
    unsigned flags; /* wanted */
    struct blk_cache_mode cache;
    void *driver_state;
};

/* What a node of a set is to become. */
struct blk_change {
    struct blk_node *node;
    bool writable;
    struct blk_cache_mode cache;
    /* The driver's options that get other values, marked as used when taken; NULL: none. */
    struct blk_options *options;
    /*
     * With has_backing: its backing child, NULL for none. On success the caller's reference to it
     * has passed to the graph, and `backing` is the former child, the caller's to close, or NULL.
     */
    bool has_backing;
    struct blk_node *backing;
};

/*
 * Changes several nodes in the given order: each with its file and data children (not the backing
 * chain). To writable: children first, each prepared and committed before its parent is prepared.
 * To read-only: parents first, after a flush. New options and backing children take effect last,
 * when nothing can fail any more. On failure what was switched is switched back where that is
 * possible, and the error says where it is not. Drains the nodes: one through which requests may
 * come has to be in the set. Errors in addition to those of the drivers: -EINVAL for an option that
 * cannot change, -ELOOP for a backing child that is above its node.
 */
int blk_reopen_set(struct blk_change *changes, size_t count, struct blk_error *err);

/* A set of one, with the options and the backing child that it has. */
int blk_reopen(struct blk_node *root, bool writable, struct blk_cache_mode cache,
               struct blk_error *err);

#endif
