/* SPDX-License-Identifier: MIT */
/* File names: protocol prefixes, "json:", and backing file names relative to their overlay. */
#include "blockcore/graph/names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/open_files.h"

static bool is_json(const char *filename)
{
    return strncmp(filename, "json:", 5) == 0;
}

bool blk_has_protocol(const char *filename)
{
    size_t length = strcspn(filename, ":/");
    return filename[length] == ':';
}

const struct blk_driver *blk_protocol_of(const char *filename, struct blk_error *err)
{
    if (!blk_has_protocol(filename))
        return blk_driver_find("file");

    size_t length = strcspn(filename, ":");
    for (size_t i = 0; blk_drivers[i]; i++) {
        const char *prefix = blk_drivers[i]->prefix;
        if (prefix && strlen(prefix) == length && strncmp(prefix, filename, length) == 0)
            return blk_drivers[i];
    }
    blk_fail_why(err, ENOTSUP, "no such protocol (write ./NAME for a file of that name)",
                 "Could not open '%s': '%.*s:'", filename, (int)length, filename);
    return NULL;
}

const struct blk_driver *blk_protocol_by_filename(struct blk_options *options,
                                                  struct blk_error *err)
{
    BLK_AUTOFREE char *filename = blk_xstrdup(blk_options_peek(options, "filename"));
    if (!filename) {
        blk_fail_why(err, EINVAL, "neither driver nor filename is given", "Could not open a file");
        return NULL;
    }
    const struct blk_driver *driver = blk_protocol_of(filename, err);
    if (driver && blk_has_protocol(filename) && driver->parse_filename &&
        driver->parse_filename(filename, options, err) < 0)
        return NULL;
    return driver;
}

int blk_filename_to_options(const char *filename, struct blk_options *options,
                            struct blk_error *err)
{
    if (!*filename)
        return blk_fail_why(err, ENOENT, "the file name is empty", "Could not open ''");
    if (is_json(filename)) {
        int ret = blk_options_parse_json(options, filename + 5, err);
        blk_context(err, "Could not open the given json: image");
        return ret;
    }

    const struct blk_driver *protocol = blk_protocol_of(filename, err);
    if (!protocol)
        return -ENOTSUP;

    struct blk_options *file = blk_options_new();
    int ret = 0;
    if (blk_has_protocol(filename) && protocol->parse_filename)
        ret = protocol->parse_filename(filename, file, err);
    else
        blk_options_set(file, "filename", filename);
    blk_options_set(file, "driver", protocol->name);
    for (size_t i = 0; i < blk_options_count(file); i++) {
        BLK_AUTOFREE char *key = blk_xasprintf("file.%s", blk_options_key(file, i));
        blk_options_set(options, key, blk_options_value(file, i));
    }
    blk_options_free(file);
    return ret;
}

/* The options of the level that holds the bytes: below all formats and filters. */
static struct blk_options *bottom_options(struct blk_options *options)
{
    for (;;) {
        const char *group = blk_options_has_group(options, "file")    ? "file"
                            : blk_options_has_group(options, "image") ? "image"
                                                                      : NULL;
        if (!group)
            return options;
        struct blk_options *below = blk_options_take_group(options, group);
        blk_options_free(options);
        options = below;
        if (!blk_options_count(options))
            return options; /* a reference to another node */
    }
}

char *blk_file_path(const char *filename)
{
    struct blk_options *options = blk_options_new();
    char *path = NULL;

    if (blk_filename_to_options(filename, options, NULL) == 0) {
        options = bottom_options(options);
        const char *name = blk_options_peek(options, "filename");
        bool is_path = name && (blk_options_peek(options, "driver") || !blk_has_protocol(name));
        if (name && !is_path && strncmp(name, "json:", 5) != 0)
            path = blk_file_path(name);
        else if (is_path)
            path = blk_xstrdup(name);
    }
    blk_options_free(options);
    return path;
}

bool blk_same_file(const char *a, const char *b)
{
    BLK_AUTOFREE char *first = blk_file_path(a);
    BLK_AUTOFREE char *second = blk_file_path(b);
    return strcmp(a, b) == 0 || (first && second && blk_same_path(first, second));
}

/* Moves all of `from`, under "GROUP.", to `to`. */
static void move_under(struct blk_options *to, const char *group, struct blk_options *from)
{
    for (size_t i = 0; i < blk_options_count(from); i++) {
        BLK_AUTOFREE char *key = blk_xasprintf("%s.%s", group, blk_options_key(from, i));
        blk_options_set(to, key, blk_options_value(from, i));
    }
    blk_options_free(from);
}

void blk_name_filter_child(const struct blk_options *options, struct blk_options *by_name)
{
    const char *name = blk_options_peek(options, "driver");
    const struct blk_driver *driver = name ? blk_driver_find(name) : NULL;
    if (!driver || !driver->file_group || !blk_options_has_group(by_name, "file"))
        return;

    BLK_AUTOFREE char *wanted_key = blk_xasprintf("%s.driver", driver->file_group);
    const char *wanted = blk_options_peek(options, wanted_key);
    const struct blk_driver *child = wanted ? blk_driver_find(wanted) : NULL;
    struct blk_options *file = blk_options_take_group(by_name, "file");
    const char *file_driver = blk_options_peek(file, "driver");
    struct blk_options *image = file;
    if (file_driver && strcmp(file_driver, driver->name) == 0) {
        image = blk_options_take_group(file, driver->file_group);
        blk_options_merge_missing(by_name, file);
        blk_options_free(file);
    }
    BLK_AUTOFREE char *deeper = blk_xasprintf("%s.file", driver->file_group);
    move_under(by_name, child && child->kind != BLK_PROTOCOL ? deeper : driver->file_group, image);
}

char *blk_resolve_backing_name(const char *image, const char *backing)
{
    const char *slash = strrchr(image, '/');
    if (is_json(backing) || blk_has_protocol(backing) || *backing == '/' || !slash)
        return blk_xstrdup(backing);
    return blk_xasprintf("%.*s%s", (int)(slash + 1 - image), image, backing);
}

int blk_cache_mode_parse(const char *text, struct blk_cache_mode *mode)
{
    static const struct {
        const char *name;
        struct blk_cache_mode mode;
    } modes[] = {
        { "none", { .direct = true } },
        { "off", { .direct = true } },
        { "writeback", { .direct = false } },
        { "unsafe", { .no_flush = true } },
        { "writethrough", { .writethrough = true } },
        { "directsync", { .direct = true, .writethrough = true } },
    };

    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strcmp(modes[i].name, text) == 0) {
            *mode = modes[i].mode;
            return 0;
        }
    }
    return -EINVAL;
}
