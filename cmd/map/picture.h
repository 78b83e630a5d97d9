/* SPDX-License-Identifier: MIT */
/* The picture of map --output=picture. */
#ifndef CMD_MAP_PICTURE_H
#define CMD_MAP_PICTURE_H

#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/bitmap/dirty_bitmap.h"
#include "blockcore/graph/node.h"

/*
 * Draws [start, end) of the image as a map of blocks that fits the terminal; `dirty` (or NULL) is
 * shown with it. Nothing is printed on failure.
 */
int map_picture(struct blk_node *root, const struct blk_dirty_bitmap *dirty, uint64_t start,
                uint64_t end, struct blk_error *err);

#endif
