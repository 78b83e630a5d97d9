/* SPDX-License-Identifier: MIT */
/*
 * The files that this run has open, known by what they are and not by how they are spelled: a
 * symlink, a hard link, "file:", "json:", a bind mount or /dev/fd/N is the same file.
 *
 * Nothing that is written may be open twice: a target must not be a part of what is read, nor may a
 * chain lead to what is about to be replaced. Locks say the same, but not with -U or locking=off,
 * and their message does not say what the user did. The protocol drivers ask here before they open,
 * so that no command can forget to.
 *
 * For the thread that opens and closes graphs.
 */
#ifndef BLOCKCORE_GRAPH_OPEN_FILES_H
#define BLOCKCORE_GRAPH_OPEN_FILES_H

#include <stdbool.h>
#include <sys/stat.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

/* `node` has the file open that `st` describes, or will replace it. Until the node is freed. */
void blk_open_files_add(const struct blk_node *node, const struct stat *st);

/* `node` will give its file the name `base` in that directory, where it is free. */
void blk_open_files_add_name(const struct blk_node *node, const struct stat *directory,
                             const char *base);

void blk_open_files_remove(const struct blk_node *node);

/*
 * Whether the file may be opened (for writing with `writes`) under the name `path` besides what is
 * open already; `self` (or NULL) does not count. 0, or -ENOTUNIQ.
 */
int blk_open_files_check(const struct blk_node *self, const struct stat *st, bool writes,
                         const char *path, struct blk_error *err);

/* The same for a name that is free: -ENOTUNIQ if another node is about to get it. */
int blk_open_files_check_name(const char *path, struct blk_error *err);

/* The node that has the file of this name open, or is about to get that name; NULL: none. */
const struct blk_node *blk_open_files_find(const char *path);

/* Whether the bytes of both nodes are in one file. */
bool blk_open_files_share(const struct blk_node *a, const struct blk_node *b);

/* Whether both paths lead to one file, or would: the same name in the same directory. */
bool blk_same_path(const char *a, const char *b);

#endif
