/* SPDX-License-Identifier: MIT */
/*
 * Creating an image makes nodes, not files: the protocol makes an open node (for a regular file,
 * one that has no name yet), filters are put above it, the format writes an empty image into it,
 * and these nodes are then used. Only a close without errors gives the file its name (C6).
 */
#include "blockcore/graph/create.h"

#include <errno.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/backing.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/links.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/open.h"

static int create_bottom(struct blk_create *create, struct blk_options *options,
                         struct blk_node **node, struct blk_error *err);

/* A filter named in the target (blkdebug): its child is created, and the filter opened over it. */
static int create_filter(const struct blk_driver *driver, struct blk_create *create,
                         struct blk_options *options, struct blk_node **node, struct blk_error *err)
{
    const char *group = "file";
    if (driver->file_group && blk_options_has_group(options, driver->file_group))
        group = driver->file_group;

    struct blk_options *sub = blk_options_take_group(options, group);
    struct blk_node *child;
    int ret = create_bottom(create, sub, &child, err);
    blk_options_free(sub);
    if (ret < 0)
        return ret;

    const struct blk_open_over over = {
        .driver = driver,
        .file = child,
        .options = options,
        .flags = create->flags | BLK_WRITABLE,
        .cache = create->cache,
    };
    ret = blk_open_over(&over, node, err);
    if (ret < 0) {
        blk_drop(child);
        return ret;
    }
    (*node)->reads_zero = child->reads_zero;
    if (!BLK_OP(driver, creation, made))
        return 0;
    ret = BLK_OP(driver, creation, made)(*node, err);
    if (ret < 0) {
        blk_drop(*node);
        *node = NULL;
    }
    return ret;
}

/* Makes the node that holds the bytes, with the filters that the options put over it. */
static int create_bottom(struct blk_create *create, struct blk_options *options,
                         struct blk_node **node, struct blk_error *err)
{
    const char *name = blk_options_get(options, "driver");
    const struct blk_driver *driver;

    *node = NULL;
    if (name)
        driver = blk_driver_find(name);
    else if (blk_options_peek(options, "filename"))
        driver = blk_protocol_by_filename(options, err);
    else
        return blk_fail_why(err, EINVAL, "no file is named (option 'file.filename')",
                            "creating an image");
    if (!driver)
        return name ? blk_driver_unknown(name, err)
                    : blk_fail_if_unset(err, EINVAL, "creating an image");
    const char *filename = blk_options_peek(options, "filename");

    if (driver->kind == BLK_FILTER)
        return create_filter(driver, create, options, node, err);
    if (!BLK_OP(driver, creation, make_node))
        return blk_fail_why(err, ENOTSUP, "this driver cannot create files", "driver '%s'",
                            driver->name);

    struct blk_create own = *create;
    blk_options_merge_optional(options, create->defaults);
    own.protocol_options = options;
    own.filename = filename;
    own.flags |= BLK_WRITABLE | BLK_UNMAP; /* what is unmapped is decided above */
    int ret = BLK_OP(driver, creation, make_node)(&own, node, err);
    if (ret == 0 && create->defaults)
        (*node)->defaults = blk_options_copy(create->defaults);
    return ret;
}

/* The options of the target, taken apart into the format's and, under "file", the protocol's. */
static int target_options(const struct blk_create *create, struct blk_options **options,
                          struct blk_error *err)
{
    *options =
        create->target_options ? blk_options_copy(create->target_options) : blk_options_new();
    int ret = create->filename ? blk_filename_to_options(create->filename, *options, err) : 0;
    if (ret < 0) {
        blk_options_free(*options);
        *options = NULL;
    }
    return ret;
}

/* On failure the file stays the caller's. */
static int sync_backing(struct blk_node **root, struct blk_node *file, struct blk_error *err)
{
    struct blk_node *node = *root;
    int ret = node->backing_name
                  ? blk_sync_named(node, node->backing_name, node->backing_format, err)
                  : 0;
    if (ret < 0) {
        blk_node_ref(file);
        blk_drop(node);
        *root = NULL;
    }
    return ret;
}

static int create_over(struct blk_create *create, struct blk_node *file,
                       struct blk_options *options, struct blk_node **root, struct blk_error *err)
{
    const struct blk_driver *driver = create->driver;
    if (!BLK_OP(driver, creation, write_image))
        return blk_fail_why(err, ENOTSUP, "this format cannot be created", "format '%s'",
                            driver->name);
    create->file = file;
    create->data = NULL;
    int ret = BLK_OP(driver, creation, write_image)(create, err);
    create->file = NULL;
    if (ret < 0)
        blk_fail_if_unset(err, -ret, "creating '%s'", file->name);

    const char *unused = blk_options_first_unused(create->options);
    if (ret == 0 && unused)
        ret = blk_fail_why(err, EINVAL, "the format has no such option",
                           "creating '%s' (%s): option '%s'", file->name, driver->name, unused);

    blk_options_remove(options, "driver");
    const struct blk_open_over over = {
        .driver = driver,
        .file = file,
        .data = create->data,
        .options = options,
        .flags = create->flags | BLK_WRITABLE,
        .cache = create->cache,
    };
    if (ret == 0)
        ret = blk_open_over(&over, root, err);
    if (ret < 0)
        blk_drop(create->data);
    create->data = NULL;
    return ret < 0 ? ret : sync_backing(root, file, err);
}

int blk_create_data(struct blk_create *create, const char *filename, struct blk_error *err)
{
    struct blk_options *options = blk_options_new();
    int ret = blk_filename_to_options(filename, options, err);
    if (ret == 0) {
        struct blk_options *bottom = blk_options_take_group(options, "file");
        ret = create_bottom(create, bottom, &create->data, err);
        blk_options_free(bottom);
    }
    if (ret == 0)
        ret = blk_check_name_to_store(blk_bottom(create->file)->name, filename, err);
    if (ret < 0)
        blk_context(err, "the external data file '%s'", filename);
    blk_options_free(options);
    return ret;
}

/*
 * The chain that the new image's header will lead to must not contain the image itself. It stays
 * open while the image is made: nor can its data file be a part of it then.
 */
static int hold_backing(const struct blk_create *create, struct blk_node *file,
                        struct blk_node **held, struct blk_error *err)
{
    const char *name = blk_options_peek(create->options, "backing_file");
    *held = NULL;
    if (!name || !*name || !create->driver->supports_backing)
        return 0;
    return blk_check_backing(file, name, blk_options_peek(create->options, "backing_fmt"), held,
                             err);
}

int blk_create(struct blk_create *create, struct blk_node **root, struct blk_error *err)
{
    struct blk_options *options;
    struct blk_node *file = NULL, *held = NULL;

    *root = NULL;
    int ret = target_options(create, &options, err);
    if (ret < 0)
        return ret;

    struct blk_options *bottom = blk_options_take_group(options, "file");
    ret = create_bottom(create, bottom, &file, err);
    if (ret == 0) {
        const char *unused = blk_options_first_unused(bottom);
        if (unused)
            ret = blk_fail_why(err, EINVAL, "there is no such option",
                               "creating '%s': option 'file.%s'", file->name, unused);
    }
    if (ret == 0)
        ret = hold_backing(create, file, &held, err);
    if (ret == 0)
        ret = create_over(create, file, options, root, err);
    bool made = ret == 0;
    ret = blk_close_after(held, ret, err);
    if (ret < 0)
        blk_drop(made ? *root : file);
    if (ret < 0)
        *root = NULL;
    else
        (*root)->reads_zero =
            create->driver->supports_backing ? !(*root)->backing_name : file->reads_zero;

    blk_options_free(bottom);
    blk_options_free(options);
    return ret;
}
