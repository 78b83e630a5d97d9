/* SPDX-License-Identifier: MIT */
/* Setting, moving and losing the ids of backups, and whether two images fit together by them. */
#include "blockcore/bitmap/identity.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/lock.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/names.h"

const struct blk_id blk_id_unknown = {
    { [0 ... BLK_ID_BYTES - 1] = 0xff },
};

int blk_id_new(struct blk_id *id)
{
    if (getrandom(id->bytes, sizeof(id->bytes), 0) != (ssize_t)sizeof(id->bytes))
        return errno ? -errno : -EIO;
    id->bytes[6] = (uint8_t)((id->bytes[6] & 0x0f) | 0x40);
    id->bytes[8] = (uint8_t)((id->bytes[8] & 0x3f) | 0x80);
    return 0;
}

bool blk_id_is_none(const struct blk_id *id)
{
    static const struct blk_id none;
    return blk_id_equal(id, &none);
}

bool blk_id_is_known(const struct blk_id *id)
{
    return !blk_id_is_none(id) && !blk_id_equal(id, &blk_id_unknown);
}

bool blk_id_equal(const struct blk_id *a, const struct blk_id *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

void blk_id_format(const struct blk_id *id, char text[BLK_ID_TEXT_BYTES])
{
    size_t at = 0;
    for (size_t i = 0; i < BLK_ID_BYTES; i++) {
        bool dash = i == 4 || i == 6 || i == 8 || i == 10;
        at += (size_t)snprintf(text + at, BLK_ID_TEXT_BYTES - at, "%s%02x", dash ? "-" : "",
                               id->bytes[i]);
    }
}

/* FNV-1a, 64 bits. */
#define HASH_BEGIN UINT64_C(0xcbf29ce484222325)

static uint64_t hash_add(uint64_t hash, const void *data, size_t bytes)
{
    for (const uint8_t *at = data; bytes; bytes--, at++)
        hash = (hash ^ *at) * UINT64_C(0x100000001b3);
    return hash;
}

/* Names are longer than the first sector of an image has room for. */
static uint64_t hash_of_name(const char *name)
{
    return hash_add(HASH_BEGIN, name, strlen(name));
}

int blk_identity_of(struct blk_node *node, struct blk_identity *identity, struct blk_error *err)
{
    *identity = (struct blk_identity){ .bitmap_count = 0 };
    if (!blk_supports(node, BLK_IDENTITY))
        return 0;
    return BLK_OP(node->driver, identity, get)(node, identity, err);
}

void blk_identity_set(struct blk_node *node, const struct blk_identity *identity)
{
    if (!blk_supports(node, BLK_IDENTITY))
        return;
    BLK_DRAIN_SCOPE(&node->gate);
    BLK_OP(node->driver, identity, set)(node, identity);
}

int blk_identity_put_parent(struct blk_node *node, const struct blk_id *parent,
                            struct blk_error *err)
{
    int ret = blk_require(node, BLK_IDENTITY, err, "'%s'", node->name);
    return ret < 0 ? ret : BLK_OP(node->driver, identity, put)(node, NULL, parent, err);
}

int blk_identity_will_change(struct blk_node *node, struct blk_error *err)
{
    static struct blk_mutex mutex = BLK_MUTEX_INIT;
    static const struct blk_id none;
    int ret = 0;

    if (!atomic_load(&node->is_backup))
        return 0;
    /* Others wait until it is gone from the medium. */
    LOCK_SCOPE(&mutex);
    if (atomic_load(&node->is_backup))
        ret = BLK_OP(node->driver, identity, put)(node, &none, NULL, err);
    if (ret == 0)
        atomic_store(&node->is_backup, false);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "removing the backup id of '%s'", node->name) : 0;
}

/* ---- what is below ---- */

/* The file itself, wherever it is called what. The time tells it from a later one of its number. */
static bool look_at_file(const struct blk_node *node, uint64_t *hash)
{
    struct stat st;

    if (stat(node->name, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    const uint64_t what[] = { st.st_ino, (uint64_t)st.st_size, (uint64_t)st.st_mtim.tv_sec,
                              (uint64_t)st.st_mtim.tv_nsec };
    *hash = hash_add(*hash, what, sizeof(what));
    return true;
}

/* Whether a raw image shows only a part of its file, which nothing but its options tells. */
static bool is_part_of_file(const struct blk_node *node, const struct blk_node *file)
{
    return !node->driver->supports_backing &&
           round_up(blk_size(file), BLK_SECTOR_BYTES) != round_up(blk_size(node), BLK_SECTOR_BYTES);
}

/* Without its backing file. */
static bool look_at_layer(struct blk_node *node, uint64_t *hash)
{
    struct blk_node *file = blk_child(node, BLK_ROLE_FILE);
    struct blk_node *data = blk_child(node, BLK_ROLE_DATA);

    if (!file || is_part_of_file(node, file))
        return false;
    *hash = hash_add(*hash, node->driver->name, strlen(node->driver->name));
    return look_at_file(blk_bottom(node), hash) && (!data || look_at_file(blk_bottom(data), hash));
}

uint64_t blk_identity_look(struct blk_node *backing)
{
    uint64_t hash = HASH_BEGIN;

    for (struct blk_node *node = backing; node; node = blk_child(node, BLK_ROLE_BACKING)) {
        struct blk_identity identity;
        node = blk_skip_filters(node);
        if (blk_identity_of(node, &identity, NULL) == 0 && blk_id_is_known(&identity.backup))
            return hash_add(hash, &identity.backup, sizeof(identity.backup));
        if (!look_at_layer(node, &hash))
            return 0;
        if (node->backing_name && !blk_child(node, BLK_ROLE_BACKING))
            return 0;
    }
    return backing ? hash : 0;
}

int blk_identity_lose(struct blk_node *node, bool whole, struct blk_error *err)
{
    struct blk_identity identity;

    int ret = blk_identity_of(node, &identity, err);
    bool is_backup = whole && !blk_id_is_none(&identity.backup);
    if (ret < 0 || (!identity.bitmap_count && !is_backup))
        return ret;
    identity.bitmap_count = 0;
    identity.below = 0;
    if (whole)
        identity.backup = (struct blk_id){ .bytes = { 0 } };
    BLK_OP(node->driver, identity, set)(node, &identity);
    return 0;
}

/* ---- chains ---- */

static int is_part(const struct blk_node *node, const struct blk_id *parent, struct blk_error *err)
{
    char text[BLK_ID_TEXT_BYTES];

    blk_id_format(parent, text);
    return blk_fail_why(err, EINVAL,
                        "without its base it is not a whole disk (--trust reads it anyway; "
                        "'blkimg rebase -u' gives it its base)",
                        "'%s' holds only what differs from %s%s, and has no backing file",
                        node->name, blk_id_is_known(parent) ? "backup " : "another image",
                        blk_id_is_known(parent) ? text : "");
}

int blk_identity_check(struct blk_node *overlay, struct blk_node *backing, struct blk_error *err)
{
    struct blk_identity above, below;
    char wanted[BLK_ID_TEXT_BYTES], found[BLK_ID_TEXT_BYTES];

    int ret = blk_identity_of(overlay, &above, err);
    if (ret < 0 || blk_id_is_none(&above.parent))
        return ret;
    if (!backing)
        return is_part(overlay, &above.parent, err);
    if (!blk_id_is_known(&above.parent))
        return 0;
    backing = blk_skip_filters(backing);
    ret = blk_identity_of(backing, &below, err);
    if (ret < 0 || blk_id_equal(&above.parent, &below.backup))
        return ret;
    blk_id_format(&above.parent, wanted);
    blk_id_format(&below.backup, found);
    return blk_fail_why(err, EINVAL,
                        "the chain does not fit (--trust reads it anyway; 'blkimg rebase -u' "
                        "names another backing file)",
                        "'%s' was made on backup %s, but its backing file '%s' %s%s", overlay->name,
                        wanted, backing->name,
                        blk_id_is_none(&below.backup) ? "has no id: it has changed since, or is "
                                                        "another image"
                                                      : "is backup ",
                        blk_id_is_none(&below.backup) ? "" : found);
}

int blk_identity_move(struct blk_node *overlay, struct blk_node *backing, struct blk_error *err)
{
    struct blk_identity identity, below = { .bitmap_count = 0 };

    int ret = blk_identity_of(overlay, &identity, err);
    if (ret == 0 && backing)
        ret = blk_identity_of(blk_skip_filters(backing), &below, err);
    if (ret < 0)
        return ret;
    if (backing && blk_id_is_none(&below.backup))
        below.backup = blk_id_unknown;
    if (blk_id_is_none(&identity.backup) && blk_id_is_none(&identity.parent))
        below.backup = identity.parent;
    /* Where the new one cannot be told, the old one would still show the same. */
    uint64_t look = identity.bitmap_count ? blk_identity_look(backing) : 0;
    if (!look)
        look = identity.below;
    if (blk_id_equal(&identity.parent, &below.backup) && look == identity.below)
        return 0;
    identity.parent = below.backup;
    identity.below = look;
    blk_identity_set(overlay, &identity);
    return 0;
}

/* ---- copies ---- */

/* Whether the layer below is what the header names. Of a data file an option may have said more. */
static bool is_as_named(struct blk_node *node)
{
    struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);

    if (node->flags & (BLK_TRUST | BLK_FORCE_SHARE) || blk_child(node, BLK_ROLE_DATA))
        return false;
    if (!backing || !node->backing_name)
        return !backing && !node->backing_name;
    struct blk_node *below = blk_skip_filters(backing);
    BLK_AUTOFREE char *path = blk_resolve_backing_name(blk_bottom(node)->name, node->backing_name);
    return below == backing && blk_same_file(path, blk_bottom(below)->name) &&
           (!node->backing_format || strcmp(node->backing_format, below->driver->name) == 0);
}

/* All of the chain; *known: each layer also says which backup it was made on, down to the last. */
static int look_at_chain(struct blk_node *node, bool *as_named, bool *known, struct blk_error *err)
{
    struct blk_identity identity;

    *as_named = *known = true;
    for (; node; node = blk_child(node, BLK_ROLE_BACKING)) {
        int ret = blk_identity_of(node, &identity, err);
        if (ret < 0)
            return ret;
        *as_named = *as_named && is_as_named(node);
        *known = *known && (blk_child(node, BLK_ROLE_BACKING) ? blk_id_is_known(&identity.parent)
                                                              : blk_id_is_none(&identity.parent));
        if (!*as_named)
            return 0;
    }
    return 0;
}

int blk_identity_of_copy(struct blk_node *source, enum blk_copied copied,
                         struct blk_identity *identity, struct blk_error *err)
{
    bool as_named, known;

    *identity = (struct blk_identity){ .bitmap_count = 0 };
    if (blk_skip_filters(source) != source)
        return 0;
    int ret = look_at_chain(source, &as_named, &known, err);
    if (ret < 0 || !as_named)
        return ret;
    ret = blk_identity_of(source, identity, err);
    if (copied == BLK_COPIED_LAYER)
        return ret;
    if (!known)
        identity->backup = (struct blk_id){ .bytes = { 0 } };
    identity->parent = (struct blk_id){ .bytes = { 0 } };
    identity->below = 0;
    return ret;
}

bool blk_identity_fits(const struct blk_node *copy)
{
    return blk_supports(copy, BLK_IDENTITY) && !blk_child(copy, BLK_ROLE_DATA);
}

/* ---- bitmaps ---- */

const struct blk_id *blk_identity_since(const struct blk_identity *identity, const char *bitmap)
{
    uint64_t hash = hash_of_name(bitmap);
    for (size_t i = 0; i < identity->bitmap_count; i++)
        if (identity->bitmaps[i].name_hash == hash)
            return &identity->bitmaps[i].since;
    return NULL;
}

/* Takes the entry out; later ones move up, so the order is that of their last use. */
static void forget_entry(struct blk_identity *identity, size_t index)
{
    identity->bitmap_count--;
    memmove(&identity->bitmaps[index], &identity->bitmaps[index + 1],
            (identity->bitmap_count - index) * sizeof(identity->bitmaps[0]));
}

bool blk_identity_forget(struct blk_identity *identity, const char *bitmap)
{
    uint64_t hash = hash_of_name(bitmap);

    for (size_t i = 0; i < identity->bitmap_count; i++) {
        if (identity->bitmaps[i].name_hash == hash) {
            forget_entry(identity, i);
            return true;
        }
    }
    return false;
}

void blk_identity_set_since(struct blk_identity *identity, const char *bitmap,
                            const struct blk_id *id)
{
    blk_identity_forget(identity, bitmap);
    if (identity->bitmap_count == BLK_IDENTITY_BITMAPS)
        forget_entry(identity, 0);
    identity->bitmaps[identity->bitmap_count].name_hash = hash_of_name(bitmap);
    identity->bitmaps[identity->bitmap_count].since = *id;
    identity->bitmap_count++;
}
