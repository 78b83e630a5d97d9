/* SPDX-License-Identifier: MIT */
/*
 * Opening a graph from options. Children come first: a format's file child is open before the
 * format looks at it, and its backing child is opened after, by the name that its header gives.
 */
#include "blockcore/graph/open.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "blockcore/base/memory.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/general_options.h"
#include "blockcore/graph/links.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/open_files.h"
#include "blockcore/graph/probe.h"

/* An overlay that is being opened, so that a backing chain which leads back to it is noticed. */
struct overlay {
    const struct blk_node *node;
    const char *path; /* canonical */
    const struct overlay *above;
    unsigned depth;
};

/* Nobody stacks so many; each level costs a descriptor and stack. */
#define MAX_CHAIN 1000

/* What a node inherits from the one that opens it. */
struct open_context {
    unsigned flags;
    struct blk_cache_mode cache;
    const struct blk_options *defaults;
    const struct overlay *overlays;
    enum blk_detect_zeroes detect_zeroes; /* of this node: not inherited */
    bool protocol; /* without a driver the node is a protocol: nothing is probed */
    bool probed;   /* of a format: it was guessed; not inherited */
};

static int open_node(struct blk_options *options, const struct open_context *context,
                     struct blk_node **node, struct blk_error *err);

/* The options that every node has, whatever its driver. */
static int read_general_options(struct blk_options *options, struct open_context *context,
                                struct blk_error *err)
{
    bool read_only = !(context->flags & BLK_WRITABLE), auto_read_only = false;
    bool share = context->flags & BLK_FORCE_SHARE;
    bool trust = context->flags & BLK_TRUST;

    const struct {
        const char *name;
        bool *value;
    } switches[] = {
        { "read-only", &read_only },
        { "auto-read-only", &auto_read_only },
        { "force-share", &share },
        { "trust", &trust },
        { "cache.direct", &context->cache.direct },
        { "cache.no-flush", &context->cache.no_flush },
    };
    for (size_t i = 0; i < ARRAY_SIZE(switches); i++) {
        int ret = blk_options_get_bool(options, switches[i].name, switches[i].value, err);
        if (ret < 0)
            return ret;
    }

    struct blk_general_options general = { .unmap = context->flags & BLK_UNMAP };
    int ret = blk_general_options_read(options, &general, err);
    if (ret < 0)
        return ret;
    context->detect_zeroes = general.detect_zeroes;
    context->flags = (context->flags & ~(unsigned)BLK_UNMAP) | (general.unmap ? BLK_UNMAP : 0);

    if (read_only && context->flags & BLK_WRITABLE) {
        if (!auto_read_only)
            return blk_fail_why(err, EACCES, "its options say read-only",
                                "Could not open an image for writing");
        context->flags &= ~(unsigned)BLK_WRITABLE;
    }
    context->flags |= (trust ? BLK_TRUST : 0) | (share ? BLK_FORCE_SHARE : 0);
    if (context->flags & BLK_FORCE_SHARE && context->flags & BLK_WRITABLE)
        return blk_fail_why(err, EINVAL, "force-share goes with read-only access only",
                            "Could not open an image for writing");
    return 0;
}

static int check_all_used(const struct blk_node *node, const struct blk_options *options,
                          struct blk_error *err)
{
    const char *unused = blk_options_first_unused(options);
    if (!unused)
        return 0;
    return blk_fail_why(err, EINVAL, "there is no such option",
                        "Could not open '%s' (%s): option '%s'", node->name, node->driver->name,
                        unused);
}

/* A child given as a word is a reference by node name, as a running QEMU has them. */
static int no_such_node(const char *option, const char *name, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, "there are no other nodes to refer to",
                        "option '%s' has the value '%s'", option, name);
}

/* Releases a node that could not be opened, with the children that it has already got. */
static void discard_node(struct blk_node *node)
{
    for (int role = 0; role < BLK_ROLE_COUNT; role++) {
        blk_drop(node->children[role]);
        node->children[role] = NULL;
    }
    blk_bitmaps_free(node);
    blk_node_free(node);
}

/*
 * Runs the driver's open on a node whose file child, if any, is attached; then opens its backing
 * file.
 */
static int finish_open(struct blk_node *node, struct blk_options *options,
                       const struct open_context *context, struct blk_error *err);

static int open_protocol(const struct blk_driver *driver, struct blk_options *options,
                         const struct open_context *context, struct blk_node **result,
                         struct blk_error *err)
{
    const char *filename = blk_options_peek(options, "filename");

    blk_options_merge_optional(options, context->defaults);
    struct blk_node *node =
        blk_node_new(driver, filename ? filename : driver->name, context->flags, context->cache);
    int ret = finish_open(node, options, context, err);
    if (ret < 0)
        discard_node(node);
    else
        *result = node;
    return ret;
}

/*
 * Opens the options' file child. A format's file is a protocol; a filter's is whatever the filter
 * would be, but what a file name stands for is a protocol too.
 */
static int open_file_child(const struct blk_driver *driver, struct blk_options *options,
                           const struct open_context *context, struct blk_node **file,
                           struct blk_error *err)
{
    const char *group = "file";
    if (driver && driver->file_group && blk_options_has_group(options, driver->file_group))
        group = driver->file_group;

    const char *reference = blk_options_peek(options, group);
    struct blk_options *sub = blk_options_take_group(options, group);
    int ret;
    if (reference) {
        ret = no_such_node(group, reference, err);
    } else if (blk_options_count(sub) == 0) {
        ret = blk_fail_why(err, EINVAL, "no file is named (option 'file.filename')",
                           "Could not open an image%s%s", driver ? " with driver " : "",
                           driver ? driver->name : "");
    } else {
        struct open_context below = *context;
        /*
         * This node decides what may be unmapped; what it then asks for, the file may do (as in
         * QEMU).
         */
        below.flags |= BLK_UNMAP;
        if (!driver || driver->kind == BLK_FORMAT || blk_options_peek(sub, "filename"))
            below.protocol = true;
        ret = open_node(sub, &below, file, err);
    }
    blk_options_free(sub);
    return ret;
}

/* The context has flags and cache; the options are there. */
static int open_over(const struct blk_open_over *over, const struct open_context *context,
                     struct blk_node **result, struct blk_error *err)
{
    struct open_context own = *context;
    if (!blk_is_writable(over->file))
        own.flags &= ~(unsigned)BLK_WRITABLE;

    struct blk_node *node = blk_node_new(over->driver, over->file->name, own.flags, own.cache);
    node->probed = own.probed;
    node->unnamed = over->file->unnamed;
    blk_node_attach(node, BLK_ROLE_FILE, over->file);
    if (over->data)
        blk_node_attach(node, BLK_ROLE_DATA, over->data);
    int ret = finish_open(node, over->options, &own, err);
    if (ret < 0) {
        node->children[BLK_ROLE_FILE] = NULL; /* the caller keeps it */
        if (over->data)
            node->children[BLK_ROLE_DATA] = NULL;
        discard_node(node);
        return ret;
    }
    *result = node;
    return 0;
}

/* Formats and filters, and the case that the format has to be found out. */
static int open_format(const struct blk_driver *driver, struct blk_options *options,
                       const struct open_context *context, struct blk_node **result,
                       struct blk_error *err)
{
    struct blk_open_over over = { .driver = driver, .options = options };
    struct open_context own = *context;

    int ret = open_file_child(driver, options, context, &over.file, err);
    if (ret < 0)
        return ret;
    own.probed = !driver;
    if (own.probed)
        ret = blk_probe_file(over.file, &over.driver, err);
    if (ret == 0)
        ret = open_over(&over, &own, result, err);
    if (ret < 0)
        blk_drop(over.file);
    return ret;
}

static int open_node(struct blk_options *options, const struct open_context *context,
                     struct blk_node **node, struct blk_error *err)
{
    struct open_context own = *context;

    *node = NULL;
    int ret = read_general_options(options, &own, err);
    if (ret < 0)
        return ret;

    const char *name = blk_options_get(options, "driver");
    const struct blk_driver *driver = name ? blk_driver_find(name) : NULL;
    if (name && !driver)
        return blk_driver_unknown(name, err);
    if (!driver && own.protocol) {
        driver = blk_protocol_by_filename(options, err);
        if (!driver)
            return err && err->code ? -err->code : -EINVAL;
    }
    if (driver && driver->kind == BLK_PROTOCOL)
        return open_protocol(driver, options, &own, node, err);
    return open_format(driver, options, &own, node, err);
}

/* ---- file names ---- */

/* Adds what a file name stands for; what `options` say already comes first, as in QEMU. */
static int add_filename(struct blk_options *options, const char *filename, struct blk_error *err)
{
    struct blk_options *by_name = blk_options_new();
    int ret = blk_filename_to_options(filename, by_name, err);
    if (ret == 0)
        blk_name_filter_child(options, by_name);
    blk_options_merge_missing(options, by_name);
    blk_options_free(by_name);
    return ret;
}

/*
 * A protocol that was asked for by name with a plain file name: its options lie in the file group.
 */
static void lift_protocol_options(struct blk_options *options)
{
    const char *name = blk_options_peek(options, "driver");
    const struct blk_driver *driver = name ? blk_driver_find(name) : NULL;
    if (!driver || driver->kind != BLK_PROTOCOL)
        return;
    struct blk_options *file = blk_options_take_group(options, "file");
    blk_options_merge_missing(options, file);
    blk_options_free(file);
}

/* ---- backing files ---- */

/* Whether the file of `node` is already open above, under whatever name. */
static bool is_above(const struct blk_node *node, const struct overlay *above)
{
    for (; above; above = above->above)
        if (blk_open_files_share(node, above->node))
            return true;
    return false;
}

/* Whether `path` is already open above. */
static bool leads_back(const char *path, const struct overlay *above)
{
    for (; above; above = above->above)
        if (strcmp(above->path, path) == 0)
            return true;
    return false;
}

/* The name by which loops are noticed: symlinks resolved where it is a file. malloc()ed. */
static char *canonical_name(const char *name)
{
    char *real = realpath(name, NULL);
    return real ? real : blk_xstrdup(name);
}

static int loop_failed(const char *name, struct blk_error *err)
{
    return blk_fail_why(err, ELOOP, "the backing chain leads back to itself", "'%s'", name);
}

/*
 * What a backing file is called, and its format or NULL: by the image's header, or by who wants to
 * change that.
 */
struct backing_name {
    const char *name, *format;
};

/* Adds where the backing file is that the image knows by `name`. */
static int options_from_name(struct blk_node *node, const char *name,
                             const struct overlay *overlays, struct blk_options *options,
                             struct blk_error *err)
{
    BLK_AUTOFREE char *resolved = blk_resolve_backing_name(blk_bottom(node)->name, name);
    BLK_AUTOFREE char *path = canonical_name(resolved);
    if (leads_back(path, overlays))
        return loop_failed(resolved, err);
    return add_filename(options, resolved, err);
}

/*
 * Opens what `options` (the user's "backing.*") and the name describe as what could lie behind
 * `node`.
 */
static int open_behind(struct blk_node *node, struct blk_options *options,
                       const struct backing_name *named, const struct open_context *context,
                       struct blk_node **backing, struct blk_error *err)
{
    BLK_AUTOFREE char *own_path = canonical_name(blk_bottom(node)->name);
    struct overlay link = {
        .node = node,
        .path = own_path,
        .above = context->overlays,
        .depth = context->overlays ? context->overlays->depth + 1 : 0,
    };
    /* A json: name or a hard link was not known by its path before it was opened. */
    if (leads_back(own_path, context->overlays) || is_above(node, context->overlays))
        return loop_failed(node->name, err);
    if (link.depth >= MAX_CHAIN)
        return blk_fail_why(err, ELOOP, "the backing chain is too long", "'%s'", node->name);

    bool names_file =
        blk_options_has_group(options, "file") || blk_options_peek(options, "filename");
    if (named->format && !blk_options_peek(options, "driver"))
        blk_options_set(options, "driver", named->format);
    int ret = 0;
    if (!names_file && named->name)
        ret = options_from_name(node, named->name, &link, options, err);
    if (ret < 0)
        return ret;
    lift_protocol_options(options);

    struct open_context below = *context;
    below.flags &= ~(unsigned)(BLK_WRITABLE | BLK_IN_CHECK);
    below.overlays = &link;
    below.protocol = false;
    return open_node(options, &below, backing, err);
}

static int open_and_attach_backing(struct blk_node *node, struct blk_options *options,
                                   const struct open_context *context, struct blk_error *err)
{
    const struct backing_name named = { node->backing_name, node->backing_format };
    struct blk_node *backing;

    int ret = open_behind(node, options, &named, context, &backing, err);
    if (ret == 0)
        blk_node_attach(node, BLK_ROLE_BACKING, backing);
    else if (ret == -EMEDIUMTYPE && !named.format)
        blk_context(err, "the header gives no format (see 'rebase -u -F raw')");
    return ret;
}

int blk_open_new_backing(struct blk_node *node, const struct blk_open *how,
                         struct blk_node **backing, struct blk_error *err)
{
    const struct backing_name named = { how->filename, how->format };
    struct open_context context = {
        .flags = how->flags | (node->flags & BLK_TRUST),
        .cache = how->cache,
        .defaults = node->defaults,
    };
    struct blk_options *options = blk_options_new();

    *backing = NULL;
    int ret = open_behind(node, options, &named, &context, backing, err);
    if (ret < 0)
        blk_context(err, "new backing file of '%s'", node->name);
    blk_options_free(options);
    return ret;
}

/* Opens what it can of the chain; what fails for another reason than an alias is not judged. */
static int look_for_alias(struct blk_node *node, const struct backing_name *named, unsigned flags,
                          struct blk_node **backing, struct blk_error *err)
{
    const struct blk_open how = {
        .filename = named->name,
        .format = named->format,
        .flags = flags | BLK_FORCE_SHARE,
    };
    struct blk_error why = BLK_ERROR_INIT;

    int ret = blk_open_new_backing(node, &how, backing, &why);
    if ((ret == -ENOTUNIQ || ret == -ELOOP) && err)
        *err = why;
    return ret;
}

/* The image may be opened by another name than now (/dev/fd/3, a symlink), where that differs. */
static int check_by_real_name(struct blk_node *node, const struct backing_name *named,
                              struct blk_error *err)
{
    const char *image = blk_bottom(node)->name;
    BLK_AUTOFREE char *real = canonical_name(image);
    BLK_AUTOFREE char *now = blk_resolve_backing_name(image, named->name);
    BLK_AUTOFREE char *then = blk_resolve_backing_name(real, named->name);
    struct blk_node *backing;

    if (strcmp(now, then) == 0 || blk_same_path(now, then))
        return 0;
    const struct backing_name other = { then, named->format };
    int ret = look_for_alias(node, &other, 0, &backing, err);
    if (ret < 0)
        return ret == -ENOTUNIQ || ret == -ELOOP ? ret : 0;
    return blk_close_after(backing, 0, err);
}

/* blk_check_backing() but for the name itself. */
static int check_aliases(struct blk_node *node, const char *name, const char *format,
                         struct blk_node **held, struct blk_error *err)
{
    const struct backing_name named = { name, format };
    struct blk_node *backing;

    if (held)
        *held = NULL;
    int ret = look_for_alias(node, &named, 0, &backing, err);
    /* An image that is damaged or in need of a repair still has a header. */
    if (ret < 0 && ret != -ENOTUNIQ && ret != -ELOOP)
        ret = look_for_alias(node, &named, BLK_NO_IO, &backing, err);
    if (ret < 0)
        return ret == -ENOTUNIQ || ret == -ELOOP ? ret : check_by_real_name(node, &named, err);
    ret = check_by_real_name(node, &named, err);
    if (ret < 0 || !held)
        return blk_close_after(backing, ret, err);
    *held = backing;
    return 0;
}

int blk_check_backing(struct blk_node *node, const char *name, const char *format,
                      struct blk_node **held, struct blk_error *err)
{
    int ret = check_aliases(node, name, format, held, err);
    if (ret == 0)
        ret = blk_check_name_to_store(blk_bottom(node)->name, name, err);
    if (ret < 0 && held) {
        ret = blk_close_after(*held, ret, err);
        *held = NULL;
    }
    return ret;
}

static int open_backing_in(struct blk_node *node, struct blk_options *options,
                           const struct open_context *context, struct blk_error *err)
{
    const char *given = blk_options_get(options, "backing");
    if (given && *given)
        return no_such_node("backing", given, err);
    struct blk_options *sub = blk_options_take_group(options, "backing");
    bool none = given || context->flags & BLK_NO_BACKING ||
                (!node->backing_name && blk_options_count(sub) == 0);

    int ret = none ? 0 : open_and_attach_backing(node, sub, context, err);
    if (ret < 0)
        blk_context(err, "backing file of '%s'", node->name);
    blk_options_free(sub);
    return ret;
}

/* Every chain that is read passes here, whatever the command. */
static int check_chain(struct blk_node *node, struct blk_error *err)
{
    if (node->flags & (BLK_TRUST | BLK_NO_BACKING))
        return 0;
    return blk_identity_check(node, blk_child(node, BLK_ROLE_BACKING), err);
}

static int finish_open(struct blk_node *node, struct blk_options *options,
                       const struct open_context *context, struct blk_error *err)
{
    blk_options_get(options, "node-name"); /* taken as QEMU does; nothing refers to nodes by it */
    node->options = blk_options_copy(options);
    node->detect_zeroes = context->detect_zeroes;
    node->defaults = context->defaults ? blk_options_copy(context->defaults) : NULL;

    int ret = node->driver->open(node, options, err);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "Could not open '%s'", node->name);
    if (node->driver->supports_backing)
        ret = open_backing_in(node, options, context, err);
    if (ret == 0)
        ret = check_chain(node, err);
    if (ret == 0)
        ret = check_all_used(node, options, err);
    if (ret < 0 && node->driver->release)
        node->driver->release(node, NULL);
    return ret;
}

/* ---- the entries ---- */

static int set_format(struct blk_options *options, const char *format, struct blk_error *err)
{
    const char *given = blk_options_peek(options, "driver");
    if (!format)
        return 0;
    if (!blk_driver_find(format))
        return blk_driver_unknown(format, err);
    if (given && strcmp(given, format) != 0)
        return blk_fail_why(err, EINVAL, "the image's own options name another driver",
                            "format '%s' and driver '%s'", format, given);
    blk_options_set(options, "driver", format);
    return 0;
}

int blk_open(const struct blk_open *how, struct blk_node **root, struct blk_error *err)
{
    struct blk_options *options = how->options ? blk_options_copy(how->options) : blk_options_new();
    struct open_context context = {
        .flags = how->flags,
        .cache = how->cache,
        .defaults = how->defaults,
    };

    *root = NULL;
    int ret = set_format(options, how->format, err);
    if (ret == 0 && how->filename)
        ret = add_filename(options, how->filename, err);
    if (ret == 0) {
        lift_protocol_options(options);
        ret = open_node(options, &context, root, err);
    }
    blk_options_free(options);
    return ret;
}

int blk_open_child(struct blk_node *parent, enum blk_role role, struct blk_options *options,
                   const char *group, bool protocol, struct blk_error *err)
{
    struct open_context context = {
        .flags = parent->flags | BLK_UNMAP,
        .cache = parent->cache,
        .defaults = parent->defaults,
        .protocol = protocol,
    };
    struct blk_options *sub = blk_options_take_group(options, group);
    struct blk_node *child;

    int ret = open_node(sub, &context, &child, err);
    if (ret == 0)
        blk_node_attach(parent, role, child);
    blk_options_free(sub);
    return ret;
}

int blk_open_over(const struct blk_open_over *over, struct blk_node **node, struct blk_error *err)
{
    struct open_context context = {
        .flags = over->flags,
        .cache = over->cache,
        .defaults = over->file->defaults,
    };
    struct blk_open_over own = *over;
    struct blk_options *none = NULL;
    int ret = 0;

    *node = NULL;
    if (over->options)
        ret = read_general_options(over->options, &context, err);
    else
        own.options = none = blk_options_new();
    if (ret == 0)
        ret = open_over(&own, &context, node, err);
    blk_options_free(none);
    return ret;
}
