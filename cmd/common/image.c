/* SPDX-License-Identifier: MIT */
/* Opening and creating the images of a command line as its options say. */
#include "cmd/common/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/clock.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/create.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/ops.h"
#include "cmd/common/dependents.h"

int image_cache(const char *text, struct blk_cache_mode *mode, struct blk_error *err)
{
    *mode = (struct blk_cache_mode){ 0 };
    if (!text || blk_cache_mode_parse(text, mode) == 0)
        return 0;
    return blk_fail_why(err, EINVAL,
                        "it is none of none, writeback, unsafe, writethrough, directsync",
                        "Invalid cache mode '%s'", text);
}

const struct blk_driver *image_driver(const char *format, struct blk_error *err)
{
    const struct blk_driver *driver = blk_driver_find(format);
    if (!driver)
        blk_driver_unknown(format, err);
    return driver;
}

int image_unknown_format(const char *format, struct blk_error *err)
{
    struct blk_error unknown = BLK_ERROR_INIT;

    blk_driver_unknown(format, &unknown);
    return blk_fail_why(err, EINVAL, unknown.why, "Unknown file format '%s'", format);
}

const struct blk_driver *image_driver_of_new(const char *format, struct blk_error *err)
{
    const struct blk_driver *driver = blk_driver_find(format);
    if (!driver) {
        image_unknown_format(format, err);
        return NULL;
    }
    return BLK_OP(driver, creation, make_node) ? blk_driver_find("raw") : driver;
}

int image_check_objects(const struct cmd_list *objects, struct blk_error *err)
{
    for (size_t i = 0; i < objects->count; i++) {
        const char *text = objects->items[i];
        size_t length = strcspn(text, ",");
        /*
         * A secret that nothing refers to is harmless; a node that refers to one says that it
         * cannot.
         */
        if (length != strlen("secret") || strncmp(text, "secret", length) != 0)
            return blk_fail_why(err, EINVAL, "only 'secret' objects are known", "--object %s",
                                text);
        if (!strstr(text + length, ",id="))
            return blk_fail_why(err, EINVAL, "it has no id", "--object %s", text);
    }
    return 0;
}

/* Whether a snapshot is what the two texts (NULL: any) say. */
static bool is_snapshot(const struct blk_snapshot *snapshot, const char *id, const char *name)
{
    return (!id || strcmp(id, snapshot->id) == 0) && (!name || strcmp(name, snapshot->name) == 0);
}

/* Loads the snapshot with both this id and this name, one of which may be NULL. */
static int load_exact_snapshot(struct blk_node *node, const char *id, const char *name,
                               struct blk_error *err)
{
    struct blk_snapshot *list = NULL;
    size_t count = 0, i = 0;

    int ret = blk_snapshot_list(node, &list, &count, err);
    if (ret < 0)
        return ret;
    while (i < count && !is_snapshot(&list[i], id, name))
        i++;
    if (i < count)
        ret = blk_snapshot_load(node, list[i].id, err);
    else
        ret = blk_fail_why(err, ENOENT, "there is none", "'%s': snapshot with %s%s%s%s", node->name,
                           id ? "id " : "", id ? id : "", name ? " name " : "", name ? name : "");
    blk_snapshots_free(list, count);
    return ret;
}

int image_load_snapshot(struct blk_node *node, const char *text, struct blk_error *err)
{
    node = blk_skip_filters(node);
    int ret =
        blk_require(node, BLK_SNAPSHOTS, err, "loading snapshot '%s' of '%s'", text, node->name);
    if (ret < 0 || strncmp(text, "snapshot.", strlen("snapshot.")) != 0)
        return ret < 0 ? ret : blk_snapshot_load(node, text, err);

    struct blk_options *options = blk_options_new();
    ret = blk_options_parse_keyval(options, text, NULL, err);
    const char *id = blk_options_get(options, "snapshot.id");
    const char *name = blk_options_get(options, "snapshot.name");
    if (ret == 0 && ((!id && !name) || blk_options_first_unused(options)))
        ret = blk_fail_why(err, EINVAL, "only snapshot.id and snapshot.name are known",
                           "snapshot '%s'", text);
    if (ret == 0)
        ret = load_exact_snapshot(node, id, name, err);
    blk_options_free(options);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "loading snapshot '%s' of '%s'", text, node->name)
                   : 0;
}

/*
 * What file nodes get by default, wherever they are in the graph; the caller frees. NULL: nothing.
 */
static struct blk_options *file_defaults(const struct image_args *args)
{
    if (!args->lock_wait.given && !args->aio)
        return NULL;
    struct blk_options *defaults = blk_options_new();
    if (args->lock_wait.given)
        blk_options_setf(defaults, "lock-wait", "%" PRIu64, args->lock_wait.value);
    if (args->aio)
        blk_options_set(defaults, "aio", args->aio);
    return defaults;
}

/* What cannot be meant, before anything is opened. */
static int check_image_args(const struct image_args *args, const char *name, unsigned flags,
                            struct blk_error *err)
{
    if (args->image_opts && args->format)
        return blk_fail_why(err, EINVAL, "--image-opts and -f exclude each other", "%s", name);
    if (args->force_share && (flags & BLK_WRITABLE))
        return blk_fail_why(err, EINVAL, "-U is for reading only", "%s", name);
    if (args->format && !image_driver(args->format, err)) {
        blk_context(err, "Could not open '%s'", name);
        return -EINVAL;
    }
    return image_check_objects(&args->objects, err);
}

unsigned image_flags(const struct image_args *args)
{
    return (args->force_share ? BLK_FORCE_SHARE : 0) | (args->trust ? BLK_TRUST : 0);
}

/* Callers look for these words wherever an image cannot be opened, whatever the cause. */
static void say_not_opened(const char *name, struct blk_error *err)
{
    if (err && !strstr(err->what, "Could not open"))
        blk_context(err, "Could not open '%s'", name);
}

int image_open(const struct image_args *args, const char *name, unsigned flags, const char *cache,
               struct blk_node **root, struct blk_error *err)
{
    struct blk_open how = {
        .filename = args->image_opts ? NULL : name,
        .format = args->format,
        .flags = flags | image_flags(args),
    };
    *root = NULL;

    int ret = check_image_args(args, name, flags, err);
    if (ret < 0)
        return ret;
    ret = image_cache(cache, &how.cache, err);
    if (ret < 0)
        return ret;

    struct blk_options *options = NULL;
    if (args->image_opts) {
        options = blk_options_new();
        ret = blk_options_parse_keyval(options, name, NULL, err);
        if (ret < 0) {
            blk_options_free(options);
            return blk_fail_if_unset(err, -ret, "reading the options '%s'", name);
        }
        how.options = options;
    }
    struct blk_options *defaults = file_defaults(args);
    how.defaults = defaults;

    ret = blk_open(&how, root, err);
    blk_options_free(defaults);
    blk_options_free(options);
    if (ret == 0)
        return 0;
    /* What is to be written cannot be opened with -U, whichever part of it is in use. */
    if (err && err->busy && flags & BLK_WRITABLE)
        err->busy = BLK_BUSY_FOR_WRITING;
    blk_fail_if_unset(err, -ret, "Could not open '%s'", name);
    say_not_opened(name, err);
    return ret;
}

/* For callers that cannot pass an option on. */
static bool wants_in_place(const struct image_args *args)
{
    const char *text = getenv("BLKIMG_IN_PLACE");
    return args->in_place || (text && *text && strcmp(text, "0") != 0);
}

int image_give_way(const struct image_args *args, uint64_t start, struct blk_node **root,
                   struct blk_error *err)
{
    if ((blk_now_ns() - start) / 1000000000 >= args->lock_wait.value) {
        err->busy_seconds = args->lock_wait.value;
        return -EAGAIN;
    }
    blk_error_clear(err);
    int ret = blk_close_after(*root, 0, err);
    *root = NULL;
    return ret;
}

int image_create(const struct image_args *args, const struct image_creation *creation,
                 struct blk_node **root, struct blk_error *err)
{
    struct blk_create how = {
        .filename = creation->name,
        .driver = creation->driver,
        .options = creation->options,
        .flags = creation->flags,
        .in_place = wants_in_place(args),
    };
    *root = NULL;

    int ret = image_cache(creation->cache, &how.cache, err);
    if (ret < 0)
        return ret;
    ret = check_no_dependents(args, creation->name, err);
    if (ret < 0)
        return ret;
    if (creation->options)
        ret = check_file_no_dependents(args, blk_options_peek(creation->options, "data_file"), err);
    if (ret < 0)
        return ret;
    struct blk_options *defaults = file_defaults(args);
    how.defaults = defaults;
    ret = blk_create(&how, root, err);
    blk_options_free(defaults);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "creating '%s'", creation->name) : 0;
}
