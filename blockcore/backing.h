/*
 * Files that a header names: the backing file, the external data file.
 *
 * A header that is on stable storage must not name a file that is not: after "cp base new" and a
 * power cut, what looked like a good chain would have lost its data. So what a header begins to
 * name is synced before the header is written: the whole chain of it, its directory entries
 * included, because whoever made those files may have synced nothing. Not in cache mode unsafe.
 */
#ifndef BLOCKCORE_BACKING_H
#define BLOCKCORE_BACKING_H

#include "blockcore/error.h"
#include "blockcore/node.h"

/*
 * Makes stable what `name` (relative to the image's directory) and `format` (NULL: probed) stand
 * for, as a file that `node` begins to name. A file that does not exist, and a name that no driver
 * can open, are left out: a header may name them. 0 or -errno with the file named.
 */
int blk_sync_named(struct blk_node *node, const char *name, const char *format,
                   struct blk_error *err);

/*
 * Gives the image another backing file in its header; NULL: none. Does not touch the graph. The
 * driver must have change_backing. -errno: the header names the old one, or, if its write failed,
 * the old or the new one.
 */
int blk_change_backing(struct blk_node *node, const char *name, const char *format,
                       struct blk_error *err);

#endif
