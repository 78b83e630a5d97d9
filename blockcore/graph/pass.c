/* SPDX-License-Identifier: MIT */
/* What filters leave to their file child, in the form of a driver's operations. */
#include "blockcore/graph/pass.h"

#include "blockcore/graph/io.h"
#include "blockcore/graph/pieces.h"

int blk_pass_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                   struct blk_error *err)
{
    return blk_child_pread(blk_file(node), offset, bytes, buf, err);
}

int blk_pass_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                    unsigned flags, struct blk_error *err)
{
    return blk_child_pwrite(blk_file(node), offset, bytes, buf, flags, err);
}

int blk_pass_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                          struct blk_error *err)
{
    return blk_child_write_zeroes(blk_file(node), offset, bytes, flags, err);
}

int blk_pass_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    return blk_child_discard(blk_file(node), offset, bytes, err);
}

int blk_pass_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                              const void *buf, struct blk_error *err)
{
    return blk_child_write_compressed(blk_file(node), offset, bytes, buf, err);
}

int blk_pass_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                          struct blk_extent *extent, struct blk_error *err)
{
    (void)want, (void)err;
    *extent = (struct blk_extent){
        .bytes = bytes,
        .flags = BLK_EXT_PASS,
        .host = blk_file(node),
        .host_offset = offset,
    };
    return 0;
}

int blk_pass_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                      struct blk_error *err)
{
    int ret = blk_child_truncate(blk_file(node), size, prealloc, exact, err);
    if (ret == 0)
        blk_node_set_size(node, blk_size(blk_file(node)));
    return ret;
}
