/* SPDX-License-Identifier: MIT */
/*
 * What a format may have or lack, and the words for the lack: the one place where a command can ask
 * before it begins, and that says the same wherever something turns out to be missing.
 *
 * All ask about the node itself: of an image, callers skip its filters first (blk_skip_filters()).
 */
#ifndef BLOCKCORE_GRAPH_FEATURE_H
#define BLOCKCORE_GRAPH_FEATURE_H

#include <stdbool.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/node.h"

enum blk_feature {
    BLK_BACKING,     /* shows a backing file where it has nothing itself */
    BLK_COMPRESSION, /* of single clusters */
    BLK_SNAPSHOTS,   /* internal ones */
    BLK_BITMAPS,     /* keeps dirty bitmaps */
    BLK_IDENTITY,    /* says which backup it is (identity.h) */
    BLK_CHECKS,
    BLK_AMENDING,    /* options that can be changed */
    BLK_EMPTYING,    /* drops its data, so that the backing file shows */
    BLK_MEASURING,   /* the size of a new image can be told */
    BLK_BREAKPOINTS, /* requests can be stopped (blkdebug) */
};

bool blk_driver_supports(const struct blk_driver *driver, enum blk_feature feature);
bool blk_supports(const struct blk_node *node, enum blk_feature feature);

/* 0, or -ENOTSUP: "<what>: format 'raw' has no ...". `what` says what needs the feature. */
int blk_driver_require(const struct blk_driver *driver, enum blk_feature feature,
                       struct blk_error *err, const char *what, ...) BLK_PRINTF(4, 5);
int blk_require(const struct blk_node *node, enum blk_feature feature, struct blk_error *err,
                const char *what, ...) BLK_PRINTF(4, 5);

/* ---- what a node is ---- */

/* The name of its driver, as for -f. */
const char *blk_format_name(const struct blk_node *node);
enum blk_kind blk_kind_of(const struct blk_node *node);

#endif
