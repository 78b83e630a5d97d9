/* SPDX-License-Identifier: MIT */
/* Whether the files that were read are still what they were. */
#ifndef CMD_COMMON_SAME_FILE_H
#define CMD_COMMON_SAME_FILE_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

/*
 * Fails with -EIO if a file of the graph has become shorter than it was when it was opened: what
 * was read past its new end were zeroes, not its content. To be called when all has been read.
 */
int check_not_shrunk(const struct blk_node *source, struct blk_error *err);

#endif
