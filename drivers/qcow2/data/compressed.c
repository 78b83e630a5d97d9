/* SPDX-License-Identifier: MIT */
/*
 * Writing compressed clusters.
 *
 * A piece follows the previous one, so several share a host cluster and even a sector; each counts
 * in every cluster that it touches. Packing into a shared sector rewrites a neighbour's bytes
 * unchanged. Clusters that do not get smaller are written as they are.
 *
 * Pieces of clusters in a row are placed together, written by one request as far as they lie one
 * behind the other, and then linked.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/frees.h"
#include "drivers/qcow2/tables/map.h"
#include "drivers/qcow2/tables/metadata.h"
#include "drivers/qcow2/tables/refcount.h"

/* The entry for a piece of `bytes` at `offset`. */
static uint64_t compressed_entry(const struct qcow2_state *s, uint64_t offset, uint64_t bytes)
{
    uint64_t further = (offset + bytes - 1) / BLK_SECTOR_BYTES - offset / BLK_SECTOR_BYTES;
    return offset | further << qcow2_compressed_shift(s->cluster_bits) | QCOW2_ENTRY_COMPRESSED;
}

static int link_piece(struct blk_node *node, uint64_t guest, uint64_t offset, uint64_t bytes,
                      struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    struct qcow2_entry entry = { .entry = compressed_entry(s, offset, bytes) };
    struct qcow2_table *slice;
    uint32_t index;

    blk_event(qcow2_file(node), BLK_EVENT_L2_UPDATE_COMPRESSED);
    int ret = qcow2_slice_write(node, guest, &slice, &index, err);
    return ret < 0 ? ret : qcow2_slice_set(node, slice, index, entry, QCOW2_FREE_OTHER, err);
}

/* Gives back the places of the pieces [from, end). */
static void unplace(struct blk_node *node, const uint64_t *offsets, const struct blk_pieces *pieces,
                    unsigned from, unsigned end)
{
    ASSERT_LOCKED(&qcow2_state(node)->lock);
    for (unsigned i = from; i < end; i++)
        qcow2_refcount_decrease(node, offsets[i], pieces->lengths[i], NULL);
}

static int place_pieces(struct blk_node *node, const struct blk_pieces *pieces, uint64_t *offsets,
                        struct blk_error *err)
{
    QCOW2_LOCK_SCOPE(qcow2_state(node));
    int ret = qcow2_metadata_load(node, err);
    for (unsigned i = 0; i < pieces->count && ret == 0; i++) {
        ret = qcow2_alloc_compressed(node, pieces->lengths[i], &offsets[i], err);
        if (ret < 0)
            unplace(node, offsets, pieces, 0, i);
    }
    return ret;
}

/* Writes the bytes of all pieces to their places. */
static int put_pieces(struct blk_node *node, const struct blk_pieces *pieces,
                      const uint64_t *offsets, struct blk_error *err)
{
    const uint8_t *from = pieces->data;
    int ret = 0;

    for (unsigned i = 0; i < pieces->count && ret == 0;) {
        uint64_t start = offsets[i], bytes = 0;
        do
            bytes += pieces->lengths[i++];
        while (i < pieces->count && offsets[i] == start + bytes);
        blk_event(qcow2_file(node), BLK_EVENT_WRITE_COMPRESSED);
        ret = blk_child_pwrite(qcow2_file(node), start, bytes, from, 0, err);
        from += bytes;
    }
    return ret;
}

/* Places, writes and links pieces; the guest clusters are held. */
static int write_pieces_held(struct blk_node *node, uint64_t guest, const struct blk_pieces *pieces,
                             uint64_t *offsets, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_RANGE_HELD(&node->ranges, guest, pieces->count * (uint64_t)s->cluster_bytes,
                      BLK_RANGE_EXCLUSIVE);

    int ret = place_pieces(node, pieces, offsets, err);
    if (ret < 0)
        return ret;
    ret = put_pieces(node, pieces, offsets, err);
    QCOW2_LOCK_SCOPE(s);
    if (ret < 0)
        unplace(node, offsets, pieces, 0, pieces->count);
    for (unsigned i = 0; i < pieces->count && ret == 0; i++)
        ret = link_piece(node, guest + i * (uint64_t)s->cluster_bytes, offsets[i],
                         pieces->lengths[i], err);
    return ret;
}

int qcow2_write_pieces(struct blk_node *node, uint64_t offset, const struct blk_pieces *pieces,
                       struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    int ret = qcow2_check_poison(node, err);
    if (ret == 0)
        ret = qcow2_commit_if_full(node, err);
    if (ret < 0)
        return ret;
    BLK_AUTOFREE uint64_t *offsets = blk_xcalloc(pieces->count, sizeof(*offsets));

    struct blk_range range;
    blk_range_take(&node->ranges, &range, offset, pieces->count * (uint64_t)s->cluster_bytes,
                   s->cluster_bytes);
    ret = write_pieces_held(node, offset, pieces, offsets, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

int qcow2_compress(struct blk_node *node, const void *cluster, void *piece, uint32_t *length,
                   struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    size_t bytes = 0;

    int ret = qcow2_compress_cluster(s, cluster, piece, s->cluster_bytes - 1, &bytes, err);
    if (ret == -ENOSPC) {
        blk_error_clear(err);
        bytes = 0;
        ret = 0;
    }
    *length = (uint32_t)bytes;
    return ret;
}

static int write_cluster(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                         struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    BLK_AUTOFREE uint8_t *padded = NULL;
    BLK_AUTOFREE uint8_t *piece = malloc(s->cluster_bytes);

    if (bytes < s->cluster_bytes)
        padded = calloc(1, s->cluster_bytes);
    if (!piece || (bytes < s->cluster_bytes && !padded))
        return blk_fail(err, ENOMEM, "compressing a cluster of '%s'", node->name);
    if (padded)
        memcpy(padded, buf, bytes);

    uint32_t length;
    int ret = qcow2_compress(node, padded ? padded : buf, piece, &length, err);
    if (ret < 0)
        return ret;
    if (!length)
        return qcow2_pwrite(node, offset, bytes, buf, 0, err);
    const struct blk_pieces one = { .data = piece, .lengths = &length, .count = 1 };
    return qcow2_write_pieces(node, offset, &one, err);
}

int qcow2_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                           struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    const uint8_t *from = buf;
    int ret = qcow2_check_poison(node, err);

    if (ret == 0 && s->data_file)
        ret = blk_fail_why(err, ENOTSUP, "an external data file does not support compression",
                           "compressed write to '%s'", node->name);
    /* Less than a cluster only at the end of the image: the rest of it would be lost otherwise. */
    bool ends_inside = (offset + bytes) % s->cluster_bytes && offset + bytes != blk_size(node);
    if (ret == 0 && (offset % s->cluster_bytes || ends_inside))
        ret = blk_fail_why(err, EINVAL, "it must be of whole clusters", "compressed write to '%s'",
                           node->name);
    while (bytes && ret == 0) {
        uint64_t piece = u64_min(bytes, s->cluster_bytes);
        ret = write_cluster(node, offset, piece, from, err);
        offset += piece;
        from += piece;
        bytes -= piece;
    }
    return ret;
}
