/* SPDX-License-Identifier: MIT */
/* Requests for compressed clusters, and for places. */
#include "blockcore/graph/pieces.h"

#include <errno.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/request.h"

/* ---- writing ---- */

int blk_child_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                               const void *buf, struct blk_error *err)
{
    int ret = blk_check_writable(node, err);
    if (ret < 0 || !bytes)
        return ret;
    ret = blk_require(node, BLK_COMPRESSION, err, "compressed write to '%s'", node->name);
    if (ret < 0)
        return ret;
    ret = blk_begin_change(node, offset, bytes, err);
    if (ret < 0)
        return ret;
    ret = node->driver->data.write_compressed(node, offset, bytes, buf, err);
    blk_bitmaps_did_write(node, offset, bytes);
    return ret < 0 ? blk_write_failed(node, ret, "compressing", offset, bytes, err) : 0;
}

int blk_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                         struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_check_range(node, "compressing", offset, bytes, err);
    if (ret == 0)
        ret = blk_child_write_compressed(node, offset, bytes, buf, err);
    if (ret == 0)
        ret = blk_finish_fua(node, blk_entry_flags(node, 0), err);
    blk_gate_leave(&node->gate);
    return ret;
}

bool blk_has_pieces(const struct blk_node *node)
{
    return node->driver->data.write_pieces && node->pieces.cluster_bytes;
}

bool blk_same_pieces(struct blk_piece_kind a, struct blk_piece_kind b)
{
    return a.cluster_bytes == b.cluster_bytes && a.compression == b.compression;
}

int blk_compress(struct blk_node *node, const void *cluster, void *piece, uint32_t *length,
                 struct blk_error *err)
{
    return node->driver->data.compress(node, cluster, piece, length, err);
}

int blk_write_pieces(struct blk_node *node, uint64_t offset, const struct blk_pieces *pieces,
                     struct blk_error *err)
{
    uint64_t end = offset + (uint64_t)pieces->count * node->pieces.cluster_bytes;
    uint64_t bytes = u64_min(end, blk_size(node)) - offset; /* the last may reach past the end */

    blk_gate_enter(&node->gate);
    int ret = blk_check_range(node, "compressing", offset, bytes, err);
    if (ret == 0)
        ret = blk_begin_change(node, offset, bytes, err);
    if (ret == 0) {
        ret = node->driver->data.write_pieces(node, offset, pieces, err);
        blk_bitmaps_did_write(node, offset, bytes);
        if (ret < 0)
            blk_write_failed(node, ret, "compressing", offset, bytes, err);
    }
    if (ret == 0)
        ret = blk_finish_fua(node, blk_entry_flags(node, 0), err);
    blk_gate_leave(&node->gate);
    return ret;
}

/* ---- reading ---- */

int blk_child_read_piece(struct blk_node *node, uint64_t offset, struct blk_piece_read *read,
                         struct blk_error *err)
{
    uint64_t bytes = read->kind.cluster_bytes;
    read->length = 0;
    if (!node->driver->data.read_piece || offset + bytes > blk_size(node))
        return blk_child_pread(node, offset, bytes, read->cluster, err);
    int ret = node->driver->data.read_piece(node, offset, read, err);
    return ret < 0 ? blk_read_failed(node, ret, offset, bytes, err) : 0;
}

int blk_read_piece(struct blk_node *node, uint64_t offset, struct blk_piece_read *read,
                   struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_child_read_piece(node, offset, read, err);
    blk_gate_leave(&node->gate);
    return ret;
}

/* ---- order ---- */

/* Down through what keeps offsets, or changes them by a constant, to what decides. */
static const struct blk_node *decides_places(const struct blk_node *node)
{
    while (node->driver->fixed_places && blk_file(node))
        node = blk_file(node);
    return node;
}

enum blk_write_order blk_write_order(const struct blk_node *node)
{
    if (node->driver->data.place)
        return BLK_ORDER_PLACES;
    return decides_places(node)->driver->fixed_places ? BLK_ORDER_NONE : BLK_ORDER_WRITES;
}

int blk_place(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_check_range(node, "writing", offset, bytes, err);
    if (ret == 0)
        ret = blk_check_writable(node, err);
    if (ret == 0)
        ret = node->driver->data.place(node, offset, bytes, err);
    if (ret < 0)
        blk_write_failed(node, ret, "writing", offset, bytes, err);
    blk_gate_leave(&node->gate);
    return ret;
}

void blk_end_places(struct blk_node *node)
{
    blk_gate_enter(&node->gate);
    node->driver->data.end_places(node);
    blk_gate_leave(&node->gate);
}
