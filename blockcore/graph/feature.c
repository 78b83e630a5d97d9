/* SPDX-License-Identifier: MIT */
/* Which operation of a driver stands for which feature, and the words for its lack. */
#include "blockcore/graph/feature.h"

#include <errno.h>

#include "blockcore/base/memory.h"

bool blk_driver_supports(const struct blk_driver *driver, enum blk_feature feature)
{
    switch (feature) {
    case BLK_BACKING:
        return driver->supports_backing;
    case BLK_COMPRESSION:
        return driver->data.write_compressed;
    case BLK_SNAPSHOTS:
        return BLK_OP(driver, snapshots, list);
    case BLK_BITMAPS:
        return BLK_OP(driver, bitmaps, load);
    case BLK_IDENTITY:
        return BLK_OP(driver, identity, set);
    case BLK_CHECKS:
        return BLK_OP(driver, upkeep, check);
    case BLK_AMENDING:
        return BLK_OP(driver, upkeep, amend);
    case BLK_EMPTYING:
        return BLK_OP(driver, upkeep, make_empty);
    case BLK_MEASURING:
        return BLK_OP(driver, creation, measure);
    case BLK_BREAKPOINTS:
        return BLK_OP(driver, debug, set_break);
    }
    return false;
}

bool blk_supports(const struct blk_node *node, enum blk_feature feature)
{
    return blk_driver_supports(node->driver, feature);
}

/* What follows "format 'NAME'". */
static const char *const lacks[] = {
    [BLK_BACKING] = " has no backing files",
    [BLK_COMPRESSION] = " does not support compression",
    [BLK_SNAPSHOTS] = " has no snapshots",
    [BLK_BITMAPS] = " has no bitmaps",
    [BLK_IDENTITY] = " does not record which backup an image is",
    [BLK_CHECKS] = ": This image format does not support checks",
    [BLK_AMENDING] = " has no options that can be changed",
    [BLK_EMPTYING] = " cannot be emptied",
    [BLK_MEASURING] = " cannot be measured",
    [BLK_BREAKPOINTS] = " has no breakpoints",
};

BLK_PRINTF(4, 0)
static int require(const struct blk_driver *driver, enum blk_feature feature, struct blk_error *err,
                   const char *what, va_list args)
{
    if (blk_driver_supports(driver, feature))
        return 0;
    BLK_AUTOFREE char *text = blk_xvasprintf(what, args);
    BLK_AUTOFREE char *why = blk_xasprintf("format '%s'%s", driver->name, lacks[feature]);
    return blk_fail_why(err, ENOTSUP, why, "%s", text);
}

int blk_driver_require(const struct blk_driver *driver, enum blk_feature feature,
                       struct blk_error *err, const char *what, ...)
{
    va_list args;
    va_start(args, what);
    int ret = require(driver, feature, err, what, args);
    va_end(args);
    return ret;
}

int blk_require(const struct blk_node *node, enum blk_feature feature, struct blk_error *err,
                const char *what, ...)
{
    va_list args;
    va_start(args, what);
    int ret = require(node->driver, feature, err, what, args);
    va_end(args);
    return ret;
}

const char *blk_format_name(const struct blk_node *node)
{
    return node->driver->name;
}

enum blk_kind blk_kind_of(const struct blk_node *node)
{
    return node->driver->kind;
}
