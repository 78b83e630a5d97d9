/* SPDX-License-Identifier: MIT */
/*
 * snapshot-access: the frozen moment that a copy-before-write filter (its file) keeps, as a read-
 * only image.
 *
 * It is no filter itself: what it shows is not what its file shows.
 */
#include <errno.h>

#include "blockcore/filters/cbw/cbw.h"
#include "blockcore/filters/filters.h"
#include "blockcore/graph/reopen.h"

static struct blk_cbw *cbw_of(const struct blk_node *node)
{
    return blk_cbw_of(blk_child(node, BLK_ROLE_FILE));
}

static int refuse_writing(const struct blk_node *node, unsigned flags, struct blk_error *err)
{
    if (!(flags & BLK_WRITABLE))
        return 0;
    return blk_fail_why(err, EACCES, "the past can only be read",
                        "opening the snapshot of '%s' for writing", node->name);
}

static int view_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    (void)options;
    if (!cbw_of(node))
        return blk_fail_why(err, EINVAL, "its file must be a copy-before-write filter",
                            "opening the snapshot of '%s'", node->name);
    int ret = refuse_writing(node, node->flags, err);
    if (ret == 0)
        blk_node_set_size(node, blk_cbw_size(cbw_of(node)));
    return ret;
}

static int view_reopen_prepare(struct blk_reopen *reopen, struct blk_error *err)
{
    return refuse_writing(reopen->node, reopen->flags, err);
}

static int view_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                      struct blk_error *err)
{
    return blk_cbw_read(cbw_of(node), offset, bytes, buf, err);
}

static int view_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                             struct blk_extent *extent, struct blk_error *err)
{
    return blk_cbw_block_status(cbw_of(node), offset, bytes, want, extent, err);
}

static const struct blk_reopen_ops view_reopen_ops = { .prepare = view_reopen_prepare };

const struct blk_driver blk_driver_snapshot_access = {
    .name = "snapshot-access",
    .kind = BLK_FORMAT,
    .open = view_open,
    .data = {
        .pread = view_pread,
        .block_status = view_block_status,
    },
    .reopen = &view_reopen_ops,
};
