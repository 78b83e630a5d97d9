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
    const char *format;                /* before a json: name's driver; NULL: that, else probe */
    unsigned flags;                    /* enum blk_open_flags */
    struct blk_cache_mode cache;
    const struct blk_options *defaults; /* for protocols: locking, lock-wait; or NULL */
};

/*
 * Opens the graph; *root gets its one reference. Errors: -errno with the file named; *root is NULL
 * then.
 */
int blk_open(const struct blk_open *how, struct blk_node **root, struct blk_error *err);

/*
 * For drivers: opens the child that "<group>.*" in `options` describes, with the parent's flags,
 * and attaches it. `protocol` says that without a driver the child is a protocol node and not
 * probed.
 */
int blk_open_child(struct blk_node *parent, enum blk_role role, struct blk_options *options,
                   const char *group, bool protocol, struct blk_error *err);

/* A format or filter to be opened over what is open already. */
struct blk_open_over {
    const struct blk_driver *driver;
    struct blk_node *file;
    /*
     * The DATA child, there before the driver's open, which must then not open another: for an
     * image whose external data file was just made and has no name yet. Or NULL.
     */
    struct blk_node *data;
    struct blk_options *options; /* the driver's; used ones get marked; or NULL */
    unsigned flags;              /* enum blk_open_flags */
    struct blk_cache_mode cache;
};

/* The references to file and data pass to the new node; on failure they stay with the caller. */
int blk_open_over(const struct blk_open_over *over, struct blk_node **node, struct blk_error *err);

/*
 * Opens, read-only, what would be the backing file of `node`, without attaching it: filename
 * (relative to the image's directory), format, flags and cache of `how`. -ELOOP when its chain
 * leads back to `node`.
 */
int blk_open_new_backing(struct blk_node *node, const struct blk_open *how,
                         struct blk_node **backing, struct blk_error *err);

/*
 * Whether the header of `node` may name that file as its backing file: 0, or why not (-ENOTUNIQ,
 * -ELOOP) when the chain below it leads to a file that this run writes, `node`'s own among them, or
 * (-EINVAL) when the name is one that cannot be stored (links.h). What cannot be opened is not
 * judged. With `held` (may be NULL) what could be opened, or NULL, is left open there: nothing of
 * it can be overwritten until it is dropped.
 */
int blk_check_backing(struct blk_node *node, const char *name, const char *format,
                      struct blk_node **held, struct blk_error *err);

#endif
