/* SPDX-License-Identifier: MIT */
/*
 * Files that a header names: the backing file, the external data file.
 *
 * A header on stable storage must not name a file that is not: after "cp base new" and a power cut,
 * a chain that looks good would have lost its data. So before a header that names a new file is
 * written, that file is synced, with its whole chain and their directory entries, because the
 * program that made them may have synced nothing. Not in cache mode unsafe.
 */
#ifndef BLOCKCORE_GRAPH_BACKING_H
#define BLOCKCORE_GRAPH_BACKING_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

/*
 * Syncs the file `name` (relative to the image's directory) of `format` (NULL: probed), which the
 * header of `node` is about to name. A file that does not exist, and a name that no driver can
 * open, are skipped: a header may name them. 0 or -errno with the file named.
 */
int blk_sync_named(struct blk_node *node, const char *name, const char *format,
                   struct blk_error *err);

/*
 * Gives the image another backing file in its header; NULL: none. Does not touch the graph; drains
 * the node. -ENOTSUP where the format has no backing files. Otherwise -errno: the header names the
 * old one, or, if its write failed, the old or the new one.
 */
int blk_change_backing(struct blk_node *node, const char *name, const char *format,
                       struct blk_error *err);

/* Whether the header has room for that one; changes nothing. */
int blk_can_change_backing(struct blk_node *node, const char *name, const char *format,
                           struct blk_error *err);

#endif
