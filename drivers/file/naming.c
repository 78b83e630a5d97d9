/* SPDX-License-Identifier: MIT */
/*
 * Names that are free, a name for a file that has none, and the sync of the directory that holds
 * one.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "drivers/file/file.h"

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
    int ret = blk_sys->linkat(AT_FDCWD, path, t->directory_fd, name, AT_SYMLINK_FOLLOW);
    return ret < 0 ? -errno : 0;
}

/* Some file systems need no such call, and have none. */
int file_target_sync_directory(const struct file_target *t, int fd)
{
    int ret = t->directory_is_path ? blk_sys->syncfs(fd) : blk_sys->fsync(t->directory_fd);
    if (ret == 0 || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
        return 0;
    return -errno;
}
