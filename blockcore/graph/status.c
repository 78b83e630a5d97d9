/* SPDX-License-Identifier: MIT */
/*
 * The state of ranges: what a node holds itself, what shows through from its backing chain, and
 * what the medium below knows about zeroes.
 */
#include "blockcore/graph/status.h"

#include <errno.h>
#include <inttypes.h>

#include "blockcore/base/bytes.h"
#include "blockcore/graph/driver.h"

/* Asks the driver, with the request widened to its alignment and the answer cut to the request. */
static int ask_driver(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                      struct blk_extent *extent, struct blk_error *err)
{
    uint64_t align = node->limits.request_alignment;
    uint64_t start = round_down(offset, align);
    uint64_t length = round_up(offset + bytes, align) - start;
    uint64_t skip = offset - start;

    *extent = (struct blk_extent){ .bytes = 0 };
    int ret = node->driver->data.block_status(node, start, length, want, extent, err);
    if (ret < 0)
        extent->bytes = u64_min(extent->bytes - u64_min(skip, extent->bytes), bytes);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "reading the allocation map of '%s' at offset %" PRIu64,
                                 node->name, offset);
    extent->bytes = u64_min(extent->bytes - skip, bytes);
    extent->host_offset += skip;
    return 0;
}

/* The driver passes the range through to `host`: its state is the answer. */
static int pass_through(struct blk_extent *extent, unsigned want, struct blk_error *err)
{
    return blk_child_block_status(extent->host, extent->host_offset, extent->bytes, want, extent,
                                  err);
}

/* Data that lies as it is in a file: what the file knows to be a hole reads as zeroes. */
static int look_for_holes(struct blk_extent *extent, struct blk_error *err)
{
    struct blk_extent below;
    int ret = blk_child_block_status(extent->host, extent->host_offset, extent->bytes,
                                     BLK_WANT_ZERO, &below, err);
    if (ret < 0)
        extent->bytes = 0; /* the data itself may well be readable */
    if (ret < 0)
        return ret;
    /* A mapped range past the end of the file reads as zeroes as a whole. */
    if (below.flags & BLK_EXT_ZERO)
        extent->flags |= BLK_EXT_ZERO;
    extent->bytes = u64_min(extent->bytes, below.bytes);
    return 0;
}

/*
 * Where this node has nothing, its backing file shows through as far as that goes; behind it, and
 * where there is none, it reads as zeroes. A backing file that was left unopened for now may hold
 * anything; one that the user has taken away by an option holds nothing.
 */
static void look_at_backing(const struct blk_node *node, uint64_t offset, struct blk_extent *extent)
{
    const struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    uint64_t end = backing ? blk_size(backing) : 0;

    if (!node->driver->supports_backing ||
        (!backing && node->backing_name && node->flags & BLK_NO_BACKING))
        return;
    if (offset >= end)
        extent->flags |= BLK_EXT_ZERO;
    else
        extent->bytes = u64_min(extent->bytes, end - offset);
}

int blk_child_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                           struct blk_extent *extent, struct blk_error *err)
{
    uint64_t size = blk_size(node);
    if (offset >= size) {
        *extent = (struct blk_extent){ .bytes = bytes, .flags = BLK_EXT_ZERO | BLK_EXT_EOF };
        return 0;
    }
    bytes = u64_min(bytes, size - offset);
    if (!bytes) {
        *extent = (struct blk_extent){ .flags = 0 };
        return 0;
    }

    int ret = 0;
    if (!node->driver->data.block_status) {
        *extent = (struct blk_extent){ .bytes = bytes, .flags = BLK_EXT_DATA | BLK_EXT_ALLOCATED };
    } else {
        ret = ask_driver(node, offset, bytes, want, extent, err);
        if (ret == 0 && extent->flags & BLK_EXT_PASS)
            ret = pass_through(extent, want, err);
        else if (ret == 0 && want & BLK_WANT_ZERO && extent->flags & BLK_EXT_RECURSE)
            ret = look_for_holes(extent, err);
    }
    if (ret < 0)
        return ret;

    if (!(extent->flags & BLK_EXT_ALLOCATED))
        look_at_backing(node, offset, extent);
    extent->flags &= ~(unsigned)(BLK_EXT_EOF | BLK_EXT_RECURSE);
    if (offset + extent->bytes == size)
        extent->flags |= BLK_EXT_EOF;
    return 0;
}

int blk_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                     struct blk_extent *extent, struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_child_block_status(node, offset, bytes, want, extent, err);
    blk_gate_leave(&node->gate);
    return ret;
}

/* Walks down the chain from the top, which has been asked and has nothing at `offset`. */
static int status_below(struct blk_layers layers, uint64_t offset, unsigned want,
                        struct blk_extent *extent, struct blk_error *err)
{
    struct blk_node *node = layers.top;
    uint64_t eof = extent->flags & BLK_EXT_EOF ? offset + extent->bytes : 0;
    unsigned depth = 0;

    for (;;) {
        struct blk_node *next = blk_child(blk_skip_filters(node), BLK_ROLE_BACKING);
        if (!next || next == layers.base || blk_skip_filters(next) == layers.base)
            break;
        node = next;
        depth++;
        if (offset >= blk_size(node)) {
            /* The zeroes past the end of a short layer belong to that layer. */
            extent->flags = BLK_EXT_ZERO | BLK_EXT_ALLOCATED;
            extent->host = NULL;
            break;
        }
        int ret = blk_child_block_status(node, offset, extent->bytes, want, extent, err);
        if (ret < 0)
            return ret;
        if (extent->flags & BLK_EXT_ALLOCATED)
            break;
    }
    extent->depth = depth;
    extent->flags &= ~(unsigned)BLK_EXT_EOF;
    if (offset + extent->bytes == eof)
        extent->flags |= BLK_EXT_EOF;
    return 0;
}

int blk_child_block_status_above(struct blk_layers layers, uint64_t offset, uint64_t bytes,
                                 unsigned want, struct blk_extent *extent, struct blk_error *err)
{
    int ret = blk_child_block_status(layers.top, offset, bytes, want, extent, err);
    if (ret < 0)
        return ret;
    extent->depth = 0;
    /* Of a backing file that is longer nothing shows through past the end. */
    if (extent->flags & BLK_EXT_ALLOCATED || offset >= blk_size(layers.top))
        return 0;
    return status_below(layers, offset, want, extent, err);
}

int blk_block_status_above(struct blk_layers layers, uint64_t offset, uint64_t bytes, unsigned want,
                           struct blk_extent *extent, struct blk_error *err)
{
    blk_gate_enter(&layers.top->gate);
    int ret = blk_child_block_status_above(layers, offset, bytes, want, extent, err);
    blk_gate_leave(&layers.top->gate);
    return ret;
}
