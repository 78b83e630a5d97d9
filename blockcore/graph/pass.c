/* What filters leave to their file child, in the form of a driver's operations. */
#include "blockcore/graph/pass.h"

#include "blockcore/graph/io.h"

int blk_pass_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                          struct blk_extent *extent, struct blk_error *err)
{
    (void)want, (void)err;
    *extent = (struct blk_extent){
        .bytes = bytes,
        .flags = BLK_EXT_PASS,
        .host = blk_child(node, BLK_ROLE_FILE),
        .host_offset = offset,
    };
    return 0;
}

int blk_pass_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                      struct blk_error *err)
{
    struct blk_node *file = blk_child(node, BLK_ROLE_FILE);
    int ret = blk_child_truncate(file, size, prealloc, exact, err);
    if (ret == 0)
        blk_node_set_size(node, blk_size(file));
    return ret;
}
