/* SPDX-License-Identifier: MIT */
/* The list of what is open or about to get a name, by device and inode. */
#include "blockcore/graph/open_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/graph/driver.h"

/* What makes a file, or with `base` a name in a directory, the same as another. */
struct identity {
    dev_t device;
    ino_t inode; /* 0: a block device */
    const char *base;
};

struct open_file {
    struct open_file *next;
    const struct blk_node *node;
    struct identity is;
    char *base; /* owned; is.base */
};

static struct open_file *open_files;

static struct identity identity_of(const struct stat *st)
{
    if (S_ISBLK(st->st_mode))
        return (struct identity){ .device = st->st_rdev };
    return (struct identity){ .device = st->st_dev, .inode = st->st_ino };
}

static bool is_same(const struct identity *a, const struct identity *b)
{
    return a->device == b->device && a->inode == b->inode && !a->base == !b->base &&
           (!a->base || strcmp(a->base, b->base) == 0);
}

static void add_open_file(const struct blk_node *node, const struct identity *is)
{
    struct open_file *file = blk_xcalloc(1, sizeof(*file));
    *file = (struct open_file){ .next = open_files, .node = node, .is = *is };
    if (is->base)
        file->is.base = file->base = blk_xstrdup(is->base);
    open_files = file;
}

void blk_open_files_add(const struct blk_node *node, const struct stat *st)
{
    const struct identity is = identity_of(st);
    add_open_file(node, &is);
}

void blk_open_files_add_name(const struct blk_node *node, const struct stat *directory,
                             const char *base)
{
    struct identity is = identity_of(directory);
    is.base = base;
    add_open_file(node, &is);
}

void blk_open_files_remove(const struct blk_node *node)
{
    for (struct open_file **at = &open_files; *at;) {
        struct open_file *file = *at;
        if (file->node != node) {
            at = &file->next;
            continue;
        }
        *at = file->next;
        free(file->base);
        free(file);
    }
}

/* The first after `from` (NULL: of all) that is the same. */
static const struct open_file *find_open_file(const struct open_file *from,
                                              const struct identity *is)
{
    const struct open_file *file = from ? from->next : open_files;
    while (file && !is_same(&file->is, is))
        file = file->next;
    return file;
}

/* Finds out what a path leads to, or which name it would be. */
static bool identify(const char *path, struct identity *is)
{
    struct stat st;
    if (blk_sys->fstatat(AT_FDCWD, path, &st, 0) == 0) {
        *is = identity_of(&st);
        return true;
    }
    if (errno != ENOENT)
        return false;
    const char *slash = strrchr(path, '/');
    BLK_AUTOFREE char *directory =
        slash ? blk_xstrndup(path, (size_t)(slash - path) + 1) : blk_xstrdup(".");
    if (blk_sys->fstatat(AT_FDCWD, directory, &st, 0) < 0)
        return false;
    *is = identity_of(&st);
    is->base = slash ? slash + 1 : path;
    return true;
}

/* ---- questions ---- */

int blk_open_files_check(const struct blk_node *self, const struct stat *st, bool writes,
                         const char *path, struct blk_error *err)
{
    const struct identity is = identity_of(st);

    for (const struct open_file *file = find_open_file(NULL, &is); file;
         file = find_open_file(file, &is)) {
        bool written = blk_is_writable(file->node);
        if (file->node == self || (!writes && !written))
            continue;
        BLK_AUTOFREE char *why = blk_xasprintf("it is the same file as '%s', which this command %s",
                                               file->node->name, written ? "writes" : "reads");
        return blk_fail_why(err, ENOTUNIQ, why, "Could not open '%s'%s", path,
                            writes ? " for writing" : "");
    }
    return 0;
}

int blk_open_files_check_name(const char *path, struct blk_error *err)
{
    struct identity is;
    bool known = identify(path, &is) && is.base;
    const struct open_file *file = known ? find_open_file(NULL, &is) : NULL;
    if (!file)
        return 0;
    BLK_AUTOFREE char *why = blk_xasprintf("it is the same file as '%s', which this command "
                                           "creates",
                                           file->node->name);
    return blk_fail_why(err, ENOTUNIQ, why, "Could not open '%s'", path);
}

const struct blk_node *blk_open_files_find(const char *path)
{
    struct identity is;
    const struct open_file *file = identify(path, &is) ? find_open_file(NULL, &is) : NULL;
    return file ? file->node : NULL;
}

static const struct open_file *file_of(const struct blk_node *node)
{
    while (blk_child(node, BLK_ROLE_FILE))
        node = blk_child(node, BLK_ROLE_FILE);
    const struct open_file *file = open_files;
    while (file && file->node != node)
        file = file->next;
    return file;
}

bool blk_open_files_share(const struct blk_node *a, const struct blk_node *b)
{
    const struct open_file *first = file_of(a), *second = file_of(b);
    return first && second && is_same(&first->is, &second->is);
}

bool blk_same_path(const char *a, const char *b)
{
    struct identity first, second;
    return identify(a, &first) && identify(b, &second) && is_same(&first, &second);
}
