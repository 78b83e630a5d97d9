/* SPDX-License-Identifier: MIT */
/*
 * The compress filter: what is written through it is written compressed. It is how a caller that
 * writes plain data (nbd, a convert into an existing target) fills a compressed image.
 *
 * Requests keep to whole clusters of the format below, so that blockcore widens smaller writes by
 * reading what surrounds them. A write that finds its cluster allocated replaces it.
 */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/bytes.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/ops.h"
#include "blockcore/graph/pass.h"
#include "blockcore/graph/pieces.h"
#include "drivers/drivers.h"

static int refuse_to_compress(const struct blk_node *format, struct blk_error *err)
{
    return blk_fail_why(err, ENOTSUP, "it cannot hold compressed data",
                        "Compression is not supported for underlying format: %s",
                        format->driver->name);
}

static int compress_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct blk_node *file = blk_file(node), *format = blk_skip_filters(file);
    uint64_t cluster_bytes;
    (void)options;

    if (!blk_supports(format, BLK_COMPRESSION))
        return refuse_to_compress(format, err);
    int ret = blk_child_cluster_bytes(format, &cluster_bytes, err);
    if (ret < 0)
        return ret;
    if (!cluster_bytes)
        return refuse_to_compress(format, err);

    node->limits.request_alignment = (uint32_t)cluster_bytes;
    node->limits.memory_alignment = file->limits.memory_alignment;
    node->reads_zero = file->reads_zero;
    blk_node_set_size(node, blk_size(file));
    return 0;
}

/* Whole clusters; the last one may reach past the end of the image, of which there is nothing. */
static int compress_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                           unsigned flags, struct blk_error *err)
{
    const uint8_t *data = buf;
    uint64_t cluster = node->limits.request_alignment;
    uint64_t end = u64_min(offset + bytes, blk_size(node));
    int ret = 0;
    (void)flags;

    for (uint64_t piece; offset < end && ret == 0; offset += piece, data += piece) {
        piece = u64_min(cluster, end - offset);
        ret = blk_child_write_compressed(blk_file(node), offset, piece, data, err);
    }
    return ret;
}

const struct blk_driver blk_driver_compress = {
    .name = "compress",
    .kind = BLK_FILTER,
    .open = compress_open,
    .data = {
        .pread = blk_pass_pread,
        .pwrite = compress_pwrite,
        .write_zeroes = blk_pass_write_zeroes,
        .discard = blk_pass_discard,
        .write_compressed = blk_pass_write_compressed,
        .block_status = blk_pass_block_status,
        .truncate = blk_pass_truncate,
    },
};
