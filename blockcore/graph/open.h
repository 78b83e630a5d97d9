/* SPDX-License-Identifier: MIT */
/* Opening graphs. */
#ifndef BLOCKCORE_GRAPH_OPEN_H
#define BLOCKCORE_GRAPH_OPEN_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/options.h"

/*
 * What to open. At least one of `filename` and `options` is given; with both, the name says where
 * the file is.
 */
struct blk_open {
    const char *filename;              /* plain name, "PROTOCOL:...", or "json:{...}" */
    const struct blk_options *options; /* as from --image-opts; not changed */
    const char *format; /* overrides the driver of a json: name; NULL: that driver, else probe */
    unsigned flags;     /* enum blk_open_flags */
    struct blk_cache_mode cache;
    const struct blk_options *defaults; /* for protocols: locking, lock-wait; or NULL */
};

/*
 * Opens the graph; the caller owns the one reference to *root. On failure -errno with the file
 * named, and *root is NULL.
 */
int blk_open(const struct blk_open *how, struct blk_node **root, struct blk_error *err);

/*
 * For drivers: opens the child that "<group>.*" in `options` describes, with the parent's flags,
 * and attaches it. `protocol` says that without a driver the child is a protocol node and not
 * probed.
 */
int blk_open_child(struct blk_node *parent, enum blk_role role, struct blk_options *options,
                   const char *group, bool protocol, struct blk_error *err);

/* A format or filter to be opened over a file node that is open already. */
struct blk_open_over {
    const struct blk_driver *driver;
    struct blk_node *file;
    /*
     * The DATA child of an image whose external data file was just made and has no name yet; or
     * NULL. It is attached before the driver's open, which must then not open another.
     */
    struct blk_node *data;
    struct blk_options *options; /* of the driver, used ones get marked; or NULL */
    unsigned flags;              /* enum blk_open_flags */
    struct blk_cache_mode cache;
};

/* The references to file and data pass to the new node; on failure they stay with the caller. */
int blk_open_over(const struct blk_open_over *over, struct blk_node **node, struct blk_error *err);

/*
 * Opens a file as it would be the backing file of `node`, read-only and without attaching it. Of
 * `how` it uses filename (relative to the image's directory), format, flags and cache. -ELOOP when
 * the file's chain leads back to `node`.
 */
int blk_open_new_backing(struct blk_node *node, const struct blk_open *how,
                         struct blk_node **backing, struct blk_error *err);

/*
 * Whether the header of `node` may name that file as its backing file. 0 if it may. -ENOTUNIQ or
 * -ELOOP: its chain leads to a file that this run writes, perhaps that of `node`. -EINVAL: the name
 * cannot be stored (links.h). A file that cannot be opened passes. If `held` is not NULL, *held is
 * the opened file, or NULL: while it is open nothing of it can be overwritten.
 */
int blk_check_backing(struct blk_node *node, const char *name, const char *format,
                      struct blk_node **held, struct blk_error *err);

#endif
