/* SPDX-License-Identifier: MIT */
/* The proof that two images show the same content. */
#ifndef CMD_COMMON_SAME_CONTENT_H
#define CMD_COMMON_SAME_CONTENT_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

/*
 * Whether both images show the same content over the length of the longer one: 0, or -EIO saying
 * where they differ. What both have in common is not read.
 */
int prove_same_content(struct blk_node *source, struct blk_node *target, unsigned workers,
                       struct blk_error *err);

#endif
