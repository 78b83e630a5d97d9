/* SPDX-License-Identifier: MIT */
/*
 * Reading: each uniform range from where it is.
 *
 * A request holds its guest range, so that no cluster it looked up is freed or replaced meanwhile.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/pieces.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/l1.h"
#include "drivers/qcow2/tables/map.h"

static int read_backing(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                        struct blk_error *err)
{
    struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    /* Behind the disk is the machine's state, which has no backing file. */
    uint64_t size = backing && offset < blk_size(node) ? blk_size(backing) : 0;
    uint64_t inside = offset < size ? u64_min(bytes, size - offset) : 0;

    memset((uint8_t *)buf + inside, 0, bytes - inside);
    if (!inside)
        return 0;
    blk_event(qcow2_file(node), BLK_EVENT_READ_BACKING_AIO);
    return blk_child_pread(backing, offset, inside, buf, err);
}

/* Where a file was cut off, it would read as zeroes that nobody wrote. */
static int read_data(struct blk_node *node, const struct qcow2_mapping *mapping, void *buf,
                     struct blk_error *err)
{
    struct blk_node *data = qcow2_data(node);
    int ret = qcow2_check_cut_off(node, data, mapping->host_offset, mapping->bytes, "data", err);
    if (ret < 0)
        return ret;
    blk_event(qcow2_file(node), BLK_EVENT_READ_AIO);
    return blk_child_pread(data, mapping->host_offset, mapping->bytes, buf, err);
}

/*
 * Reads a compressed piece and unpacks it. `piece` has room for mapping->compressed_bytes,
 * `cluster` for a cluster; *length as of qcow2_decompress_cluster(). As what is known of its
 * length is in sectors, a piece may end past the end of the file: it is good if it can be unpacked
 * from the bytes that are there. -EIO if it cannot.
 */
static int unpack(struct blk_node *node, const struct qcow2_mapping *mapping, uint8_t *piece,
                  void *cluster, size_t *length, struct blk_error *err)
{
    uint64_t offset = mapping->host_offset, bytes = mapping->compressed_bytes;
    uint64_t there = qcow2_bytes_there(node, qcow2_file(node), offset, bytes);

    blk_event(qcow2_file(node), BLK_EVENT_READ_COMPRESSED);
    int ret = there ? blk_child_pread(qcow2_file(node), offset, there, piece, err) : 0;
    if (ret == 0)
        ret = qcow2_decompress_cluster(qcow2_state(node), piece, there, cluster, length, err);
    if (ret != -EIO || there == bytes)
        return ret;
    blk_error_clear(err);
    return qcow2_fail_cut_short(qcow2_file(node), offset, "compressed data", err);
}

static int read_compressed(struct blk_node *node, uint64_t offset,
                           const struct qcow2_mapping *mapping, void *buf, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t in_cluster = offset & (s->cluster_bytes - 1);
    bool whole = mapping->bytes == s->cluster_bytes;
    BLK_AUTOFREE uint8_t *piece = blk_buffer_alloc(mapping->compressed_bytes);
    BLK_AUTOFREE uint8_t *cluster = whole ? NULL : blk_buffer_alloc(s->cluster_bytes);
    if (!piece || (!whole && !cluster))
        return blk_fail(err, ENOMEM, "reading a compressed cluster of '%s'", node->name);

    int ret = unpack(node, mapping, piece, whole ? buf : cluster, NULL, err);
    if (ret < 0) {
        blk_context(err, "guest offset %" PRIu64 " of '%s'", offset - in_cluster, node->name);
        return ret;
    }
    if (!whole)
        memcpy(buf, cluster + in_cluster, mapping->bytes);
    return 0;
}

static int read_mapped(struct blk_node *node, uint64_t offset, const struct qcow2_mapping *mapping,
                       void *buf, struct blk_error *err)
{
    switch (mapping->kind) {
    case QCOW2_UNALLOCATED:
    case QCOW2_UNALLOCATED_HOST:
        return read_backing(node, offset, mapping->bytes, buf, err);
    case QCOW2_ZERO:
    case QCOW2_ZERO_HOST:
        memset(buf, 0, mapping->bytes);
        return 0;
    case QCOW2_COMPRESSED:
        return read_compressed(node, offset, mapping, buf, err);
    case QCOW2_DATA:
        return read_data(node, mapping, buf, err);
    }
    return 0;
}

/*
 * How much of the range belongs to the disk or to the machine's state behind it. Between the two
 * nothing is mapped; a request that begins there is the end of the disk's last cluster.
 */
static uint64_t mapped_bytes(const struct blk_node *node, uint64_t offset, uint64_t bytes)
{
    uint64_t size = blk_size(node);
    if (offset < size)
        return u64_min(bytes, size - offset);
    return offset >= qcow2_vm_state_offset(node) ? bytes : 0;
}

int qcow2_read_held(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                    struct blk_error *err)
{
    ASSERT_RANGE_HELD(&node->ranges, offset, bytes, BLK_RANGE_READ);
    uint8_t *to = buf;

    while (bytes) {
        uint64_t mapped = mapped_bytes(node, offset, bytes);
        if (!mapped) {
            memset(to, 0, bytes);
            return 0;
        }
        struct qcow2_mapping mapping;
        int ret = qcow2_map(node, offset, mapped, &mapping, err);
        if (ret == 0)
            ret = read_mapped(node, offset, &mapping, to, err);
        if (ret < 0)
            return ret;
        offset += mapping.bytes;
        bytes -= mapping.bytes;
        to += mapping.bytes;
    }
    return 0;
}

int qcow2_is_known_zero(struct blk_node *node, uint64_t offset, uint64_t bytes, bool *zero,
                        struct blk_error *err)
{
    ASSERT_RANGE_HELD(&node->ranges, offset, bytes, BLK_RANGE_READ);
    struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    uint64_t backing_end = backing ? blk_size(backing) : node->backing_name ? UINT64_MAX : 0;
    uint64_t size = blk_size(node);

    bytes = mapped_bytes(node, offset, bytes);
    for (*zero = true; bytes && *zero;) {
        struct qcow2_mapping mapping;
        int ret = qcow2_map(node, offset, bytes, &mapping, err);
        if (ret < 0)
            return ret;
        bool nothing = mapping.kind == QCOW2_UNALLOCATED || mapping.kind == QCOW2_UNALLOCATED_HOST;
        *zero = mapping.kind == QCOW2_ZERO || mapping.kind == QCOW2_ZERO_HOST ||
                (nothing && (offset >= backing_end || offset >= size));
        offset += mapping.bytes;
        bytes -= mapping.bytes;
    }
    return 0;
}

int qcow2_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                struct blk_error *err)
{
    struct blk_range range;
    blk_range_take_read(&node->ranges, &range, offset, bytes, 1);
    int ret = qcow2_read_held(node, offset, bytes, buf, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

/* ---- pieces as they are ---- */

/* The content as the layers below have it, or as it reads. */
static int read_no_piece(struct blk_node *node, uint64_t offset,
                         const struct qcow2_mapping *mapping, struct blk_piece_read *read,
                         struct blk_error *err)
{
    struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    uint64_t bytes = read->kind.cluster_bytes;

    if (mapping->kind == QCOW2_UNALLOCATED && mapping->bytes == bytes && backing &&
        range_within(offset, bytes, blk_size(backing))) {
        blk_event(qcow2_file(node), BLK_EVENT_READ_BACKING_AIO);
        return blk_child_read_piece(backing, offset, read, err);
    }
    return qcow2_read_held(node, offset, bytes, read->cluster, err);
}

static int read_piece_held(struct blk_node *node, uint64_t offset, struct blk_piece_read *read,
                           struct blk_error *err)
{
    struct qcow2_mapping mapping;
    size_t length;

    int ret = qcow2_map(node, offset, read->kind.cluster_bytes, &mapping, err);
    if (ret < 0)
        return ret;
    bool wanted = mapping.kind == QCOW2_COMPRESSED &&
                  mapping.compressed_bytes <= read->kind.cluster_bytes + BLK_PIECE_ROOM &&
                  blk_same_pieces(node->pieces, read->kind);
    if (!wanted)
        return read_no_piece(node, offset, &mapping, read, err);
    ret = unpack(node, &mapping, read->piece, read->cluster, &length, err);
    if (ret < 0)
        blk_context(err, "guest offset %" PRIu64 " of '%s'", offset, node->name);
    else if (length < read->kind.cluster_bytes)
        read->length = (uint32_t)length;
    return ret;
}

int qcow2_read_piece(struct blk_node *node, uint64_t offset, struct blk_piece_read *read,
                     struct blk_error *err)
{
    struct blk_range range;
    blk_range_take_read(&node->ranges, &range, offset, read->kind.cluster_bytes, 1);
    int ret = read_piece_held(node, offset, read, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}
