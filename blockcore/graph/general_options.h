/* SPDX-License-Identifier: MIT */
/*
 * The options that every node has, whatever its driver, and that say how its requests are treated:
 * discard and detect-zeroes. They can change while a node is open.
 */
#ifndef BLOCKCORE_GRAPH_GENERAL_OPTIONS_H
#define BLOCKCORE_GRAPH_GENERAL_OPTIONS_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/options.h"

struct blk_general_options {
    bool unmap; /* discard=unmap: BLK_UNMAP of the node's flags */
    enum blk_detect_zeroes detect_zeroes;
};

/*
 * Replaces in `general` what the options give, and marks it as used. -EINVAL for values that are
 * not known and for detect-zeroes=unmap without discard=unmap.
 */
int blk_general_options_read(struct blk_options *options, struct blk_general_options *general,
                             struct blk_error *err);

/* "unmap" or "on", "ignore" or "off". -EINVAL. */
int blk_discard_parse(const char *text, bool *unmap, struct blk_error *err);

#endif
