/* SPDX-License-Identifier: MIT */
/*
 * Reopening: the same file under a descriptor with other flags.
 *
 * The locks stay with the first descriptor for the node's whole life. So there is no moment
 * without them, and no conflict of the node with itself: what the new mode needs beyond the old
 * one is taken in prepare, what it no longer needs is given back in commit.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/graph/open_files.h"
#include "blockcore/graph/reopen.h"
#include "drivers/file/file.h"

struct prepared {
    int fd; /* the new descriptor; -1: the old one serves */
    unsigned old_locks;
    struct blk_limits limits;
    uint64_t size;
};

/*
 * Nobody who heeds locks has changed what was locked for reading. Others may have: the size that a
 * writer goes by is the one that the file has now.
 */
static int learn_size(struct blk_node *node, struct prepared *p, struct blk_error *err)
{
    const struct file_state *s = node->state;
    struct stat st;
    int ret = blk_sys->fstat(s->fd, &st) < 0 ? -errno : file_medium_size(s->fd, &st, &p->size);
    return ret < 0 ? blk_fail(err, -ret, "finding out the size of '%s'", node->name) : 0;
}

/* Opens what the node has open once more, whatever its name is now. */
static int open_descriptor_again(struct blk_node *node, unsigned flags, struct blk_cache_mode cache,
                                 struct prepared *p, struct blk_error *err)
{
    struct file_state *s = node->state;
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);

    int fd;
    do
        fd = blk_sys->openat(AT_FDCWD, path, file_open_mode(flags, cache), 0);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 && errno == EINVAL && cache.direct)
        return blk_fail_why(err, EINVAL, "its file system cannot bypass the page cache (O_DIRECT)",
                            "reopening '%s'", node->name);
    if (fd < 0)
        return blk_fail(err, errno, "reopening '%s'%s", node->name,
                        flags & BLK_WRITABLE ? " for writing" : "");

    struct stat st;
    int ret =
        blk_sys->fstat(fd, &st) < 0 ? -errno : file_find_limits(fd, &st, cache.direct, &p->limits);
    if (ret < 0) {
        blk_sys->close(fd);
        return blk_fail(err, -ret, "reopening '%s'", node->name);
    }
    p->fd = fd;
    return 0;
}

/* What is to be written must not be open in this run under another name. */
static int check_alone(const struct blk_node *node, struct blk_error *err)
{
    const struct file_state *s = node->state;
    struct stat st;
    if (blk_sys->fstat(s->fd, &st) < 0)
        return blk_fail(err, errno, "reopening '%s'", node->name);
    return blk_open_files_check(node, &st, true, node->name, err);
}

static int file_reopen_prepare(struct blk_reopen *reopen, struct blk_error *err)
{
    struct blk_node *node = reopen->node;
    struct file_state *s = node->state;
    struct prepared *p = blk_xcalloc(1, sizeof(*p));
    bool writable = reopen->flags & BLK_WRITABLE;
    bool same = writable == blk_is_writable(node) && reopen->cache.direct == node->cache.direct;

    *p = (struct prepared){
        .fd = -1, .old_locks = s->locks.held, .limits = node->limits, .size = blk_size(node)
    };
    int ret = writable && !blk_is_writable(node) ? check_alone(node, err) : 0;
    if (ret == 0)
        ret = file_locks_take(&s->locks, s->first_fd, file_lock_bits(reopen->flags),
                              &s->lock_policy, node->name, err);
    if (ret == 0 && writable && !blk_is_writable(node))
        ret = learn_size(node, p, err);
    if (ret == 0 && !same)
        ret = open_descriptor_again(node, reopen->flags, reopen->cache, p, err);
    /* The last chance to hear of lost writes while the reopen can still fail. */
    if (ret == 0 && p->fd >= 0 && blk_is_writable(node)) {
        ret = file_close_copy(s->fd);
        if (ret < 0)
            ret = blk_fail(err, -ret, "reopening '%s'", node->name);
    }
    reopen->driver_state = p;
    return ret;
}

static void file_reopen_commit(struct blk_reopen *reopen)
{
    struct blk_node *node = reopen->node;
    struct file_state *s = node->state;
    struct prepared *p = reopen->driver_state;

    if (p->fd >= 0) {
        int ret = s->fd == s->first_fd ? 0 : file_close(&s->fd);
        if (ret < 0 && !s->close_error)
            s->close_error = -ret;
        s->fd = p->fd;
        node->limits = p->limits;
        /*
         * A new description does not know of write-back errors that the old one would still report.
         */
        file_changed(s);
    }
    blk_node_set_size(node, p->size);
    file_locks_keep(&s->locks, file_lock_bits(reopen->flags));
    free(p);
    reopen->driver_state = NULL;
}

static void file_reopen_abort(struct blk_reopen *reopen)
{
    struct file_state *s = reopen->node->state;
    struct prepared *p = reopen->driver_state;
    if (!p)
        return;
    if (p->fd >= 0)
        blk_sys->close(p->fd);
    file_locks_keep(&s->locks, p->old_locks);
    free(p);
    reopen->driver_state = NULL;
}

const struct blk_reopen_ops file_reopen_ops = {
    .prepare = file_reopen_prepare,
    .commit = file_reopen_commit,
    .abort = file_reopen_abort,
};
