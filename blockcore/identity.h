/*
 * The identity of an image in a chain of backups.
 *
 * Each backup gets a random id. The target carries it, with the id of the
 * backup it builds on; the source remembers for each bitmap that backups use
 * the id of the backup which the bitmap counts from. So an incremental backup
 * can tell whether the base it is given is the one that its bitmap continues.
 *
 * An image that is changed is not that backup any more: the first change takes its id away, before
 * it reaches the medium. Who knows that the content stays what it was sets the id again.
 */
#ifndef BLOCKCORE_IDENTITY_H
#define BLOCKCORE_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/error.h"
#include "blockcore/node.h"

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
};

/* As a parent: the image is only a part, and what it builds on is no backup that is known. */
extern const struct blk_id blk_id_unknown;

/* A new random id (version 4 UUID). -errno when the system has no random bytes. */
int blk_id_new(struct blk_id *id);
bool blk_id_is_none(const struct blk_id *id);
bool blk_id_is_known(const struct blk_id *id); /* neither none nor unknown */
bool blk_id_equal(const struct blk_id *a, const struct blk_id *b);
void blk_id_format(const struct blk_id *id, char text[BLK_ID_TEXT_BYTES]);

/* What the image says; all zero where its format has none. Errors as the driver's identity_get. */
int blk_identity_of(struct blk_node *node, struct blk_identity *identity, struct blk_error *err);

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
