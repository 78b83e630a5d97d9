/* SPDX-License-Identifier: MIT */
/* Checks, permissions and messages that all requests share. */
#include "blockcore/graph/request.h"

#include <errno.h>
#include <inttypes.h>

#include "blockcore/base/bytes.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/flush.h"

int blk_check_range(const struct blk_node *node, const char *action, uint64_t offset,
                    uint64_t bytes, struct blk_error *err)
{
    if (range_within(offset, bytes, blk_size(node)))
        return 0;
    return blk_fail_why(err, EIO, "the range ends past the end of the image",
                        "%s %" PRIu64 " bytes at offset %" PRIu64 " of '%s'", action, bytes, offset,
                        node->name);
}

int blk_check_writable(const struct blk_node *node, struct blk_error *err)
{
    if (blk_is_writable(node))
        return 0;
    return blk_fail_why(err, EACCES, "it is open read-only", "writing to '%s'", node->name);
}

int blk_begin_change(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    int ret = blk_check_writable(node, err);
    if (ret == 0)
        ret = blk_identity_will_change(node, err);
    return ret < 0 ? ret : blk_bitmaps_will_write(node, offset, bytes, err);
}

unsigned blk_entry_flags(const struct blk_node *node, unsigned flags)
{
    return node->cache.writethrough ? flags | BLK_REQ_FUA : flags;
}

int blk_finish_fua(struct blk_node *node, unsigned flags, struct blk_error *err)
{
    return flags & BLK_REQ_FUA ? blk_child_flush(node, err) : 0;
}

int blk_read_failed(const struct blk_node *node, int ret, uint64_t offset, uint64_t bytes,
                    struct blk_error *err)
{
    return blk_fail_if_unset(err, -ret, "reading %" PRIu64 " bytes at offset %" PRIu64 " of '%s'",
                             bytes, offset, node->name);
}

int blk_write_failed(const struct blk_node *node, int ret, const char *action, uint64_t offset,
                     uint64_t bytes, struct blk_error *err)
{
    return blk_fail_if_unset(err, -ret, "%s %" PRIu64 " bytes at offset %" PRIu64 " of '%s'",
                             action, bytes, offset, node->name);
}
