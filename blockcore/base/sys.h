/* SPDX-License-Identifier: MIT */
/*
 * The system calls by which the file drivers reach an image go through this table, so that a test
 * can replace any of them; only the submission ring (drivers/file/uring.c) does without. The calls
 * have the contracts of their manual pages (-1 and errno).
 */
#ifndef BLOCKCORE_BASE_SYS_H
#define BLOCKCORE_BASE_SYS_H

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/vfs.h>

struct blk_sys {
    int (*openat)(int dirfd, const char *path, int flags, mode_t mode);
    int (*close)(int fd);
    ssize_t (*pread)(int fd, void *buf, size_t bytes, off_t offset);
    ssize_t (*pwrite)(int fd, const void *buf, size_t bytes, off_t offset);
    int (*ftruncate)(int fd, off_t size);
    int (*fallocate)(int fd, int mode, off_t offset, off_t bytes);
    off_t (*lseek)(int fd, off_t offset, int whence);
    int (*fsync)(int fd);
    int (*fdatasync)(int fd);
    int (*sync_file_range)(int fd, off_t offset, off_t bytes, unsigned flags);
    ssize_t (*copy_file_range)(int from, off_t *from_offset, int to, off_t *to_offset, size_t bytes,
                               unsigned flags);
    int (*ioctl)(int fd, unsigned long request, void *argument);
    int (*fcntl_lock)(int fd, int command, struct flock *lock);
    int (*fcntl_int)(int fd, int command, int argument);
    int (*fstat)(int fd, struct stat *st);
    int (*linkat)(int old_dirfd, const char *old_path, int new_dirfd, const char *new_path,
                  int flags);
    int (*renameat)(int old_dirfd, const char *old_path, int new_dirfd, const char *new_path);
    int (*unlinkat)(int dirfd, const char *path, int flags);
    /* For making and replacing files: who is there, and what a successor inherits. */
    int (*fstatat)(int dirfd, const char *path, struct stat *st, int flags);
    int (*statx)(int dirfd, const char *path, int flags, unsigned mask, struct statx *stx);
    ssize_t (*readlinkat)(int dirfd, const char *path, char *buf, size_t bytes);
    int (*renameat2)(int old_dirfd, const char *old_path, int new_dirfd, const char *new_path,
                     unsigned flags);
    int (*fchmod)(int fd, mode_t mode);
    int (*fchown)(int fd, uid_t owner, gid_t group);
    ssize_t (*flistxattr)(int fd, char *names, size_t bytes);
    ssize_t (*fgetxattr)(int fd, const char *name, void *value, size_t bytes);
    int (*fsetxattr)(int fd, const char *name, const void *value, size_t bytes, int flags);
    int (*syncfs)(int fd);
    int (*statfs)(const char *path, struct statfs *fs);
};

/* The table in use: the real calls, until a test points it elsewhere before any node is opened. */
extern const struct blk_sys *blk_sys;
extern const struct blk_sys blk_sys_real;

#endif
