/* SPDX-License-Identifier: MIT */
/*
 * Where a file made by this run is written until it is complete (C6).
 *
 * The name is free: into a file without a name in the same directory (O_TMPFILE), or one with a
 * temporary name where that cannot be. A regular file has it: that file is locked, and the new one
 * is written beside it and put in its place at the end. In place (held.c): a device; a file that
 * cannot be replaced (other names lead to it, the directory is not ours to change, its owner or
 * attributes cannot be passed on, something is mounted on it); one that must not be, because it is
 * held by more than its name (in_place.c) or the user says so.
 */
#include <errno.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/base/temporaries.h"
#include "blockcore/graph/create.h"
#include "blockcore/graph/links.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/open_files.h"
#include "drivers/file/file.h"

#define NEW_FILE_MODE 0644
#define MAX_NAME_TRIES 100

const struct blk_option_desc file_create_options[] = {
    { "nocow", BLK_OPT_BOOL, "No copy-on-write for this file (btrfs)", "off" },
    { "extent_size_hint", BLK_OPT_SIZE, "Extent size to aim at (XFS)", NULL },
    { NULL, 0, NULL, NULL },
};

/* What is known while a target is being made. */
struct making {
    struct blk_create *create;
    const struct blk_driver *driver; /* of the node that results */
    struct file_settings settings;
    unsigned flags;
    char *path;         /* with symlinks of the last component followed */
    bool by_descriptor; /* it is somebody's descriptor: /dev/fd/N */
    struct file_target *target;
    struct file_locks locks; /* on the new file, or on the old one in place */
    int fd;
};

/* ---- which file ---- */

/*
 * Finds the file that `filename` stands for: *path is not a symlink. Returns 1 when it exists (*st
 * filled), 0 when the name is free, -errno. A descriptor (/dev/fd/3), which only the kernel can
 * follow, keeps its name.
 */
static int resolve(const char *filename, char **path, bool *by_descriptor, struct stat *st)
{
    struct stat reached;
    bool exists = blk_sys->fstatat(AT_FDCWD, filename, &reached, 0) == 0;
    if (!exists && errno != ENOENT)
        return -errno;

    *path = blk_xstrdup(filename);
    for (int links = 0; links <= BLK_MAX_SYMLINKS; links++) {
        if (blk_sys->fstatat(AT_FDCWD, *path, st, AT_SYMLINK_NOFOLLOW) < 0) {
            if (errno != ENOENT)
                return -errno;
            if (!exists)
                return 0;
            break;
        }
        if (!S_ISLNK(st->st_mode))
            break;
        *by_descriptor = exists && blk_is_descriptor_link(*path);
        if (*by_descriptor)
            break;
        int ret = blk_follow_symlink(path);
        if (ret < 0)
            return ret;
    }
    if (exists && (st->st_dev != reached.st_dev || st->st_ino != reached.st_ino)) {
        free(*path);
        *path = blk_xstrdup(filename);
        *st = reached;
    }
    return exists ? 1 : -ELOOP;
}

/* ---- a new file ---- */

static bool lacks_unnamed_files(int code)
{
    return code == EOPNOTSUPP || code == EISDIR || code == EINVAL || code == ENOENT ||
           code == ENOSYS;
}

/* Without /proc a file that has no name could never get one. */
static bool can_be_named_later(int fd)
{
    char path[32];
    struct stat st;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return blk_sys->fstatat(AT_FDCWD, path, &st, 0) == 0;
}

static int open_unnamed(const struct file_target *t, int mode_flags, mode_t mode)
{
#ifdef O_TMPFILE
    int fd = blk_sys->openat(t->directory_fd, ".", O_TMPFILE | mode_flags, mode);
    if (fd < 0)
        return -errno;
    if (can_be_named_later(fd))
        return fd;
    blk_sys->close(fd);
#else
    (void)t, (void)mode_flags, (void)mode;
#endif
    return -EOPNOTSUPP;
}

static int open_temporary(struct file_target *t, int mode_flags, mode_t mode)
{
    for (int tries = 0; tries < MAX_NAME_TRIES; tries++) {
        char *name = file_temporary_name(t->base);
        int fd = blk_sys->openat(t->directory_fd, name, O_CREAT | O_EXCL | mode_flags, mode);
        if (fd >= 0) {
            t->temporary = name;
            blk_temporary_note(t->directory_fd, name);
            return fd;
        }
        free(name);
        if (errno != EEXIST)
            return -errno;
    }
    return -EEXIST;
}

static int open_new(struct file_target *t, unsigned flags, struct blk_cache_mode cache, mode_t mode)
{
    int mode_flags = file_open_mode(flags | BLK_WRITABLE, cache);
    int fd = open_unnamed(t, mode_flags, mode);
    if (fd < 0 && lacks_unnamed_files(-fd))
        fd = open_temporary(t, mode_flags, mode);
    return fd;
}

/* Opens the directory of making->path. 0 or -errno. */
static int open_directory(struct making *making)
{
    struct file_target *t = making->target;
    const char *slash = strrchr(making->path, '/');
    BLK_AUTOFREE char *directory =
        slash ? blk_xstrndup(making->path, (size_t)(slash - making->path) + 1) : blk_xstrdup(".");

    t->base = blk_xstrdup(slash ? slash + 1 : making->path);
    if (!t->base[0])
        return -EISDIR;
    t->directory_fd = blk_sys->openat(AT_FDCWD, directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (t->directory_fd < 0 && errno == EACCES) {
        t->directory_is_path = true;
        t->directory_fd = blk_sys->openat(AT_FDCWD, directory, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    }
    return t->directory_fd < 0 ? -errno : 0;
}

static int make_new(struct making *making, struct blk_error *err)
{
    struct file_target *t = making->target;
    t->kind = FILE_TARGET_NEW;
    int ret = blk_open_files_check_name(making->path, err);
    if (ret < 0)
        return ret;
    ret = open_directory(making);
    if (ret == 0)
        ret = making->fd = open_new(t, making->flags, making->create->cache, NEW_FILE_MODE);
    if (ret == -EINVAL && making->create->cache.direct)
        return blk_fail_why(err, EINVAL, "its file system cannot bypass the page cache (O_DIRECT)",
                            "creating '%s'", making->path);
    return ret < 0 ? blk_fail(err, -ret, "creating '%s'", making->path) : 0;
}

/* ---- in place of an existing one ---- */

/* Something is mounted on the file (as containers do): it cannot be renamed over. */
static bool is_mount_point(int fd)
{
#ifdef STATX_ATTR_MOUNT_ROOT
    struct statx stx;
    return blk_sys->statx(fd, "", AT_EMPTY_PATH, 0, &stx) == 0 &&
           stx.stx_attributes & STATX_ATTR_MOUNT_ROOT;
#else
    (void)fd;
    return false;
#endif
}

/* In a sticky directory only the owner of the file or of the directory may replace the file. */
static bool may_rename_over(int directory_fd, const struct stat *old)
{
    struct stat directory;
    if (blk_sys->fstat(directory_fd, &directory) < 0)
        return false;
    uid_t me = geteuid();
    return !(directory.st_mode & S_ISVTX) || me == 0 || me == old->st_uid || me == directory.st_uid;
}

/* Whether it will never be allowed here, or never can be: no fault of the medium. */
static bool is_refusal(int code)
{
    return code == EPERM || code == EACCES || code == EROFS || code == EOPNOTSUPP ||
           code == ENOSYS || code == EINVAL;
}

/*
 * Whether a file without a name could get one here: confinement by path (AppArmor) may allow the
 * one and refuse the other, and that must not show when everything has been copied. 0 or -errno.
 */
static int try_naming(struct file_target *t, mode_t mode, struct blk_error *err)
{
    int fd = open_unnamed(t, O_RDWR | O_CLOEXEC, mode);
    if (fd < 0)
        return blk_fail(err, -fd, "creating a file beside '%s'", t->base);
    char *name = file_temporary_name(t->base);
    int ret = file_link_unnamed(fd, t, name);
    if (ret == 0 && blk_sys->unlinkat(t->directory_fd, name, 0) < 0) {
        ret = -errno;
        t->temporary = name; /* the end of the run tries again, and says so */
        name = NULL;
    }
    free(name);
    int closed = file_close(&fd);
    if (ret < 0 && ret != -EEXIST)
        return blk_fail(err, -ret, "linking a file beside '%s'", t->base);
    return closed < 0 ? blk_fail(err, -closed, "closing a file beside '%s'", t->base) : 0;
}

/* As open_new(), for a file that will certainly get a name. */
static int open_successor(struct making *making, mode_t mode, struct blk_error *err)
{
    struct file_target *t = making->target;
    int fd = open_new(t, making->flags, making->create->cache, mode);
    if (fd < 0 || t->temporary)
        return fd;
    int ret = try_naming(t, mode, err);
    if (ret == 0)
        return fd;
    file_close(&fd);
    if (!is_refusal(-ret))
        return ret;
    blk_error_clear(err);
    return open_temporary(t, file_open_mode(making->flags, making->create->cache), mode);
}

/*
 * Tries to make a file beside the old one that can replace it. Returns 1 when it is there, 0 when
 * it cannot be, -errno when the medium fails (a full disk must not lead to the old content being
 * overwritten).
 */
static int make_successor(struct making *making, const struct stat *old, struct blk_error *err)
{
    struct file_target *t = making->target;
    if (old->st_nlink != 1 || is_mount_point(t->old_fd))
        return 0;
    int ret = open_directory(making);
    if (ret < 0)
        return is_refusal(-ret) ? 0 : ret;
    if (!may_rename_over(t->directory_fd, old))
        return 0;

    making->fd = open_successor(making, old->st_mode & 0700, err);
    if (making->fd < 0)
        return is_refusal(-making->fd) ? 0 : making->fd;
    ret = file_copy_attributes(t->old_fd, making->fd);
    if (ret == 0)
        return 1;

    bool refused = is_refusal(-ret);
    int closed = file_close(&making->fd);
    if (t->temporary && blk_sys->unlinkat(t->directory_fd, t->temporary, 0) < 0 && closed == 0)
        closed = -errno;
    blk_temporary_forget(t->temporary);
    free(t->temporary);
    t->temporary = NULL;
    return refused ? closed : ret;
}

/* The old file itself becomes the target. */
static void use_in_place(struct making *making)
{
    struct file_target *t = making->target;
    t->kind = FILE_TARGET_IN_PLACE;
    making->fd = t->old_fd;
    making->locks = t->old_locks;
    t->old_fd = -1;
    t->old_locks = (struct file_locks)FILE_LOCKS_NONE;
    file_close(&t->directory_fd);
}

/* Whether what exists keeps its inode. */
static bool has_to_stay(const struct making *making, const struct stat *st)
{
    return !S_ISREG(st->st_mode) || making->create->in_place || making->by_descriptor ||
           file_is_behind_loop_device(st);
}

/* Gives the old file back, to start over. */
static void leave_old(struct file_target *t)
{
    file_close(&t->old_fd);
    t->old_locks = (struct file_locks)FILE_LOCKS_NONE;
}

/*
 * Opens and locks the old file. Returns 1, or 0 when the name leads elsewhere by now, or nowhere:
 * whoever held the lock may have removed the file or pointed a symlink to another one.
 */
static int lock_old(struct making *making, struct stat *st, struct blk_error *err)
{
    struct file_target *t = making->target;
    struct file_opened opened;

    t->old_fd = file_open_locked(making->path, making->flags, making->create->cache,
                                 &making->settings.lock_policy, &opened, err);
    if (t->old_fd == -ENOENT) {
        blk_error_clear(err);
        return 0;
    }
    if (t->old_fd < 0)
        return t->old_fd;
    t->old_locks = opened.locks;
    *st = opened.st;

    struct stat reached;
    if (blk_sys->fstatat(AT_FDCWD, making->settings.filename, &reached, 0) == 0 &&
        reached.st_dev == st->st_dev && reached.st_ino == st->st_ino)
        return 1;
    leave_old(t);
    return 0;
}

/* Returns 1, or 0 to start over. */
static int make_over_existing(struct making *making, struct blk_error *err)
{
    struct file_target *t = making->target;
    struct stat st;
    int ret = lock_old(making, &st, err);
    if (ret <= 0)
        return ret;

    t->kind = FILE_TARGET_REPLACE;
    ret = has_to_stay(making, &st) ? 0 : make_successor(making, &st, err);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "creating a file beside '%s'", making->path);
    if (ret == 0)
        use_in_place(making);
    return 1;
}

/* ---- create ---- */

/* Hints to the file system; one that does not know them does without. */
static int apply_hints(int fd, struct blk_options *options, struct blk_error *err)
{
    bool nocow = false;
    uint64_t hint = 0;
    int ret = options ? blk_options_get_bool(options, "nocow", &nocow, err) : 0;
    if (ret == 0 && options)
        ret = blk_options_get_size(options, "extent_size_hint", &hint, err);
    if (ret < 0)
        return ret;
    if (hint > UINT32_MAX)
        return blk_fail_why(err, EINVAL, "it is too large", "option extent_size_hint");

    int inode_flags;
    if (nocow && blk_sys->ioctl(fd, FS_IOC_GETFLAGS, &inode_flags) == 0) {
        inode_flags |= FS_NOCOW_FL;
        (void)blk_sys->ioctl(fd, FS_IOC_SETFLAGS, &inode_flags);
    }
    struct fsxattr attributes;
    if (hint && blk_sys->ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0) {
        attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
        attributes.fsx_extsize = (uint32_t)hint;
        (void)blk_sys->ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
    }
    return 0;
}

/* Nothing else in this run may use what the new file will be called, or what it replaces. */
static int claim(struct blk_node *node, const struct file_target *t, struct blk_error *err)
{
    int fd = t->kind == FILE_TARGET_NEW       ? t->directory_fd
             : t->kind == FILE_TARGET_REPLACE ? t->old_fd
                                              : -1;
    struct stat st;
    if (fd < 0)
        return 0; /* in place: it is the file itself */
    if (blk_sys->fstat(fd, &st) < 0)
        return blk_fail(err, errno, "creating '%s'", node->name);
    if (t->kind == FILE_TARGET_NEW)
        blk_open_files_add_name(node, &st, t->base);
    else
        blk_open_files_add(node, &st);
    return 0;
}

/* Turns what was made into a node. On failure the descriptors are still making's. */
static int make_node(struct making *making, struct blk_node **node, struct blk_error *err)
{
    struct file_target *t = making->target;
    struct file_opened opened = { .locks = making->locks };
    if (blk_sys->fstat(making->fd, &opened.st) < 0)
        return blk_fail(err, errno, "creating '%s'", making->path);

    int ret = 0;
    if (t->kind != FILE_TARGET_IN_PLACE)
        ret = file_locks_take(&opened.locks, making->fd, file_lock_bits(making->flags),
                              &making->settings.lock_policy, making->path, err);
    if (ret == 0)
        ret = apply_hints(making->fd, making->create->options, err);
    if (ret < 0)
        return ret;

    struct blk_node *made = blk_node_new(making->driver, making->settings.filename, making->flags,
                                         making->create->cache);
    ret = claim(made, t, err);
    if (ret == 0)
        ret = file_init(made, making->fd, &opened, &making->settings, err);
    if (ret < 0) {
        blk_node_free(made);
        return ret;
    }
    struct file_state *s = made->state;
    s->target = t;
    file_changed(s); /* the new file itself is a change */
    if (t->kind == FILE_TARGET_IN_PLACE)
        file_held_begin(made);
    else
        file_target_become(t, t->temporary ? FILE_TARGET_TEMPORARY : FILE_TARGET_UNNAMED);
    made->unnamed = true;
    made->reads_zero = !s->device;
    *node = made;
    return 0;
}

/* Removes the temporary name, if there is one. */
static int remove_temporary(struct file_target *t, const char *name, struct blk_error *err)
{
    if (!t->temporary || blk_sys->unlinkat(t->directory_fd, t->temporary, 0) == 0 ||
        errno == ENOENT)
        return 0;
    int ret = blk_fail(err, errno, "removing the unfinished '%s'", t->temporary);
    blk_left_behind(err, "the unfinished '%s' is still beside '%s'", t->temporary, name);
    return ret;
}

int file_target_free(struct blk_node *node, struct blk_error *err)
{
    struct file_state *s = node->state;
    if (!s->target)
        return 0;
    int ret = remove_temporary(s->target, node->name, err);
    file_target_drop(s->target);
    s->target = NULL;
    return ret;
}

/* Makes the file that the name stands for now. Returns 1, or 0 to start over. */
static int make_file(struct making *making, struct blk_error *err)
{
    struct stat st;
    free(making->path);
    making->path = NULL;
    making->by_descriptor = false;
    int ret = resolve(making->settings.filename, &making->path, &making->by_descriptor, &st);
    if (ret < 0)
        return blk_fail(err, -ret, "creating '%s'", making->settings.filename);
    if (ret > 0)
        return make_over_existing(making, err);
    ret = make_new(making, err);
    return ret < 0 ? ret : 1;
}

static int make(struct making *making, struct blk_node **node, struct blk_error *err)
{
    for (int tries = 0; tries < MAX_NAME_TRIES; tries++) {
        int ret = make_file(making, err);
        if (ret)
            return ret < 0 ? ret : make_node(making, node, err);
    }
    return blk_fail_why(err, EAGAIN, "the file of that name keeps changing", "creating '%s'",
                        making->settings.filename);
}

int file_create(struct blk_create *create, const struct blk_driver *driver, struct blk_node **node,
                struct blk_error *err)
{
    struct making making = {
        .create = create,
        .driver = driver,
        .flags = (create->flags | BLK_WRITABLE) & ~(unsigned)BLK_FORCE_SHARE,
        .locks = FILE_LOCKS_NONE,
        .fd = -1,
    };
    *node = NULL;
    int ret = file_read_settings(create->protocol_options, &making.settings, err);
    if (ret < 0)
        return ret;

    making.target = blk_xcalloc(1, sizeof(*making.target));
    *making.target =
        (struct file_target){ .directory_fd = -1, .old_fd = -1, .old_locks = FILE_LOCKS_NONE };
    blk_mutex_init(&making.target->erase_mutex);
    blk_mutex_init(&making.target->held_mutex);
    ret = make(&making, node, err);
    if (ret < 0) {
        file_close(&making.fd);
        if (remove_temporary(making.target, making.settings.filename, NULL) < 0)
            blk_left_behind(err, "the unfinished '%s' is still beside '%s'",
                            making.target->temporary, making.settings.filename);
        file_target_drop(making.target);
    }
    free(making.path);
    return ret;
}
