/*
 * Names: where a symlink leads, names that are free, a name for a file that has none, and the sync
 * of the directory that holds one.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "drivers/file/file.h"

int file_follow_symlink(char **path)
{
    char text[PATH_MAX];
    ssize_t length = blk_sys->readlinkat(AT_FDCWD, *path, text, sizeof(text));
    if (length < 0)
        return -errno;
    if (length == 0 || (size_t)length == sizeof(text))
        return -ENAMETOOLONG;
    const char *slash = strrchr(*path, '/');
    int folder = text[0] != '/' && slash ? (int)(slash - *path + 1) : 0;
    char *next = blk_xasprintf("%.*s%.*s", folder, *path, (int)length, text);
    free(*path);
    *path = next;
    return 0;
}

char *file_temporary_name(const char *base)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    static unsigned counter;
    char random[7] = "";
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t value = (uint64_t)now.tv_nsec * 2654435761u ^ (uint64_t)getpid() << 20 ^
                     (uint64_t)now.tv_sec ^ (uint64_t)++counter << 40;
    for (int i = 0; i < 6; i++, value /= 62)
        random[i] = letters[value % 62];
    /* With what is added it stays below the 255 bytes of a name. */
    return blk_xasprintf(".%.230s.blkimg-%s", base, random);
}

int file_link_unnamed(int fd, const struct file_target *t, const char *name)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return blk_sys->linkat(AT_FDCWD, path, t->folder_fd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

/* Some file systems need no such call, and have none. */
int file_target_sync_folder(const struct file_target *t, int fd)
{
    int ret = (t->folder_is_path ? blk_sys->syncfs(fd) : blk_sys->fsync(t->folder_fd)) < 0 ? -errno
                                                                                           : 0;
    return ret == -EINVAL || ret == -ENOSYS || ret == -EOPNOTSUPP ? 0 : ret;
}
