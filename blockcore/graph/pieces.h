/* SPDX-License-Identifier: MIT */
/*
 * Compressed clusters, and the order of writes: what lets many threads fill an image that still is
 * the same file each time. Packing, unpacking and writing data need no order; choosing a place
 * does.
 *
 * As in io.h, blk_*() is for users of a graph and blk_child_*() for drivers, on their children.
 */
#ifndef BLOCKCORE_GRAPH_PIECES_H
#define BLOCKCORE_GRAPH_PIECES_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

/* One cluster, compressed; offset cluster aligned. -ENOTSUP when the format cannot. */
int blk_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                         struct blk_error *err);
int blk_child_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                               const void *buf, struct blk_error *err);

/* Whether the two that follow can be used. */
bool blk_has_pieces(const struct blk_node *node);
/* Whether pieces of one kind can be written to a node of the other as they are. */
bool blk_same_pieces(struct blk_piece_kind a, struct blk_piece_kind b);

/*
 * Packs a cluster of node->pieces into `piece`, which has room for one. *length: of the piece; 0:
 * it does not get smaller, and has to be written as data. Touches nothing of the image.
 */
int blk_compress(struct blk_node *node, const void *cluster, void *piece, uint32_t *length,
                 struct blk_error *err);

/* Writes pieces that blk_compress() made, or that were read from an image of the same kind. */
int blk_write_pieces(struct blk_node *node, uint64_t offset, const struct blk_pieces *pieces,
                     struct blk_error *err);

/*
 * Reads the cluster at `offset`, which is aligned to it; zeroes past the end. Where the layer that
 * has the content has it as a piece of the wanted kind, that comes too: whole, without what follows
 * it in its last sector, and proven to be good by having been unpacked.
 */
int blk_read_piece(struct blk_node *node, uint64_t offset, struct blk_piece_read *read,
                   struct blk_error *err);
int blk_child_read_piece(struct blk_node *node, uint64_t offset, struct blk_piece_read *read,
                         struct blk_error *err);

/* What writes to the node have to be ordered by so that the same content gives the same file. */
enum blk_write_order blk_write_order(const struct blk_node *node);

/*
 * With BLK_ORDER_PLACES: chooses the place of a write to the range that will follow. In memory
 * only. blk_end_places() gives back what no write has used, after a failure.
 */
int blk_place(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);
void blk_end_places(struct blk_node *node);

#endif
