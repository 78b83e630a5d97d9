/* SPDX-License-Identifier: MIT */
/* A link never replaces a name, so it is tried first; then renameat2(2); then a look before. */
#include "blockcore/base/rename.h"

#include <errno.h>
#include <stdio.h>

#include "blockcore/base/sys.h"

bool blk_rename_is_unsupported(int code)
{
    return code == EPERM || code == EOPNOTSUPP || code == ENOSYS || code == EINVAL ||
           code == EMLINK;
}

/* The file has both names. */
static int drop_old_name(int directory, const char *from, const char *to)
{
    if (blk_sys->unlinkat(directory, from, 0) == 0)
        return 0;
    int ret = -errno;
    (void)blk_sys->unlinkat(directory, to, 0);
    return ret;
}

int blk_rename_to_free(int directory, const char *from, const char *to)
{
    if (blk_sys->linkat(directory, from, directory, to, 0) == 0)
        return drop_old_name(directory, from, to);
    if (!blk_rename_is_unsupported(errno))
        return -errno;
    if (blk_sys->renameat2(directory, from, directory, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (!blk_rename_is_unsupported(errno))
        return -errno;
    struct stat st;
    if (blk_sys->fstatat(directory, to, &st, AT_SYMLINK_NOFOLLOW) == 0)
        return -EEXIST;
    if (errno != ENOENT)
        return -errno;
    return blk_sys->renameat(directory, from, directory, to) < 0 ? -errno : 0;
}
