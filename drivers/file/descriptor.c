/* SPDX-License-Identifier: MIT */
/*
 * A descriptor and what the kernel does with it, without a word about nodes: what every other file
 * here may use.
 */
#include <errno.h>

#include "blockcore/base/sys.h"
#include "drivers/file/file.h"

int file_open_mode(unsigned flags, struct blk_cache_mode cache)
{
    return (flags & BLK_WRITABLE ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY |
           (cache.direct ? O_DIRECT : 0);
}

int file_close(int *fd)
{
    if (*fd < 0)
        return 0;
    int ret = blk_sys->close(*fd) < 0 ? -errno : 0;
    *fd = -1;
    return ret;
}

int file_close_copy(int fd)
{
    int copy = blk_sys->fcntl_int(fd, F_DUPFD_CLOEXEC, 0);
    return copy < 0 ? -errno : file_close(&copy);
}

int file_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    int ret;
    do
        ret = blk_sys->fallocate(fd, mode, (off_t)offset, (off_t)bytes) < 0 ? -errno : 0;
    while (ret == -EINTR);
    return ret;
}

bool file_is_unsupported(int ret)
{
    return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENOTTY || ret == -EINVAL ||
           ret == -ENODEV;
}

int file_set_size(int fd, uint64_t size)
{
    int ret;
    do
        ret = blk_sys->ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
    while (ret == -EINTR);
    return ret;
}
