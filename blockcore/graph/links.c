/* SPDX-License-Identifier: MIT */
/* Following links one step at a time, and telling descriptors from names. */
#include "blockcore/graph/links.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/graph/names.h"

int blk_follow_symlink(char **path)
{
    char text[PATH_MAX];
    ssize_t length = blk_sys->readlinkat(AT_FDCWD, *path, text, sizeof(text));
    if (length < 0)
        return -errno;
    if (length == 0 || (size_t)length == sizeof(text))
        return -ENAMETOOLONG;
    const char *slash = strrchr(*path, '/');
    int directory = text[0] != '/' && slash ? (int)(slash - *path + 1) : 0;
    char *next = blk_xasprintf("%.*s%.*s", directory, *path, (int)length, text);
    free(*path);
    *path = next;
    return 0;
}

bool blk_is_descriptor_link(const char *path)
{
    const char *slash = strrchr(path, '/');
    BLK_AUTOFREE char *directory =
        slash ? blk_xstrndup(path, (size_t)(slash - path) + 1) : blk_xstrdup(".");
    struct statfs fs;
    return blk_sys->statfs(directory, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC;
}

static bool leads_to_descriptor(const char *name)
{
    BLK_AUTOFREE char *path = blk_xstrdup(name);
    struct stat st;

    for (int links = 0; links <= BLK_MAX_SYMLINKS; links++) {
        if (blk_sys->fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISLNK(st.st_mode))
            return false;
        if (blk_is_descriptor_link(path))
            return true;
        if (blk_follow_symlink(&path) < 0)
            return false;
    }
    return false;
}

int blk_check_name_to_store(const char *image, const char *name, struct blk_error *err)
{
    BLK_AUTOFREE char *beside = blk_resolve_backing_name(image, name);
    BLK_AUTOFREE char *path = blk_file_path(beside);

    if (!path || !leads_to_descriptor(path))
        return 0;
    return blk_fail_why(err, EINVAL,
                        "it is a descriptor of a process, which nobody finds there later",
                        "storing the name '%s' in '%s'", name, image);
}
