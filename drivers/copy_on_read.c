/* SPDX-License-Identifier: MIT */
/*
 * The copy-on-read filter: what a read brings from a backing file is written to the image below,
 * so that the next read need not go there.
 *
 * Copies are whole clusters of the image. While one is made its range is held against the writes
 * that pass through here: what was read from the backing file must not go over what a guest has
 * just written. A copy that fails fails the read.
 */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/ops.h"
#include "blockcore/graph/pass.h"
#include "blockcore/graph/pieces.h"
#include "blockcore/graph/reopen.h"
#include "blockcore/graph/status.h"
#include "drivers/drivers.h"

/* The longest copy, except that a longer cluster is copied whole. */
#define COPY_BYTES (1 * MIB)

struct copy_on_read {
    uint64_t unit; /* what is copied at once at least: a cluster of the image */
};

/* ---- life ---- */

static int check_access(const struct blk_node *node, unsigned flags, struct blk_error *err)
{
    if (flags & BLK_WRITABLE)
        return 0;
    return blk_fail_why(err, EACCES, "Can't use copy-on-read on read-only device",
                        "opening '%s' with driver copy-on-read", node->name);
}

static int cor_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct copy_on_read *cor = node->state;
    struct blk_node *file = blk_file(node), *image = blk_skip_filters(file);
    uint64_t cluster_bytes = 0;
    (void)options;

    int ret = check_access(node, node->flags, err);
    if (ret == 0)
        ret = blk_child_cluster_bytes(image, &cluster_bytes, err);
    if (ret < 0)
        return ret;
    cor->unit = u64_max(cluster_bytes, 1);
    node->reads_zero = file->reads_zero;
    blk_node_set_size(node, blk_size(file));
    return 0;
}

static int cor_reopen_prepare(struct blk_reopen *reopen, struct blk_error *err)
{
    return check_access(reopen->node, reopen->flags, err);
}

static const struct blk_reopen_ops cor_reopen_ops = { .prepare = cor_reopen_prepare };

/* ---- reading ---- */

/*
 * Of what begins at `offset` *bytes are alike: does the image itself not have it? That it then
 * reads as zeroes, too, is worth keeping: nobody has to ask the whole chain again.
 */
static int is_missing(struct blk_node *node, uint64_t offset, uint64_t *bytes, bool *missing,
                      struct blk_error *err)
{
    struct blk_node *file = blk_file(node);
    struct blk_extent extent;
    int ret = blk_child_block_status(file, offset, *bytes, 0, &extent, err);
    if (ret < 0)
        return ret;
    *missing =
        !(extent.flags & BLK_EXT_ALLOCATED) && blk_supports(blk_skip_filters(file), BLK_BACKING);
    *bytes = extent.bytes;
    return 0;
}

/* Whether the image does not have all of the range. */
static int any_missing(struct blk_node *node, uint64_t offset, uint64_t bytes, bool *any,
                       struct blk_error *err)
{
    int ret = 0;

    *any = false;
    while (bytes && !*any && ret == 0) {
        uint64_t piece = bytes;
        ret = is_missing(node, offset, &piece, any, err);
        offset += piece;
        bytes -= piece;
    }
    return ret;
}

/* Writes what was read back, as zeroes where it is. */
static int write_back(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                      struct blk_error *err)
{
    struct blk_node *file = blk_file(node);
    if (bytes_are_zero(buf, bytes))
        return blk_child_write_zeroes(file, offset, bytes, 0, err);
    return blk_child_pwrite(file, offset, bytes, buf, 0, err);
}

/* Copies what the image does not have. The range is held, and whole units or the image's end. */
static int copy_held(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    ASSERT_RANGE_HELD(&node->ranges, offset, bytes, BLK_RANGE_EXCLUSIVE);
    uint64_t end = offset + bytes;
    uint64_t most = u64_max(COPY_BYTES, blk_file(node)->limits.zero_alignment);
    BLK_AUTOFREE uint8_t *buf = blk_buffer_alloc(u64_min(bytes, most));
    int ret = buf ? 0 : blk_fail(err, ENOMEM, "copying on read to '%s'", node->name);

    for (uint64_t piece; offset < end && ret == 0; offset += piece) {
        bool missing;
        piece = u64_min(end - offset, most);
        ret = is_missing(node, offset, &piece, &missing, err);
        if (ret < 0 || !missing)
            continue;
        ret = blk_child_pread(blk_file(node), offset, piece, buf, err);
        if (ret == 0)
            ret = write_back(node, offset, piece, buf, err);
    }
    return ret;
}

static int copy_up(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    const struct copy_on_read *cor = node->state;
    uint64_t start = round_down(offset, cor->unit);
    uint64_t end = u64_min(round_up(offset + bytes, cor->unit), blk_size(node));
    struct blk_range range;

    blk_range_take(&node->ranges, &range, start, end - start, 1);
    int ret = copy_held(node, start, end - start, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

static int cor_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                     struct blk_error *err)
{
    bool any;
    int ret = any_missing(node, offset, bytes, &any, err);
    if (ret == 0 && any)
        ret = copy_up(node, offset, bytes, err);
    return ret < 0 ? ret : blk_child_pread(blk_file(node), offset, bytes, buf, err);
}

/* ---- changes, which pass through with their range held ---- */

static int cor_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                      unsigned flags, struct blk_error *err)
{
    struct blk_range range;
    blk_range_take_shared(&node->ranges, &range, offset, bytes, 1);
    int ret = blk_child_pwrite(blk_file(node), offset, bytes, buf, flags, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

static int cor_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                            struct blk_error *err)
{
    struct blk_range range;
    blk_range_take_shared(&node->ranges, &range, offset, bytes, 1);
    int ret = blk_child_write_zeroes(blk_file(node), offset, bytes, flags, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

static int cor_discard(struct blk_node *node, uint64_t offset, uint64_t bytes,
                       struct blk_error *err)
{
    struct blk_range range;
    blk_range_take_shared(&node->ranges, &range, offset, bytes, 1);
    int ret = blk_child_discard(blk_file(node), offset, bytes, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

static int cor_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                const void *buf, struct blk_error *err)
{
    struct blk_range range;
    blk_range_take_shared(&node->ranges, &range, offset, bytes, 1);
    int ret = blk_child_write_compressed(blk_file(node), offset, bytes, buf, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

const struct blk_driver blk_driver_copy_on_read = {
    .name = "copy-on-read",
    .kind = BLK_FILTER,
    .state_bytes = sizeof(struct copy_on_read),
    .supports_fua = true,
    .open = cor_open,
    .data = {
        .pread = cor_pread,
        .pwrite = cor_pwrite,
        .write_zeroes = cor_write_zeroes,
        .discard = cor_discard,
        .write_compressed = cor_write_compressed,
        .block_status = blk_pass_block_status,
        .truncate = blk_pass_truncate,
    },
    .reopen = &cor_reopen_ops,
};
