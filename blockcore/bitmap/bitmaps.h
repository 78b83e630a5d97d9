/* SPDX-License-Identifier: MIT */
/*
 * The dirty bitmaps of a node, and how writes are recorded in them.
 *
 * A driver that keeps bitmaps in its image (qcow2) attaches the set at open with the names and
 * flags that the image has; the bits of a bitmap are loaded when it is first used, and those of all
 * enabled ones before the first write. A write that an enabled bitmap records is marked before it
 * is issued and again when it completes, whether it succeeded or not: a job that clears bits and
 * copies in between cannot lose it. Before the first such write the driver's bitmaps->track() makes
 * the image say that its enabled bitmaps are in use (C5); so a run that writes no guest data leaves
 * the bitmaps of an image alone, however it ends. The set and its bits are stored in the close's
 * store step, or when the node is reopened read-only.
 */
#ifndef BLOCKCORE_BITMAP_BITMAPS_H
#define BLOCKCORE_BITMAP_BITMAPS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/base/lock.h"
#include "blockcore/bitmap/dirty_bitmap.h"
#include "blockcore/graph/node.h"

struct blk_dirty_bitmaps {
    struct blk_dirty_bitmap *first; /* in the image's order; changed only with the node drained */
    struct blk_mutex mutex;         /* held while the tracking of writes begins */
    atomic_bool tracked;            /* the image says that the enabled bitmaps are in use (C5) */
    bool changed;                   /* set, names or flags differ from the image's */
    bool must_store;                /* all other work is done: no signal may stop the store */
};

/* The node's set; an empty one is made if there is none. */
struct blk_dirty_bitmaps *blk_bitmaps_of(struct blk_node *node);

/* Ends the tracking: all is stored, or a bitmap was added that the image does not call in use. */
void blk_bitmaps_untrack(struct blk_dirty_bitmaps *bitmaps);

/* Adds a bitmap at the end; the set owns it. -EEXIST when the name is taken. */
int blk_bitmaps_add(struct blk_node *node, struct blk_dirty_bitmap *bitmap, struct blk_error *err);

/* Takes the bitmap out of the set and frees it. */
void blk_bitmaps_remove(struct blk_node *node, struct blk_dirty_bitmap *bitmap);

/* Whether the set has changes that the image lacks: a close that cannot store them must say so. */
bool blk_bitmaps_unsaved(const struct blk_node *node);

/* Puts "<action>: bitmap 'a', 'b' of 'node': " before an error that concerns all of them. */
void blk_bitmaps_name(const struct blk_node *node, const char *action, struct blk_error *err);

/* Frees the node's set and all in it; before blk_node_free(). */
void blk_bitmaps_free(struct blk_node *node);

/* The bitmap of that name, or NULL. */
struct blk_dirty_bitmap *blk_bitmaps_find(const struct blk_node *node, const char *name);
/* Fail, in qemu-img's words, because there is no bitmap of that name, or because there is one. */
int blk_bitmaps_not_found(const struct blk_node *node, const char *name, struct blk_error *err);
int blk_bitmaps_exists(const struct blk_node *node, const char *name, struct blk_error *err);

/*
 * The bitmap of that name, usable and with its bits in memory. Errors name node and bitmap:
 * -ENOENT; -EINVAL when it is inconsistent (the message says how to remove it) or has properties
 * that we do not know.
 */
int blk_bitmaps_get_usable(struct blk_node *node, const char *name,
                           struct blk_dirty_bitmap **bitmap, struct blk_error *err);

/* 0 if the image can keep one more bitmap, else why not: -ENOTSUP for a format without bitmaps. */
int blk_bitmaps_can_add(struct blk_node *node, struct blk_error *err);
/*
 * The same for an image yet to be made by `driver` with these create options; marks none as used.
 */
int blk_bitmaps_can_create(const struct blk_driver *driver, const char *filename,
                           const struct blk_options *creation, struct blk_error *err);

/* Loads all bitmaps; fails as blk_bitmaps_get_usable() unless every one is usable. */
int blk_bitmaps_check_usable(struct blk_node *node, struct blk_error *err);

/*
 * Marks what is dirty in `from` in the bitmap of the same name; where there is none, makes a
 * persistent one of the same granularity, enabled if `from` is. The node is drained or has no other
 * user.
 */
int blk_bitmaps_merge_same(struct blk_node *node, const struct blk_dirty_bitmap *from,
                           struct blk_error *err);

/* Loads the bits of all usable bitmaps, unless they are in memory. */
int blk_bitmaps_load(struct blk_node *node, struct blk_error *err);

/*
 * For blockcore's requests, around each change of guest data. The first may fail: then nothing may
 * be written.
 */
int blk_bitmaps_will_write(struct blk_node *node, uint64_t offset, uint64_t bytes,
                           struct blk_error *err);
void blk_bitmaps_did_write(struct blk_node *node, uint64_t offset, uint64_t bytes);

/*
 * After a change of the node's size: resizes every usable bitmap, which must have been loaded. In
 * enabled ones the new part is dirty: a disk that shrank and grew again reads as zeroes where an
 * earlier backup has data. A bitmap that cannot be resized becomes inconsistent; the first such
 * failure is returned.
 */
int blk_bitmaps_resize(struct blk_node *node, uint64_t size, struct blk_error *err);

#endif
