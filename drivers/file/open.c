/* SPDX-License-Identifier: MIT */
/* Opening what exists: the options of a file node, the name, the locks, the state. */
#include <errno.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/open_files.h"
#include "blockcore/graph/options.h"
#include "drivers/file/file.h"

/* How often an open is repeated because the name led elsewhere as soon as its file was locked. */
#define MAX_OPEN_TRIES 20

/* ---- options ---- */

static int read_locking(const char *text, enum file_locking *mode, struct blk_error *err)
{
    static const char *const names[] = {
        [FILE_LOCKING_AUTO] = "auto",
        [FILE_LOCKING_ON] = "on",
        [FILE_LOCKING_OFF] = "off",
    };
    for (size_t i = 0; text && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) == 0) {
            *mode = (enum file_locking)i;
            return 0;
        }
    }
    return text ? blk_fail_why(err, EINVAL, "it can be auto, on or off", "option locking=%s", text)
                : 0;
}

/*
 * QEMU's ways of doing asynchronous I/O. There is no native one: scripts that name it get threads.
 */
static int read_aio(const char *text, bool *uring, struct blk_error *err)
{
    *uring = text && strcmp(text, "io_uring") == 0;
    if (*uring)
        return file_uring_check(err);
    if (!text || strcmp(text, "threads") == 0 || strcmp(text, "native") == 0)
        return 0;
    return blk_fail_why(err, EINVAL, "it can be threads, native or io_uring", "option aio=%s",
                        text);
}

int file_read_settings(struct blk_options *options, struct file_settings *settings,
                       struct blk_error *err)
{
    *settings = (struct file_settings){ .filename = blk_options_get(options, "filename") };
    if (!settings->filename)
        return blk_fail_why(err, EINVAL, "the option 'filename' is missing",
                            "Could not open a file");

    int ret = read_locking(blk_options_get(options, "locking"), &settings->lock_policy.mode, err);
    if (ret == 0)
        ret = blk_options_get_uint(options, "lock-wait", &settings->lock_policy.wait_seconds, err);
    if (ret == 0)
        ret = read_aio(blk_options_get(options, "aio"), &settings->uring, err);
    bool drop_cache; /* only matters for live migration */
    if (ret == 0)
        ret = blk_options_get_bool(options, "drop-cache", &drop_cache, err);
    return ret;
}

/* ---- opening ---- */

/* Refuses what is neither a regular file nor a block device. */
static int check_type(const char *path, mode_t mode, struct blk_error *err)
{
    if (S_ISREG(mode) || S_ISBLK(mode))
        return 0;
    if (S_ISDIR(mode))
        return blk_fail_why(err, EISDIR, "it is a directory, not a file or block device",
                            "Could not open '%s'", path);
    return blk_fail_why(err, EINVAL,
                        S_ISFIFO(mode)   ? "it is a pipe, not a file or block device"
                        : S_ISSOCK(mode) ? "it is a socket, not a file or block device"
                                         : "it is a character device, not a file or block device",
                        "Could not open '%s'", path);
}

static int open_failed(const char *path, unsigned flags, struct blk_cache_mode cache, int code,
                       struct blk_error *err)
{
    if (code == EINVAL && cache.direct)
        return blk_fail_why(err, code, "its file system cannot bypass the page cache (O_DIRECT)",
                            "Could not open '%s'", path);
    return blk_fail(err, code, "Could not open '%s'%s", path,
                    flags & BLK_WRITABLE && (code == EACCES || code == EROFS || code == EPERM)
                        ? " for writing"
                        : "");
}

/* Looks before it opens: opening a pipe may block, opening a character device may do anything. */
static int open_path(const char *path, unsigned flags, struct blk_cache_mode cache, struct stat *st,
                     struct blk_error *err)
{
    if (blk_sys->fstatat(AT_FDCWD, path, st, 0) < 0) {
        int code = errno;
        int taken = code == ENOENT ? blk_open_files_check_name(path, err) : 0;
        return taken < 0 ? taken : blk_fail(err, code, "Could not open '%s'", path);
    }
    int ret = check_type(path, st->st_mode, err);
    if (ret < 0)
        return ret;

    int fd;
    do
        fd = blk_sys->openat(AT_FDCWD, path, file_open_mode(flags, cache) | O_NONBLOCK, 0);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return open_failed(path, flags, cache, errno, err);

    /* What was opened may be another file than the one looked at. */
    ret = blk_sys->fstat(fd, st) < 0 ? blk_fail(err, errno, "Could not open '%s'", path)
                                     : check_type(path, st->st_mode, err);
    if (ret == 0) {
        int status = blk_sys->fcntl_int(fd, F_GETFL, 0);
        if (status < 0 || blk_sys->fcntl_int(fd, F_SETFL, status & ~O_NONBLOCK) < 0)
            ret = blk_fail(err, errno, "Could not open '%s'", path);
    }
    if (ret < 0)
        blk_sys->close(fd);
    return ret < 0 ? ret : fd;
}

/*
 * Whoever held the lock while we waited may have grown, cut or replaced the file: what was seen of
 * it before means nothing. Describes it again, now that nobody can change it.
 */
static int stat_locked(int fd, const char *path, struct stat *st, struct blk_error *err)
{
    if (blk_sys->fstat(fd, st) < 0)
        return blk_fail(err, errno, "Could not open '%s'", path);
    return check_type(path, st->st_mode, err);
}

/* Whether `path` leads to the file that `st` describes. */
static bool leads_to(const char *path, const struct stat *st)
{
    struct stat now;
    return blk_sys->fstatat(AT_FDCWD, path, &now, 0) == 0 && now.st_dev == st->st_dev &&
           now.st_ino == st->st_ino;
}

int file_open_locked(const char *path, unsigned flags, struct blk_cache_mode cache,
                     const struct file_lock_policy *policy, struct file_opened *opened,
                     struct blk_error *err)
{
    struct stat *st = &opened->st;

    for (int tries = 0; tries < MAX_OPEN_TRIES; tries++) {
        opened->locks = (struct file_locks)FILE_LOCKS_NONE;
        int fd = open_path(path, flags, cache, st, err);
        if (fd < 0)
            return fd;
        int ret = blk_open_files_check(NULL, st, flags & BLK_WRITABLE, path, err);
        if (ret == 0)
            ret = file_locks_take(&opened->locks, fd, file_lock_bits(flags), policy, path, err);
        if (ret == 0)
            ret = stat_locked(fd, path, st, err);
        if (ret == 0 && leads_to(path, st))
            return fd;
        blk_sys->close(fd);
        if (ret < 0)
            return ret;
    }
    return blk_fail_why(err, EAGAIN, "the file of that name keeps changing", "Could not open '%s'",
                        path);
}

int file_init(struct blk_node *node, int fd, const struct file_opened *opened,
              const struct file_settings *settings, struct blk_error *err)
{
    const struct stat *st = &opened->st;
    struct file_state *s = node->state;
    uint64_t size;
    int ret = file_medium_size(fd, st, &size);
    if (ret < 0)
        return blk_fail(err, -ret, "finding out the size of '%s'", node->name);
    if (size > BLK_MAX_BYTES)
        return blk_fail_why(err, EFBIG, "it is too large", "Could not open '%s'", node->name);
    ret = file_find_limits(fd, st, node->cache.direct, &node->limits);
    if (ret < 0)
        return blk_fail(err, -ret, "finding out the alignment of '%s'", node->name);

    /* So that the name means this file wherever it is given again. */
    if (blk_has_protocol(node->name)) {
        BLK_AUTOFREE char *name = blk_xasprintf("./%s", node->name);
        blk_node_rename(node, name);
    }
    s->fd = s->first_fd = fd;
    s->locks = opened->locks;
    s->lock_policy = settings->lock_policy;
    s->uring = settings->uring;
    s->device = S_ISBLK(st->st_mode);
    s->sector_bytes = s->device ? file_device_sector(fd) : 0;
    blk_rwlock_init(&s->growth);
    blk_node_set_size(node, size);
    blk_open_files_add(node, st);
    return 0;
}
