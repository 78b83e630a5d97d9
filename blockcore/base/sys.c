/* SPDX-License-Identifier: MIT */
/* The table's usual content: the system's own calls. */
#include "blockcore/base/sys.h"

#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

static int real_openat(int dirfd, const char *path, int flags, mode_t mode)
{
    return openat(dirfd, path, flags, mode);
}

static ssize_t real_copy_file_range(int from, off_t *from_offset, int to, off_t *to_offset,
                                    size_t bytes, unsigned flags)
{
    return copy_file_range(from, from_offset, to, to_offset, bytes, flags);
}

static int real_ioctl(int fd, unsigned long request, void *argument)
{
    return ioctl(fd, request, argument);
}

static int real_fcntl_lock(int fd, int command, struct flock *lock)
{
    return fcntl(fd, command, lock);
}

static int real_fcntl_int(int fd, int command, int argument)
{
    return fcntl(fd, command, argument);
}

static int real_fstat(int fd, struct stat *st)
{
    return fstat(fd, st);
}

static int real_fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
    return fstatat(dirfd, path, st, flags);
}

const struct blk_sys blk_sys_real = {
    .openat = real_openat,
    .close = close,
    .pread = pread,
    .pwrite = pwrite,
    .ftruncate = ftruncate,
    .fallocate = fallocate,
    .lseek = lseek,
    .fsync = fsync,
    .fdatasync = fdatasync,
    .sync_file_range = sync_file_range,
    .copy_file_range = real_copy_file_range,
    .ioctl = real_ioctl,
    .fcntl_lock = real_fcntl_lock,
    .fcntl_int = real_fcntl_int,
    .fstat = real_fstat,
    .linkat = linkat,
    .renameat = renameat,
    .unlinkat = unlinkat,
    .fstatat = real_fstatat,
    .statx = statx,
    .readlinkat = readlinkat,
    .renameat2 = renameat2,
    .fchmod = fchmod,
    .fchown = fchown,
    .flistxattr = flistxattr,
    .fgetxattr = fgetxattr,
    .fsetxattr = fsetxattr,
    .syncfs = syncfs,
    .statfs = statfs,
};

const struct blk_sys *blk_sys = &blk_sys_real;
