/* SPDX-License-Identifier: MIT */
/* Looks through the directory of a backup for images that have it as their backing file or base. */
#include "cmd/common/dependents.h"

#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockcore/base/memory.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/open.h"

/* Opens the header of the file at `path`; NULL if that cannot be done. For blk_drop(). */
static struct blk_node *open_header(const char *path)
{
    struct blk_options *options = blk_options_new();
    struct blk_error unreadable = BLK_ERROR_INIT;
    struct blk_node *root = NULL;

    blk_options_set(options, "file.driver", "file");
    blk_options_set(options, "file.filename", path);
    blk_options_set(options, "file.locking", "off");
    const struct blk_open how = {
        .options = options,
        .flags = BLK_NO_BACKING | BLK_NO_IO | BLK_FORCE_SHARE,
    };
    if (blk_open(&how, &root, &unreadable) < 0)
        root = NULL;
    blk_options_free(options);
    return root;
}

/* Whether the image at `path` shows what the backup `id` at `target` holds. */
static bool depends(const char *path, const char *target, const struct blk_id *id)
{
    struct blk_error unreadable = BLK_ERROR_INIT;
    struct blk_node *root = open_header(path);
    struct blk_identity identity;
    bool result = false;

    if (!root)
        return false;
    struct blk_node *node = blk_skip_filters(root);
    if (node->backing_name) {
        BLK_AUTOFREE char *below = blk_resolve_backing_name(path, node->backing_name);
        result = blk_same_file(below, target);
    } else if (blk_identity_of(node, &identity, &unreadable) == 0) {
        /* A part of a disk that has not been put on its base yet. */
        result = blk_id_equal(&identity.parent, id);
    }
    blk_drop(root);
    return result;
}

static bool is_regular(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* The path of the first image next to `target` that depends on it, or NULL. malloc()ed. */
static char *find_dependent(const char *target, const struct blk_id *id)
{
    BLK_AUTOFREE char *copy = blk_xstrdup(target);
    const char *directory = dirname(copy);
    DIR *list = opendir(directory);
    char *found = NULL;

    for (size_t i = 0; list && !found && i < DEPENDENTS_MAX_FILES; i++) {
        const struct dirent *entry = readdir(list);
        if (!entry)
            break;
        BLK_AUTOFREE char *path = blk_xasprintf("%s/%s", directory, entry->d_name);
        if (is_regular(path) && !blk_same_file(path, target) && depends(path, target, id))
            found = blk_xstrdup(path);
    }
    if (list)
        closedir(list);
    return found;
}

static int look_for_dependent(const char *target, struct blk_error *err)
{
    struct blk_error unreadable = BLK_ERROR_INIT;
    struct blk_identity identity = { .bitmap_count = 0 };
    char text[BLK_ID_TEXT_BYTES];
    struct blk_node *root = is_regular(target) ? open_header(target) : NULL;

    if (!root)
        return 0;
    int ret = blk_identity_of(blk_skip_filters(root), &identity, &unreadable);
    blk_drop(root);
    if (ret < 0 || !blk_id_is_known(&identity.backup))
        return 0;
    /* Its overlays are next to the file itself, wherever a link to it is. */
    BLK_AUTOFREE char *real = realpath(target, NULL);
    BLK_AUTOFREE char *dependent = find_dependent(real ? real : target, &identity.backup);
    if (!dependent)
        return 0;
    blk_id_format(&identity.backup, text);
    BLK_AUTOFREE char *why =
        blk_xasprintf("'%s' depends on it (--force overwrites it anyway)", dependent);
    return blk_fail_why(err, EEXIST, why, "overwriting '%s', which is backup %s", target, text);
}

/* Whether an option names a file: "filename", at whatever level. */
static bool is_filename_key(const char *key)
{
    const char *last = strrchr(key, '.');
    return strcmp(last ? last + 1 : key, "filename") == 0;
}

int check_file_no_dependents(const struct image_args *args, const char *path, struct blk_error *err)
{
    return args->force || !path || !*path ? 0 : look_for_dependent(path, err);
}

int check_no_dependents(const struct image_args *args, const char *name, struct blk_error *err)
{
    struct blk_error own = BLK_ERROR_INIT; /* a name that is wrong is the opener's to report */
    int ret = 0;

    if (args->force || !name)
        return 0;
    struct blk_options *options = blk_options_new();
    bool known = (args->image_opts ? blk_options_parse_keyval(options, name, NULL, &own)
                                   : blk_filename_to_options(name, options, &own)) == 0;
    for (size_t i = 0; known && ret == 0 && i < blk_options_count(options); i++)
        if (is_filename_key(blk_options_key(options, i)))
            ret = look_for_dependent(blk_options_value(options, i), err);
    blk_options_free(options);
    return ret;
}
