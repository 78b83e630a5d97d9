/* SPDX-License-Identifier: MIT */
/*
 * The identity of an image in a chain of backups.
 *
 * Each backup gets a random id. The target carries it, with the id of the backup it builds on (its
 * parent); the source remembers, for each bitmap used by backups, the id of the backup that the
 * bitmap counts from. So an incremental backup can tell whether its base is the one that its bitmap
 * counts from.
 *
 * A changed image is no longer that backup: before the first change reaches the medium, the id is
 * removed. A caller that knows that the content stays the same sets the id again.
 *
 * An overlay that names its parent is read only through that backup: opening a chain checks each
 * link (open.c), unless BLK_TRUST is given. So a base that was changed or overwritten does not
 * silently turn its overlays into other disks.
 *
 * A bitmap records what is written to its own image; it cannot see what an unsafe rebase or another
 * data file changes. So after such a change the bitmaps no longer count from any backup, unless the
 * disk is known to show the same. To tell, the source remembers what its backing chain looked like.
 */
#ifndef BLOCKCORE_BITMAP_IDENTITY_H
#define BLOCKCORE_BITMAP_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

#define BLK_ID_BYTES 16
#define BLK_ID_TEXT_BYTES 37 /* as a UUID, with the terminating zero */
#define BLK_IDENTITY_BITMAPS 4

struct blk_id {
    uint8_t bytes[BLK_ID_BYTES]; /* all zero: none */
};

struct blk_identity {
    struct blk_id backup; /* of the backup that this image is */
    struct blk_id parent; /* of the backup that it builds on */
    struct {
        uint64_t name_hash; /* of the bitmap's name: FNV-1a, 64 bits */
        struct blk_id since;
    } bitmaps[BLK_IDENTITY_BITMAPS];
    size_t bitmap_count;
    uint64_t below; /* blk_identity_look() of its backing chain; 0: not known. For bitmaps only */
};

/* As a parent: the image is only a part of a disk, and the rest is not a known backup. */
extern const struct blk_id blk_id_unknown;

/* A new random id (version 4 UUID). -errno when the system has no random bytes. */
int blk_id_new(struct blk_id *id);
bool blk_id_is_none(const struct blk_id *id);
bool blk_id_is_known(const struct blk_id *id); /* neither none nor unknown */
bool blk_id_equal(const struct blk_id *a, const struct blk_id *b);
void blk_id_format(const struct blk_id *id, char text[BLK_ID_TEXT_BYTES]);

/* The image's identity; all zero where its format has none. Errors as from identity->get(). */
int blk_identity_of(struct blk_node *node, struct blk_identity *identity, struct blk_error *err);

/*
 * Sets the image's identity, where its format has one. It takes effect together with the bitmaps,
 * in the next store, or with the next change of the backing file. Drains the node, as ops.h
 * describes.
 */
void blk_identity_set(struct blk_node *node, const struct blk_identity *identity);

/* Changes the parent of an image that has an identity, durably and at once. Drains nothing. */
int blk_identity_put_parent(struct blk_node *node, const struct blk_id *parent,
                            struct blk_error *err);

/*
 * Whether `overlay` (a format, not a filter) may be read through `backing` (NULL: it has none): 0,
 * or -EINVAL, naming both files and ids. It may not if its parent is known and `backing` is another
 * backup or no longer one, nor without a backing file if it is only part of a disk.
 */
int blk_identity_check(struct blk_node *overlay, struct blk_node *backing, struct blk_error *err);

/*
 * `overlay` will show the same over `backing` (NULL: by itself) as it does now. So the id of
 * `backing` (blk_id_unknown if it has none) becomes its parent's, with the next change of the
 * backing file. An image that has neither id nor parent gets none.
 */
int blk_identity_move(struct blk_node *overlay, struct blk_node *backing, struct blk_error *err);

/*
 * A hash that tells the chain with `backing` at its top from others, without reading data. It
 * covers the chain's files (a renamed one is the same, one that was written since is not) down to
 * the first that is a backup, whose id says more. 0 if it cannot be determined, or without a
 * backing file.
 */
uint64_t blk_identity_look(struct blk_node *backing);

/*
 * With the next change of its header the image will show something else, which no bitmap has
 * recorded: none of them counts from a backup any more. With `whole` the image also loses its own
 * id. -errno as from blk_identity_of().
 */
int blk_identity_lose(struct blk_node *node, bool whole, struct blk_error *err);

/* How a copy relates to its source. */
enum blk_copied {
    BLK_COPIED_WHOLE, /* the copy has no backing file */
    BLK_COPIED_LAYER, /* the copy has the same backing file, and the data of the source itself */
};

/*
 * The identity that a copy which shows the same as `source` may have (all zero: none): which backup
 * it is, and what bitmaps that are copied with it count from. None where it is not certain that
 * `source` shows what its ids stand for: read with BLK_TRUST or BLK_FORCE_SHARE, through a filter,
 * or over other files than its headers name. A whole copy of a source whose backing file is not a
 * known backup gets no backup id. -errno as from blk_identity_of().
 */
int blk_identity_of_copy(struct blk_node *source, enum blk_copied copied,
                         struct blk_identity *identity, struct blk_error *err);

/*
 * Whether a copy is certain to have room for an identity: its format has ids, and no name of a data
 * file competes with them for the first sector.
 */
bool blk_identity_fits(const struct blk_node *copy);

/* To be called before any change of the content. */
int blk_identity_will_change(struct blk_node *node, struct blk_error *err);

/* The backup that the bitmap counts from, or NULL. */
const struct blk_id *blk_identity_since(const struct blk_identity *identity, const char *bitmap);

/* The bitmap no longer counts from a backup. Returns whether it did. */
bool blk_identity_forget(struct blk_identity *identity, const char *bitmap);

/* Records that the bitmap counts from `id`; when there is no room the oldest entry goes. */
void blk_identity_set_since(struct blk_identity *identity, const char *bitmap,
                            const struct blk_id *id);

#endif
