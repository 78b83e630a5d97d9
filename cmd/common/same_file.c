#include "cmd/common/same_file.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "blockcore/driver.h"
#include "blockcore/open.h"
#include "blockcore/options.h"

static bool is_same(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
        return a->st_rdev == b->st_rdev;
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool is_same_file(const char *a, const char *b)
{
    struct stat first, second;
    if (strcmp(a, b) == 0)
        return true;
    return stat(a, &first) == 0 && stat(b, &second) == 0 && is_same(&first, &second);
}

/* The first protocol node of the graph whose file `st` is, or NULL. */
static const struct blk_node *find_file(const struct blk_node *node, const struct stat *st)
{
    struct stat own;
    if (node->driver->kind == BLK_PROTOCOL)
        return stat(node->name, &own) == 0 && is_same(&own, st) ? node : NULL;

    for (int role = 0; role < BLK_ROLE_COUNT; role++) {
        const struct blk_node *child = node->children[role];
        const struct blk_node *found = child ? find_file(child, st) : NULL;
        if (found)
            return found;
    }
    return NULL;
}

/* Whether an option names a file: "filename", at whatever level. */
static bool is_filename_key(const char *key)
{
    const char *last = strrchr(key, '.');
    return strcmp(last ? last + 1 : key, "filename") == 0;
}

int check_apart(const struct blk_node *source, const char *name, bool image_opts,
                struct blk_error *err)
{
    struct blk_options *options = blk_options_new();
    int ret = image_opts ? blk_options_parse_keyval(options, name, NULL, err)
                         : blk_filename_to_options(name, options, err);

    for (size_t i = 0; ret == 0 && i < blk_options_count(options); i++) {
        struct stat st;
        const char *file = blk_options_value(options, i);
        if (!is_filename_key(blk_options_key(options, i)) || stat(file, &st) < 0)
            continue;
        const struct blk_node *used = find_file(source, &st);
        if (used)
            ret = blk_fail_why(err, EINVAL, "it would be overwritten",
                               "the target '%s' is the same file as '%s', a part of '%s'", name,
                               used->name, source->name);
    }
    blk_options_free(options);
    return ret;
}

int check_not_shrunk(const struct blk_node *source, struct blk_error *err)
{
    struct stat st;
    if (source->driver->kind == BLK_PROTOCOL && stat(source->name, &st) == 0 &&
        S_ISREG(st.st_mode) && (uint64_t)st.st_size < blk_size(source))
        return blk_fail_why(err, EIO, "it became shorter while it was read", "reading '%s'",
                            source->name);

    for (int role = 0; role < BLK_ROLE_COUNT; role++) {
        const struct blk_node *child = source->children[role];
        int ret = child ? check_not_shrunk(child, err) : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}
