/* SPDX-License-Identifier: MIT */
/* Creating images. */
#ifndef BLOCKCORE_GRAPH_CREATE_H
#define BLOCKCORE_GRAPH_CREATE_H

#include <stdbool.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/options.h"

/* How an image is created. */
struct blk_create {
    const char *filename;                     /* or NULL with target_options */
    const struct blk_options *target_options; /* as from --target-image-opts, or NULL */
    const struct blk_driver *driver;          /* the format */
    struct blk_options *options; /* create options, including "size"; used ones get marked */
    unsigned flags;              /* of the resulting node; BLK_WRITABLE is implied */
    struct blk_cache_mode cache;
    bool in_place;                      /* an existing file is overwritten instead of replaced */
    const struct blk_options *defaults; /* as in struct blk_open */

    /* Set by blk_create() for the drivers. */
    struct blk_options *protocol_options; /* for make_node(): "filename" and the like */
    struct blk_node *file;                /* for write_image(): where the image goes */

    /* Set by a format's write_image(), with blk_create_data(): the external data file, or NULL. */
    struct blk_node *data;
};

/*
 * Creates an image and returns it open for writing. The close publishes it (C6): until then there
 * is no file of that name, or the old one is untouched (unless it is written in place). On failure
 * nothing is left.
 */
int blk_create(struct blk_create *create, struct blk_node **root, struct blk_error *err);

/*
 * For a format's write_image(): makes the external data file of that name, empty and open for
 * writing, as create->data. It becomes the DATA child of the image, and gets its name when the
 * image is closed, before the image gets its own.
 */
int blk_create_data(struct blk_create *create, const char *filename, struct blk_error *err);

#endif
