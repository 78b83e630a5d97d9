/* SPDX-License-Identifier: MIT */
/* What -s and -C put over an image: a temporary overlay, and copy-on-read. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/create.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/open.h"
#include "cmd/io/io.h"

/*
 * A new qcow2 file that gets no name, as it is never closed in earnest; what it does not hold is
 * the image's.
 */
int io_put_overlay(struct blk_node **node, bool read_only, struct blk_error *err)
{
    const char *directory = getenv("TMPDIR");
    BLK_AUTOFREE char *name = blk_xasprintf(
        "%s/blkimg-io-%ld.qcow2", directory && *directory ? directory : "/var/tmp", (long)getpid());
    struct blk_options *creation = blk_options_new();
    struct blk_create create = {
        .filename = name,
        .driver = blk_driver_find("qcow2"),
        .options = creation,
        .flags = BLK_UNMAP,
        .cache = { .no_flush = true },
    };
    struct blk_node *overlay = NULL;

    blk_options_setf(creation, "size", "%" PRIu64, blk_size(*node));
    int ret = blk_create(&create, &overlay, err);
    blk_options_free(creation);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "creating a temporary overlay");
    blk_node_attach(overlay, BLK_ROLE_BACKING, *node);
    blk_node_rename(overlay, (*node)->name); /* as messages call it */
    overlay->reads_zero = false;
    if (read_only)
        overlay->flags &= ~(unsigned)BLK_WRITABLE;
    *node = overlay;
    return 0;
}

struct blk_node *io_drop_overlay(struct blk_node *root, struct blk_node *overlay)
{
    struct blk_node *image = blk_child(overlay, BLK_ROLE_BACKING);
    overlay->children[BLK_ROLE_BACKING] = NULL;
    blk_drop(root);
    return image;
}

int io_put_copy_on_read(struct blk_node **node, struct blk_error *err)
{
    const struct blk_open_over over = {
        .driver = blk_driver_find("copy-on-read"),
        .file = *node,
        .flags = (*node)->flags,
        .cache = (*node)->cache,
    };
    struct blk_node *filter;
    int ret = blk_open_over(&over, &filter, err);
    if (ret == 0)
        *node = filter;
    return ret;
}
