/* SPDX-License-Identifier: MIT */
/*
 * The identity of an image in a chain of backups.
 *
 * Each backup gets a random id. The target carries it, with the id of the backup it builds on; the
 * source remembers for each bitmap that backups use the id of the backup which the bitmap counts
 * from. So an incremental backup can tell whether the base it is given is the one that its bitmap
 * continues.
 *
 * A changed image is not that backup any more: the first change removes its id before it reaches
 * the medium. A caller that knows that the content stays the same sets the id again.
 *
 * An overlay that says which backup it was made on is read through that backup only: opening a
 * chain checks each link (open.c), unless BLK_TRUST is given. So a base that was changed or
 * overwritten does not silently turn its overlays into other disks.
 *
 * A bitmap records what is written to its own image; what an unsafe rebase or another data file
 * changes it cannot see. So such a change makes the bitmaps count from no backup any more, unless
 * it is known to show the same. For that the source remembers what its backing chain looked like.
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
    uint64_t below; /* blk_identity_look() at its backing chain; 0: not known. With bitmaps only. */
};

/* As a parent: the image is only a part of a disk, and the rest is not a known backup. */
extern const struct blk_id blk_id_unknown;

/* A new random id (version 4 UUID). -errno when the system has no random bytes. */
int blk_id_new(struct blk_id *id);
bool blk_id_is_none(const struct blk_id *id);
bool blk_id_is_known(const struct blk_id *id); /* neither none nor unknown */
bool blk_id_equal(const struct blk_id *a, const struct blk_id *b);
void blk_id_format(const struct blk_id *id, char text[BLK_ID_TEXT_BYTES]);

/* What the image says; all zero where its format has none. Errors as of identity->get(). */
int blk_identity_of(struct blk_node *node, struct blk_identity *identity, struct blk_error *err);

/*
 * What the image is to say, where its format can: it takes effect together with the bitmaps, in the
 * next store, or with the next change of the backing file. Drains the node, as ops.h describes.
 */
void blk_identity_set(struct blk_node *node, const struct blk_identity *identity);

/* Changes the parent of an image that has an identity, durably and at once. Drains nothing. */
int blk_identity_put_parent(struct blk_node *node, const struct blk_id *parent,
                            struct blk_error *err);

/*
 * Whether `overlay` (a format, not a filter) may be read through `backing` (NULL: it has none): 0,
 * or -EINVAL with both files and ids named. It may not where it says which backup it was made on
 * and `backing` is another one, or is no backup any more; and not without a backing file where it
 * is only part of a disk.
 */
int blk_identity_check(struct blk_node *overlay, struct blk_node *backing, struct blk_error *err);

/*
 * `overlay` will show on `backing` (NULL: by itself) what it shows now: that one's id becomes its
 * parent's (blk_id_unknown if it has none), with the next change of the backing file. An image
 * that has no id and no parent gets none.
 */
int blk_identity_move(struct blk_node *overlay, struct blk_node *backing, struct blk_error *err);

/*
 * What tells the chain that ends in `backing` from others, without reading data: its files (a
 * renamed one is the same, one that has been written since is not), down to the first that is a
 * backup, whose id says more. 0 where that cannot be told, or without a backing file.
 */
uint64_t blk_identity_look(struct blk_node *backing);

/*
 * The image shows something else from its next change of the header on, which no bitmap has
 * recorded: none counts from a backup any more. With `whole` it is not the backup either that it
 * was. -errno as blk_identity_of().
 */
int blk_identity_lose(struct blk_node *node, bool whole, struct blk_error *err);

/* What a copy takes over of the identity of `source`. */
enum blk_copied {
    BLK_COPIED_WHOLE, /* the copy has no backing file */
    BLK_COPIED_LAYER, /* it has the same backing file, and what the source itself holds */
};

/*
 * What a copy that shows the same as `source` may say of itself (all zero: nothing): which backup
 * it is, and what the bitmaps count from that are copied, too. Nothing where it is not certain that
 * `source` shows what its ids stand for: read with BLK_TRUST or BLK_FORCE_SHARE, through a filter,
 * or over other files than its headers name; and no backup id where what is below a whole copy is
 * not a known backup. -errno as blk_identity_of().
 */
int blk_identity_of_copy(struct blk_node *source, enum blk_copied copied,
                         struct blk_identity *identity, struct blk_error *err);

/*
 * Whether a copy can always take one over: its format has ids, and no name of a data file competes
 * with them for the first sector.
 */
bool blk_identity_fits(const struct blk_node *copy);

/* To be called before any change of the content. */
int blk_identity_will_change(struct blk_node *node, struct blk_error *err);

/* The backup that the bitmap counts from, or NULL. */
const struct blk_id *blk_identity_since(const struct blk_identity *identity, const char *bitmap);

/* The bitmap counts from no backup any more. Returns whether it did. */
bool blk_identity_forget(struct blk_identity *identity, const char *bitmap);

/* Records that the bitmap counts from `id`; when there is no room the oldest entry goes. */
void blk_identity_set_since(struct blk_identity *identity, const char *bitmap,
                            const struct blk_id *id);

#endif
