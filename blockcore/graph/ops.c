/* SPDX-License-Identifier: MIT */
/* Each operation: does the format have it; drain; call the driver; name the node in the error. */
#include "blockcore/graph/ops.h"

#include <errno.h>

#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"

/* ---- information ---- */

/* The first node down the file children that has information about itself, or NULL. */
static struct blk_node *informed_node(struct blk_node *node)
{
    while (node && !node->driver->get_info)
        node = blk_child(node, BLK_ROLE_FILE);
    return node;
}

int blk_child_get_info(struct blk_node *node, struct blk_info *info, struct blk_error *err)
{
    struct blk_node *informed = informed_node(node);
    if (!informed)
        return 0;
    int ret = informed->driver->get_info(informed, info, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "reading the state of '%s'", informed->name) : 0;
}

int blk_get_info(struct blk_node *root, struct blk_info *info, struct blk_error *err)
{
    BLK_DRAIN_SCOPE(&root->gate);
    return blk_child_get_info(root, info, err);
}

int blk_child_cluster_bytes(struct blk_node *node, uint64_t *bytes, struct blk_error *err)
{
    BLK_AUTO_INFO struct blk_info info = { .cluster_bytes = 0 };

    int ret = blk_child_get_info(node, &info, err);
    *bytes = info.cluster_bytes;
    return ret;
}

int blk_cluster_bytes(struct blk_node *root, uint64_t *bytes, struct blk_error *err)
{
    BLK_DRAIN_SCOPE(&root->gate);
    return blk_child_cluster_bytes(root, bytes, err);
}

/* Its own answer, or what its files occupy. */
static int allocated_bytes(struct blk_node *node, uint64_t *bytes, struct blk_error *err)
{
    if (node->driver->allocated_bytes)
        return node->driver->allocated_bytes(node, bytes, err);

    struct blk_node *file = blk_child(node, BLK_ROLE_FILE);
    if (!file)
        return -ENOTSUP;
    int ret = allocated_bytes(file, bytes, err);
    struct blk_node *data = blk_child(node, BLK_ROLE_DATA);
    if (ret < 0 || !data)
        return ret;
    uint64_t more;
    ret = allocated_bytes(data, &more, err);
    if (ret < 0)
        return ret;
    *bytes += more;
    return 0;
}

int blk_allocated_bytes(struct blk_node *root, uint64_t *bytes, struct blk_error *err)
{
    BLK_DRAIN_SCOPE(&root->gate);
    return allocated_bytes(root, bytes, err);
}

/* ---- changes ---- */

int blk_measure(const struct blk_driver *driver, struct blk_options *options,
                struct blk_node *source, struct blk_measure *measure, struct blk_error *err)
{
    int ret = blk_driver_require(driver, BLK_MEASURING, err, "measuring a new image");
    if (ret < 0)
        return ret;
    ret = BLK_OP(driver, creation, measure)(options, source, measure, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "measuring format '%s'", driver->name) : 0;
}

int blk_amend(struct blk_node *root, struct blk_options *options, bool force,
              const struct blk_progress *progress, struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(root);

    int ret = blk_require(node, BLK_AMENDING, err, "amending '%s'", node->name);
    if (ret < 0)
        return ret;
    BLK_DRAIN_SCOPE(&root->gate);
    ret = BLK_OP(node->driver, upkeep, amend)(node, options, force, progress, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "amending '%s'", node->name) : 0;
}

int blk_check(struct blk_node *root, unsigned repair, struct blk_check *check,
              struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(root);

    int ret = blk_require(node, BLK_CHECKS, err, "checking '%s'", node->name);
    if (ret < 0)
        return ret;
    BLK_DRAIN_SCOPE(&root->gate);
    ret = BLK_OP(node->driver, upkeep, check)(node, repair, check, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "checking '%s'", node->name) : 0;
}

int blk_make_empty(struct blk_node *root, struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(root);

    int ret = blk_require(node, BLK_EMPTYING, err, "emptying '%s'", node->name);
    if (ret < 0)
        return ret;
    BLK_DRAIN_SCOPE(&root->gate);
    ret = BLK_OP(node->driver, upkeep, make_empty)(node, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "emptying '%s'", node->name) : 0;
}

/* ---- internal snapshots ---- */

int blk_snapshot_list(struct blk_node *root, struct blk_snapshot **list, size_t *count,
                      struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(root);

    *list = NULL;
    *count = 0;
    int ret = blk_require(node, BLK_SNAPSHOTS, err, "listing the snapshots of '%s'", node->name);
    if (ret < 0)
        return ret;
    BLK_DRAIN_SCOPE(&root->gate);
    ret = BLK_OP(node->driver, snapshots, list)(node, list, count, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "listing the snapshots of '%s'", node->name) : 0;
}

typedef int snapshot_fn(struct blk_node *node, const char *id_or_name, struct blk_error *err);

static const struct blk_driver *format_of(struct blk_node *root)
{
    return blk_skip_filters(root)->driver;
}

static int on_snapshot(struct blk_node *root, snapshot_fn *operation, const char *verb,
                       const char *snapshot, struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(root);

    int ret = blk_require(node, BLK_SNAPSHOTS, err, "%s snapshot '%s' of '%s'", verb, snapshot,
                          node->name);
    if (ret < 0)
        return ret;
    BLK_DRAIN_SCOPE(&root->gate);
    ret = operation(node, snapshot, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "%s snapshot '%s' of '%s'", verb, snapshot,
                                       node->name)
                   : 0;
}

int blk_snapshot_create(struct blk_node *root, const char *name, struct blk_error *err)
{
    return on_snapshot(root, BLK_OP(format_of(root), snapshots, create), "creating", name, err);
}

int blk_snapshot_apply(struct blk_node *root, const char *id_or_name, struct blk_error *err)
{
    return on_snapshot(root, BLK_OP(format_of(root), snapshots, apply), "applying", id_or_name,
                       err);
}

int blk_snapshot_delete(struct blk_node *root, const char *id_or_name, struct blk_error *err)
{
    return on_snapshot(root, BLK_OP(format_of(root), snapshots, remove), "deleting", id_or_name,
                       err);
}

int blk_snapshot_load(struct blk_node *root, const char *id_or_name, struct blk_error *err)
{
    return on_snapshot(root, BLK_OP(format_of(root), snapshots, load), "loading", id_or_name, err);
}

/* ---- breakpoints ---- */

static struct blk_node *debug_node(struct blk_node *node)
{
    while (node && !blk_supports(node, BLK_BREAKPOINTS))
        node = blk_child(node, BLK_ROLE_FILE);
    return node;
}

bool blk_has_breakpoints(struct blk_node *root)
{
    return debug_node(root);
}

int blk_debug_break(struct blk_node *root, const char *event, const char *tag,
                    struct blk_error *err)
{
    struct blk_node *node = debug_node(root);
    return node ? BLK_OP(node->driver, debug, set_break)(node, event, tag, err)
                : blk_require(root, BLK_BREAKPOINTS, err, "breakpoint '%s'", tag);
}

int blk_debug_remove_break(struct blk_node *root, const char *tag, struct blk_error *err)
{
    struct blk_node *node = debug_node(root);
    return node ? BLK_OP(node->driver, debug, remove_break)(node, tag, err)
                : blk_require(root, BLK_BREAKPOINTS, err, "breakpoint '%s'", tag);
}

int blk_debug_resume(struct blk_node *root, const char *tag, struct blk_error *err)
{
    struct blk_node *node = debug_node(root);
    return node ? BLK_OP(node->driver, debug, resume)(node, tag, err)
                : blk_require(root, BLK_BREAKPOINTS, err, "breakpoint '%s'", tag);
}

bool blk_debug_is_suspended(struct blk_node *root, const char *tag)
{
    struct blk_node *node = debug_node(root);
    return node && BLK_OP(node->driver, debug, is_suspended)(node, tag);
}
