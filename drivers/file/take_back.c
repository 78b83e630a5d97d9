/* SPDX-License-Identifier: MIT */
/*
 * A published name that can be taken back, until all of the run is closed and all names of a job
 * are given (published.h).
 *
 * A new name is removed again. A file that was replaced has the temporary name, and is renamed
 * back. A target in place loses its first sector, as if it had never been finished.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/base/temporaries.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/published.h"
#include "drivers/file/file.h"

struct given {
    struct blk_published_entry entry;
    struct file_target *target;
    char *name; /* of the node */
    dev_t device;
    ino_t inode;
    bool no_flush;
    int path_fd; /* in place: leads back to the file, whatever its name is; else -1 */
};

/* ---- the end of a target ---- */

static void forget_hold(struct file_target *t)
{
    if (t->given)
        free(t->given->name);
    free(t->given);
    t->given = NULL;
}

void file_target_drop(struct file_target *t)
{
    blk_temporary_forget(t->temporary);
    forget_hold(t);
    file_close(&t->old_fd);
    file_close(&t->directory_fd);
    blk_mutex_destroy(&t->erase_mutex);
    blk_mutex_destroy(&t->held_mutex);
    free(t->held);
    free(t->base);
    free(t->temporary);
    free(t);
}

/* What is closed here leads to the file; nothing was written through it. */
static void free_given(struct given *given)
{
    file_close(&given->path_fd);
    file_target_drop(given->target);
    free(given->name);
    free(given);
}

/* ---- in place ---- */

static int erase_first_sector(const struct given *given, int fd)
{
    const struct file_state s = { .fd = fd };
    const struct file_target *t = given->target;
    void *zeroes = blk_buffer_alloc(t->held_bytes);
    if (!zeroes)
        return -ENOMEM;
    memset(zeroes, 0, t->held_bytes);
    int ret = file_write(&s, 0, t->held_bytes, zeroes);
    free(zeroes);
    if (ret == 0 && !given->no_flush && blk_sys->fsync(fd) < 0)
        ret = -errno;
    return ret;
}

/* The node has released its locks: somebody else may have the file by now. */
static int take_back_in_place(const struct given *given, struct blk_error *err)
{
    static const struct file_lock_policy policy = { .mode = FILE_LOCKING_AUTO };
    struct file_locks locks = FILE_LOCKS_NONE;
    char path[32];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", given->path_fd);
    int fd = blk_sys->openat(AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return blk_fail(err, errno, "erasing '%s', which is not to be used", given->name);
    int ret = file_locks_take(&locks, fd, file_lock_bits(BLK_WRITABLE), &policy, given->name, err);
    if (ret == 0) {
        ret = erase_first_sector(given, fd);
        int closed = file_close(&fd);
        ret = ret < 0 ? ret : closed;
        if (ret < 0)
            blk_fail(err, -ret, "erasing '%s', which is not to be used", given->name);
    }
    file_close(&fd);
    if (ret == 0)
        blk_left_behind(err, "'%s' was overwritten and is not to be used", given->name);
    return ret;
}

/* ---- by name ---- */

/* Whether the name is free or still that of the new file. Another file is not ours to touch. */
static int check_name(const struct given *given, int fd)
{
    struct stat now;
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    if (blk_sys->fstat(fd, &now) < 0)
        return -errno;
    return now.st_dev == given->device && now.st_ino == given->inode ? 1 : -EEXIST;
}

static int undo_name(const struct given *given, int fd)
{
    const struct file_target *t = given->target;
    int ret = check_name(given, fd);

    if (t->kind == FILE_TARGET_NEW)
        return ret == -EEXIST                                       ? 0
               : ret <= 0                                           ? ret
               : blk_sys->unlinkat(t->directory_fd, t->base, 0) < 0 ? -errno
                                                                    : 0;
    if (ret < 0)
        return ret;
    ret = blk_sys->renameat(t->directory_fd, t->temporary, t->directory_fd, t->base);
    return ret < 0 ? -errno : 0;
}

static int sync_undone(const struct given *given, int fd, struct blk_error *err)
{
    /* Without a file in it to name the file system by, nothing was undone either. */
    int ret = given->no_flush || fd < 0 ? 0 : file_target_sync_directory(given->target, fd);
    if (ret == 0)
        return 0;
    blk_fail(err, -ret, "flushing the directory of '%s'", given->name);
    if (given->target->kind == FILE_TARGET_NEW)
        blk_left_behind(err,
                        "there is no '%s', but after a power cut it may be there: do not use it",
                        given->name);
    else
        blk_left_behind(err,
                        "'%s' is what it was before, but after a power cut it may be the new one",
                        given->name);
    return ret;
}

static int take_back_name(struct given *given, struct blk_error *err)
{
    struct file_target *t = given->target;
    bool old_kept = file_target_is(t, FILE_TARGET_GIVEN_OLD_KEPT);
    if (t->kind == FILE_TARGET_REPLACE && !old_kept)
        return blk_fail_why(err, ENOTSUP, "its file system cannot keep the file that was replaced",
                            "taking the name '%s' back: do not use that file", given->name);

    /* syncfs(2) needs a file that is really open. */
    int fd =
        blk_sys->openat(t->directory_fd, t->base,
                        (t->directory_is_path ? O_RDONLY : O_PATH) | O_NOFOLLOW | O_CLOEXEC, 0);
    int ret = undo_name(given, fd);
    if (ret < 0) {
        blk_fail(err, -ret, "taking the name '%s' back", given->name);
        if (old_kept)
            blk_left_behind(err, "what it was before may be '%s' in the same directory",
                            t->temporary);
    } else {
        ret = sync_undone(given, fd, err);
    }
    file_close(&fd);
    if (ret == 0 && t->kind == FILE_TARGET_NEW)
        blk_left_behind(err, "there is no '%s'", given->name);
    else if (ret == 0)
        blk_left_behind(err, "'%s' is what it was before", given->name);
    return ret;
}

/* ---- both ---- */

static int take_back(void *state, struct blk_error *err)
{
    struct given *given = state;
    int ret = given->target->kind == FILE_TARGET_IN_PLACE ? take_back_in_place(given, err)
                                                          : take_back_name(given, err);
    file_target_become(given->target, FILE_TARGET_TAKEN_BACK);
    free_given(given);
    return ret;
}

static int keep_given(void *state, struct blk_error *err)
{
    struct given *given = state;
    struct file_target *t = given->target;
    bool old_kept = file_target_is(t, FILE_TARGET_GIVEN_OLD_KEPT);
    int ret = 0;

    file_target_become(t, FILE_TARGET_KEPT);
    if (old_kept && blk_sys->unlinkat(t->directory_fd, t->temporary, 0) < 0 && errno != ENOENT) {
        ret = blk_fail(err, errno, "removing what '%s' replaced", given->name);
        blk_left_behind(err, "'%s' is complete; what it was before is '%s' in the same directory",
                        given->name, t->temporary);
    }
    free_given(given);
    return ret;
}

/* A descriptor that only stands for the file: closing it reports nothing. */
static int open_path_of(int fd)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return blk_sys->openat(AT_FDCWD, path, O_PATH | O_CLOEXEC, 0);
}

void file_target_prepare_hold(struct blk_node *node)
{
    struct file_state *s = node->state;

    if (s->target->given)
        return;
    s->target->given = blk_xcalloc(1, sizeof(*s->target->given));
    s->target->given->name = blk_xstrdup(node->name);
    s->target->given->path_fd = -1;
}

void file_target_hold(struct blk_node *node, struct blk_published *published)
{
    static const struct blk_published_ops ops = { .take_back = take_back, .keep = keep_given };
    struct file_state *s = node->state;
    struct given *given = s->target->given;
    struct stat st = { .st_ino = 0 };

    (void)blk_sys->fstat(s->fd, &st); /* if that fails, the name is not taken for ours */
    given->target = s->target;
    given->device = st.st_dev;
    given->inode = st.st_ino;
    given->no_flush = node->cache.no_flush;
    if (s->target->kind == FILE_TARGET_IN_PLACE)
        given->path_fd = open_path_of(s->fd);
    s->target->given = NULL;
    s->target = NULL;
    blk_published_add(published, &given->entry, &ops, given);
}
