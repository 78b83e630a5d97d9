/*
 * File names: protocol prefixes, "json:", and how a
 * backing file's name is read from where its overlay lies.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/driver.h"
#include "blockcore/memory.h"
#include "blockcore/open.h"

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
                 "opening '%s': '%.*s:'", filename, (int)length, filename);
    return NULL;
}

int blk_filename_to_options(const char *filename, struct blk_options *options,
                            struct blk_error *err)
{
    if (!*filename)
        return blk_fail_why(err, ENOENT, "the file name is empty", "opening ''");
    if (is_json(filename)) {
        int ret = blk_options_parse_json(options, filename + 5, err);
        blk_context(err, "opening the given json: image");
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
