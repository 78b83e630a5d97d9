/* What filters leave to their file child, in the form of a driver's operations. */
#include "blockcore/graph/pass.h"

#include "blockcore/graph/io.h"

static struct blk_node *file_of(const struct blk_node *node)
{
    return blk_child(node, BLK_ROLE_FILE);
}

int blk_pass_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                   struct blk_error *err)
{
    return blk_child_pread(file_of(node), offset, bytes, buf, err);
}

int blk_pass_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                    unsigned flags, struct blk_error *err)
{
    return blk_child_pwrite(file_of(node), offset, bytes, buf, flags, err);
}

int blk_pass_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                          struct blk_error *err)
{
    return blk_child_write_zeroes(file_of(node), offset, bytes, flags, err);
}

int blk_pass_discard(struct blk_node *node, uint64_t offset, uint64_t bytes,
                     struct blk_error *err)
{
    return blk_child_discard(file_of(node), offset, bytes, err);
}

int blk_pass_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                              const void *buf, struct blk_error *err)
{
    return blk_child_write_compressed(file_of(node), offset, bytes, buf, err);
}

int blk_pass_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                          struct blk_extent *extent, struct blk_error *err)
{
    (void)want, (void)err;
    *extent = (struct blk_extent){
        .bytes = bytes,
        .flags = BLK_EXT_PASS,
        .host = file_of(node),
        .host_offset = offset,
    };
    return 0;
}

int blk_pass_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                      struct blk_error *err)
{
    int ret = blk_child_truncate(file_of(node), size, prealloc, exact, err);
    if (ret == 0)
        blk_node_set_size(node, blk_size(file_of(node)));
    return ret;
}
