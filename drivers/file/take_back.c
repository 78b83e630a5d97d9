/*
 * A published name that can be taken back, until all names of a job are given (published.h).
 *
 * A new name is removed again. A file that was replaced has the temporary name since renameat2(2)
 * exchanged the two, and is exchanged back.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "blockcore/memory.h"
#include "blockcore/published.h"
#include "blockcore/sys.h"
#include "drivers/file/file.h"

struct given {
    struct blk_published_entry entry;
    struct file_target *target;
    char *name; /* of the node */
    dev_t device;
    ino_t inode;
    bool no_flush;
};

static void free_given(struct given *given)
{
    file_target_drop(given->target);
    free(given->name);
    free(given);
}

/* Another file that has the name by now is not ours to touch. */
static int remove_name(const struct given *given, int fd)
{
    const struct file_target *t = given->target;
    struct stat now;

    if (fd < 0 && errno == ENOENT && t->exchanged)
        return blk_sys->renameat(t->folder_fd, t->temporary, t->folder_fd, t->base) < 0 ? -errno
                                                                                        : 0;
    if (fd < 0 || blk_sys->fstat(fd, &now) < 0)
        return errno == ENOENT ? 0 : -errno;
    bool ours = now.st_dev == given->device && now.st_ino == given->inode;
    if (!ours)
        return t->exchanged ? -EEXIST : 0;
    if (t->exchanged && blk_sys->renameat2(t->folder_fd, t->temporary, t->folder_fd, t->base,
                                           RENAME_EXCHANGE) < 0)
        return -errno;
    const char *unwanted = t->exchanged ? t->temporary : t->base;
    if (blk_sys->unlinkat(t->folder_fd, unwanted, 0) < 0)
        return -errno;
    return given->no_flush ? 0 : file_target_sync_folder(t, fd);
}

static int take_back(void *state, struct blk_error *err)
{
    struct given *given = state;
    struct file_target *t = given->target;
    /* syncfs(2) needs a file that is really open. */
    int fd = blk_sys->openat(t->folder_fd, t->base, (t->folder_is_path ? O_RDONLY : O_PATH) |
                                                        O_NOFOLLOW | O_CLOEXEC, 0);
    int ret = remove_name(given, fd);

    if (ret < 0) {
        blk_fail(err, -ret, "taking the name '%s' back", given->name);
        if (t->exchanged)
            blk_left_behind(err, "what it was before may be '%s' in the same folder", t->temporary);
    }
    file_close(&fd);
    free_given(given);
    return ret;
}

static int keep(void *state, struct blk_error *err)
{
    struct given *given = state;
    const struct file_target *t = given->target;
    int ret = 0;

    if (t->exchanged && blk_sys->unlinkat(t->folder_fd, t->temporary, 0) < 0 && errno != ENOENT) {
        ret = blk_fail(err, errno, "removing what '%s' replaced", given->name);
        blk_left_behind(err, "it is '%s' in the same folder", t->temporary);
    }
    free_given(given);
    return ret;
}

void file_target_prepare_hold(struct blk_node *node)
{
    struct file_state *s = node->state;

    if (s->target->given)
        return;
    s->target->given = blk_xcalloc(1, sizeof(*s->target->given));
    s->target->given->name = blk_xstrdup(node->name);
}

void file_target_forget_hold(struct file_target *t)
{
    if (t->given)
        free(t->given->name);
    free(t->given);
    t->given = NULL;
}

void file_target_hold(struct blk_node *node, struct blk_published *published)
{
    static const struct blk_published_ops ops = { .take_back = take_back, .keep = keep };
    struct file_state *s = node->state;
    struct given *given = s->target->given;
    struct stat st = { .st_ino = 0 };

    (void)blk_sys->fstat(s->fd, &st); /* if that fails, the name is not taken for ours */
    given->target = s->target;
    given->device = st.st_dev;
    given->inode = st.st_ino;
    given->no_flush = node->cache.no_flush;
    s->target->given = NULL;
    s->target = NULL;
    blk_published_add(published, &given->entry, &ops, given);
}
