/* SPDX-License-Identifier: MIT */
/* How a header names a backing file, and opening one that a new image will have. */
#include "cmd/common/backing.h"

#include <libgen.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/names.h"

int backing_open(const struct image_args *args, const char *name, unsigned flags,
                 const char *overlay, struct blk_node **backing, struct blk_error *err)
{
    int ret = image_open(args, name, flags, NULL, backing, err);
    if (ret < 0)
        blk_context(err, "the backing file of '%s'", overlay);
    return ret;
}

char *backing_name_for_header(const char *overlay, const char *backing)
{
    BLK_AUTOFREE char *overlay_copy = blk_xstrdup(overlay);
    BLK_AUTOFREE char *directory = realpath(dirname(overlay_copy), NULL);
    char *path = realpath(backing, NULL);
    if (!path)
        return blk_xstrdup(backing);

    size_t length = directory ? strlen(directory) : 0;
    if (directory && strncmp(path, directory, length) == 0 && path[length] == '/' &&
        !strchr(path + length + 1, '/')) {
        const char *base = path + length + 1;
        /* "12:00" would be the file "00" of a protocol "12". */
        char *name = blk_xasprintf("%s%s", blk_has_protocol(base) ? "./" : "", base);
        free(path);
        return name;
    }
    return path;
}
