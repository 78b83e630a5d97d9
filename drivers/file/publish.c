/* SPDX-License-Identifier: MIT */
/*
 * How a target gets its name (C6): its content is on the medium before, the directory's entry
 * after.
 *
 * A new name is given by one linkat(2), which fails if somebody has taken the name meanwhile. A
 * file is replaced by one rename(2), which exchanges the two where that can be. A target in place
 * gets its first sector. All of that can be undone until the run has closed everything: network
 * file systems may report lost writes as late as that, so a copy of the descriptor is closed before
 * the name is given, and the name taken back if anything fails after it (take_back.c). With cache
 * mode unsafe the order is the same and nothing is synced.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "blockcore/base/rename.h"
#include "blockcore/base/sys.h"
#include "blockcore/base/temporaries.h"
#include "drivers/file/file.h"

/* ---- the name ---- */

static int name_new(struct blk_node *node, struct blk_error *err)
{
    struct file_state *s = node->state;
    struct file_target *t = s->target;
    int ret = t->temporary ? blk_rename_to_free(t->directory_fd, t->temporary, t->base)
                           : file_link_unnamed(s->fd, t, t->base);
    if (ret == -EEXIST)
        return blk_fail_why(err, EEXIST, "a file of that name has appeared meanwhile",
                            "giving the new image its name '%s'", node->name);
    if (ret < 0)
        return blk_fail(err, -ret, "giving the new image its name '%s'", node->name);
    blk_temporary_forget(t->temporary);
    free(t->temporary);
    t->temporary = NULL;
    file_target_become(t, FILE_TARGET_GIVEN);
    return 0;
}

/* Gives an unnamed file a temporary name, from where it can be renamed. */
static int name_temporarily(struct file_state *s)
{
    struct file_target *t = s->target;
    for (int tries = 0; !t->temporary && tries < 100; tries++) {
        char *name = file_temporary_name(t->base);
        int ret = file_link_unnamed(s->fd, t, name);
        if (ret == 0) {
            t->temporary = name;
            file_target_become(t, FILE_TARGET_TEMPORARY);
            blk_temporary_note(t->directory_fd, name);
            return 0;
        }
        free(name);
        if (ret != -EEXIST)
            return ret;
    }
    return t->temporary ? 0 : -EEXIST;
}

/* Whether the name still belongs to the file that was locked. */
static int check_old(const struct file_target *t)
{
    struct stat old, now;
    if (blk_sys->fstat(t->old_fd, &old) < 0 ||
        blk_sys->fstatat(t->directory_fd, t->base, &now, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    return old.st_dev == now.st_dev && old.st_ino == now.st_ino ? 0 : -EEXIST;
}

/* Gives the old file a second name beside its own. */
static int link_old(const struct file_target *t, char **name)
{
    for (int tries = 0; tries < 100; tries++) {
        *name = file_temporary_name(t->base);
        if (blk_sys->linkat(t->directory_fd, t->base, t->directory_fd, *name, 0) == 0)
            return 0;
        int ret = -errno;
        free(*name);
        *name = NULL;
        if (ret != -EEXIST)
            return ret;
    }
    return -EEXIST;
}

/*
 * Without RENAME_EXCHANGE (NFS, FUSE): the old file gets a second name first. Where links cannot be
 * made either, it is gone with the rename.
 */
static int rename_and_keep(struct file_target *t)
{
    char *old_name;
    int ret = link_old(t, &old_name);
    if (ret < 0 && !blk_rename_is_unsupported(-ret))
        return ret;
    if (blk_sys->renameat(t->directory_fd, t->temporary, t->directory_fd, t->base) < 0) {
        ret = -errno;
        if (old_name)
            (void)blk_sys->unlinkat(t->directory_fd, old_name, 0);
        free(old_name);
        return ret;
    }
    free(t->temporary);
    t->temporary = old_name;
    file_target_become(t, old_name ? FILE_TARGET_GIVEN_OLD_KEPT : FILE_TARGET_GIVEN);
    return 0;
}

/* Names the new file; the old one gets the temporary name, so that it can come back. */
static int rename_over_old(struct file_target *t)
{
    /* From here on the temporary name may be the old file's. */
    blk_temporary_forget(t->temporary);
    if (blk_sys->renameat2(t->directory_fd, t->temporary, t->directory_fd, t->base,
                           RENAME_EXCHANGE) == 0) {
        file_target_become(t, FILE_TARGET_GIVEN_OLD_KEPT);
        return 0;
    }
    return blk_rename_is_unsupported(errno) ? rename_and_keep(t) : -errno;
}

static int name_over_old(struct blk_node *node, struct blk_error *err)
{
    struct file_state *s = node->state;
    struct file_target *t = s->target;

    int ret = check_old(t);
    if (ret == -EEXIST)
        return blk_fail_why(err, EEXIST, "another file has taken its name meanwhile",
                            "replacing '%s'", node->name);
    if (ret == 0)
        ret = name_temporarily(s);
    if (ret == 0)
        ret = rename_over_old(t);
    /* The release removes a temporary name. */
    return ret < 0 ? blk_fail(err, -ret, "replacing '%s'", node->name) : 0;
}

/* ---- the order ---- */

/* Content and inode reach the medium. A failure stays with the node. */
static int sync_all(struct blk_node *node, struct blk_error *err)
{
    const struct file_state *s = node->state;
    int earlier = atomic_load(&node->flush_error);
    if (earlier)
        return blk_fail(err, earlier, "flushing '%s'", node->name);
    if (node->cache.no_flush)
        return 0;

    int ret;
    do
        ret = blk_sys->fsync(s->fd) < 0 ? errno : 0;
    while (ret == EINTR);
    if (!ret)
        return 0;
    atomic_store(&node->flush_error, ret);
    return blk_fail(err, ret, "flushing '%s'", node->name);
}

/* Lost writes of network file systems show when a descriptor is closed. */
static int probe_close(struct blk_node *node, struct blk_error *err)
{
    const struct file_state *s = node->state;
    int ret = file_close_copy(s->fd);
    return ret < 0 ? blk_fail(err, -ret, "closing '%s'", node->name) : 0;
}

/* From the first sector on it looks complete, so from then on it can be taken back. */
static int publish_in_place(struct blk_node *node, struct blk_published *published,
                            struct blk_error *err)
{
    const struct file_state *s = node->state;
    /* Nothing may have been written: an empty file, or a device as it is. */
    int ret = file_overwrite(node, err);
    if (ret == 0)
        ret = sync_all(node, err);
    if (ret == 0)
        ret = probe_close(node, err);
    if (ret < 0)
        return ret;
    ret = file_held_end(node);
    file_target_become(s->target, FILE_TARGET_GIVEN); /* or a part of it, which counts the same */
    file_target_hold(node, published);
    if (ret < 0)
        return blk_fail(err, -ret, "writing the first sector of '%s'", node->name);
    ret = sync_all(node, err);
    return ret < 0 ? ret : probe_close(node, err);
}

/* The name is given: what follows can be undone. */
static int settle_name(const struct blk_node *node, struct file_target *t, struct blk_error *err)
{
    const struct file_state *s = node->state;
    int ret = node->cache.no_flush ? 0 : file_target_sync_directory(t, s->fd);
    if (ret < 0)
        return blk_fail(err, -ret, "flushing the directory of '%s'", node->name);
    ret = file_close(&t->old_fd);
    return ret < 0 ? blk_fail(err, -ret, "closing the old '%s'", node->name) : 0;
}

static int publish_by_name(struct blk_node *node, struct blk_published *published,
                           struct blk_error *err)
{
    struct file_state *s = node->state;
    struct file_target *t = s->target;
    int ret = 0;

    /* Again: they may have been changed since the target was made. */
    if (t->kind == FILE_TARGET_REPLACE)
        ret = file_copy_attributes(t->old_fd, s->fd);
    if (ret < 0)
        return blk_fail(err, -ret, "passing on owner and attributes of '%s'", node->name);
    ret = sync_all(node, err);
    if (ret == 0)
        ret = probe_close(node, err);
    if (ret == 0)
        ret = t->kind == FILE_TARGET_REPLACE ? name_over_old(node, err) : name_new(node, err);
    if (ret < 0)
        return ret;
    file_target_hold(node, published);
    return settle_name(node, t, err);
}

int file_publish(struct blk_node *node, struct blk_published *published, struct blk_error *err)
{
    const struct file_state *s = node->state;
    if (!s->target || node->abandoned)
        return 0;
    file_target_prepare_hold(node);
    int ret = s->target->kind == FILE_TARGET_IN_PLACE ? publish_in_place(node, published, err)
                                                      : publish_by_name(node, published, err);
    if (ret == 0)
        node->unnamed = false;
    return ret;
}
