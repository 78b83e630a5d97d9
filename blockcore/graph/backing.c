/* SPDX-License-Identifier: MIT */
/* A file that a header is about to name is opened and synced first, with its whole chain. */
#include "blockcore/graph/backing.h"

#include <errno.h>

#include "blockcore/graph/close.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/open.h"

static int sync_graph(struct blk_node *node, struct blk_error *err)
{
    int ret = node->driver->data.sync_foreign ? node->driver->data.sync_foreign(node, err) : 0;

    for (int role = 0; role < BLK_ROLE_COUNT && ret == 0; role++)
        if (node->children[role])
            ret = sync_graph(node->children[role], err);
    return ret;
}

/* Whether an open failed for a reason that says nothing about the file. */
static bool is_shortage(int code)
{
    return code == ENOMEM || code == EMFILE || code == ENFILE || code == EINTR || code == ECANCELED;
}

/*
 * Opens the chain, asking nobody for a lock: it may be in use. A file that is no image (yet) is
 * still a file. *root is NULL where there is nothing that can be opened.
 */
static int open_named(struct blk_node *node, const char *name, const char *format,
                      struct blk_node **root, struct blk_error *err)
{
    struct blk_open how = {
        .filename = name,
        .format = format,
        .flags = BLK_FORCE_SHARE,
        .cache = node->cache,
    };
    int ret = blk_open_new_backing(node, &how, root, err);
    if (ret < 0 && !is_shortage(-ret)) {
        blk_error_clear(err);
        how.format = "raw";
        ret = blk_open_new_backing(node, &how, root, err);
    }
    if (ret == 0 || is_shortage(-ret))
        return ret;
    blk_error_clear(err);
    return 0;
}

int blk_sync_named(struct blk_node *node, const char *name, const char *format,
                   struct blk_error *err)
{
    struct blk_node *root = NULL;
    struct blk_error own = BLK_ERROR_INIT;

    if (node->cache.no_flush)
        return 0;
    int ret = open_named(node, name, format, &root, &own);
    if (ret == 0 && root)
        ret = sync_graph(root, &own);
    ret = blk_close_after(root, ret, &own);
    if (ret < 0) {
        blk_context(&own, "syncing '%s', which '%s' is to name", name, node->name);
        if (err)
            *err = own;
    }
    return ret;
}

/* A format that has backing files can also name another one. */
static int require_change(const struct blk_node *node, struct blk_error *err)
{
    int ret = blk_require(node, BLK_BACKING, err, "changing the backing file of '%s'", node->name);
    if (ret < 0 || BLK_OP(node->driver, backing, change))
        return ret;
    return blk_fail(err, ENOTSUP, "changing the backing file of '%s'", node->name);
}

static int cannot_change(const struct blk_node *node, const char *name, int ret,
                         struct blk_error *err)
{
    return name
               ? blk_fail_if_unset(err, -ret, "giving '%s' the backing file '%s'", node->name, name)
               : blk_fail_if_unset(err, -ret, "taking the backing file from '%s'", node->name);
}

int blk_change_backing(struct blk_node *node, const char *name, const char *format,
                       struct blk_error *err)
{
    int ret = require_change(node, err);
    if (ret == 0 && name && *name)
        ret = blk_sync_named(node, name, format, err);
    if (ret < 0)
        return ret;
    BLK_DRAIN_SCOPE(&node->gate);
    ret = BLK_OP(node->driver, backing, change)(node, name, format, err);
    return ret < 0 ? cannot_change(node, name, ret, err) : 0;
}

int blk_can_change_backing(struct blk_node *node, const char *name, const char *format,
                           struct blk_error *err)
{
    int ret = require_change(node, err);
    if (ret < 0 || !BLK_OP(node->driver, backing, can_change))
        return ret;
    BLK_DRAIN_SCOPE(&node->gate);
    ret = BLK_OP(node->driver, backing, can_change)(node, name, format, err);
    return ret < 0 ? cannot_change(node, name, ret, err) : 0;
}
