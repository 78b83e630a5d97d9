/* SPDX-License-Identifier: MIT */
/*
 * Syncing a file that this run did not write, because a header is about to name it: its content and
 * its directory entry, and, where the name is a symlink, those of each link on the way.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/graph/links.h"
#include "drivers/file/file.h"

/* What can only be read has nothing to sync, and some file systems do without. */
static bool needs_none(int code)
{
    return code == EINVAL || code == ENOSYS || code == EOPNOTSUPP || code == EROFS;
}

static int sync_descriptor(int fd, int (*sync)(int fd))
{
    int ret;
    do
        ret = sync(fd) < 0 ? -errno : 0;
    while (ret == -EINTR);
    return needs_none(-ret) ? 0 : ret;
}

/* `fd`: a file in the directory, for one that may not be read. */
static int sync_directory_of(const char *path, int fd)
{
    const char *slash = strrchr(path, '/');
    BLK_AUTOFREE char *name =
        slash ? blk_xstrndup(path, (size_t)(slash - path) + 1) : blk_xstrdup(".");
    int directory = blk_sys->openat(AT_FDCWD, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

    if (directory < 0)
        return sync_descriptor(fd, blk_sys->syncfs);
    int ret = sync_descriptor(directory, blk_sys->fsync);
    int closed = file_close(&directory);
    return ret < 0 ? ret : closed;
}

static int sync_names(const char *name, int fd)
{
    char *path = blk_xstrdup(name);
    struct stat st = { .st_mode = S_IFLNK };
    int ret = 0;

    for (int links = 0; links <= BLK_MAX_SYMLINKS && ret == 0 && S_ISLNK(st.st_mode); links++) {
        ret = sync_directory_of(path, fd);
        /* The name may be gone, or one that only the kernel can follow: the file is synced. */
        if (ret < 0 || blk_sys->fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
            break;
        if (S_ISLNK(st.st_mode) && blk_follow_symlink(&path) < 0)
            break;
    }
    free(path);
    return ret;
}

int file_sync_foreign(struct blk_node *node, struct blk_error *err)
{
    const struct file_state *s = node->state;
    int ret = sync_descriptor(s->fd, blk_sys->fsync);

    if (ret == 0 && !s->device)
        ret = sync_names(node->name, s->fd);
    return ret < 0 ? blk_fail(err, -ret, "flushing '%s'", node->name) : 0;
}
