/*
 * Reopening nodes with other flags or cache modes as a transaction, level by level.
 */
#ifndef BLOCKCORE_REOPEN_H
#define BLOCKCORE_REOPEN_H

#include "blockcore/error.h"
#include "blockcore/node.h"

/* The change of one node; for drivers. */
struct blk_reopen {
    struct blk_node *node;
    unsigned flags; /* wanted */
    struct blk_cache_mode cache;
    void *driver_state;
};

/*
 * Reopens `root` and its file and data children (not the backing chain) with BLK_WRITABLE set or
 * not and `cache`. To writable: children first, each prepared and committed before its parent is
 * prepared. To read-only: parents first, after a flush. On failure what was switched is switched
 * back where that is possible, and the error says where it is not. Drains the node.
 */
int blk_reopen(struct blk_node *root, bool writable, struct blk_cache_mode cache,
               struct blk_error *err);

#endif
