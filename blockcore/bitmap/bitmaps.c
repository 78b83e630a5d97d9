/* SPDX-License-Identifier: MIT */
/* The set of bitmaps of a node: its members, its stages, and what each write does to it. */
#include "blockcore/bitmap/bitmaps.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"

static bool is_tracked(const struct blk_dirty_bitmaps *bitmaps)
{
    return atomic_load(&bitmaps->tracked);
}

void blk_bitmaps_untrack(struct blk_dirty_bitmaps *bitmaps)
{
    atomic_store(&bitmaps->tracked, false);
}

struct blk_dirty_bitmaps *blk_bitmaps_of(struct blk_node *node)
{
    if (!node->bitmaps) {
        node->bitmaps = blk_xcalloc(1, sizeof(*node->bitmaps));
        blk_mutex_init(&node->bitmaps->mutex);
    }
    return node->bitmaps;
}

/* Frees one bitmap, with what the driver keeps beside it. */
static void free_bitmap(struct blk_node *node, struct blk_dirty_bitmap *bitmap)
{
    if (BLK_OP(node->driver, bitmaps, release))
        BLK_OP(node->driver, bitmaps, release)(bitmap);
    blk_dirty_bitmap_free(bitmap);
}

void blk_bitmaps_free(struct blk_node *node)
{
    struct blk_dirty_bitmaps *bitmaps = node->bitmaps;

    if (!bitmaps)
        return;
    while (bitmaps->first) {
        struct blk_dirty_bitmap *bitmap = bitmaps->first;
        bitmaps->first = bitmap->next;
        free_bitmap(node, bitmap);
    }
    blk_mutex_destroy(&bitmaps->mutex);
    free(bitmaps);
    node->bitmaps = NULL;
}

struct blk_dirty_bitmap *blk_bitmaps_find(const struct blk_node *node, const char *name)
{
    struct blk_dirty_bitmap *bitmap = node->bitmaps ? node->bitmaps->first : NULL;
    while (bitmap && strcmp(bitmap->name, name) != 0)
        bitmap = bitmap->next;
    return bitmap;
}

int blk_bitmaps_not_found(const struct blk_node *node, const char *name, struct blk_error *err)
{
    BLK_AUTOFREE char *why = blk_xasprintf("Dirty bitmap '%s' not found", name);
    return blk_fail_why(err, ENOENT, why, "'%s'", node->name);
}

int blk_bitmaps_exists(const struct blk_node *node, const char *name, struct blk_error *err)
{
    BLK_AUTOFREE char *why = blk_xasprintf("Bitmap already exists: %s", name);
    return blk_fail_why(err, EEXIST, why, "adding a bitmap to '%s'", node->name);
}

int blk_bitmaps_add(struct blk_node *node, struct blk_dirty_bitmap *bitmap, struct blk_error *err)
{
    struct blk_dirty_bitmaps *bitmaps = blk_bitmaps_of(node);

    if (blk_bitmaps_find(node, bitmap->name))
        return blk_bitmaps_exists(node, bitmap->name, err);
    struct blk_dirty_bitmap **end = &bitmaps->first;
    while (*end)
        end = &(*end)->next;
    *end = bitmap;
    bitmap->next = NULL;
    bitmaps->changed = true;
    /* The next write says for this one too that it is in use. */
    blk_bitmaps_untrack(bitmaps);
    return 0;
}

void blk_bitmaps_remove(struct blk_node *node, struct blk_dirty_bitmap *bitmap)
{
    struct blk_dirty_bitmap **at = &node->bitmaps->first;
    while (*at != bitmap)
        at = &(*at)->next;
    *at = bitmap->next;
    node->bitmaps->changed = true;
    free_bitmap(node, bitmap);
}

static int load_one(struct blk_node *node, struct blk_dirty_bitmap *bitmap, struct blk_error *err)
{
    if (bitmap->inconsistent || bitmap->unusable || blk_dirty_bitmap_has_bits(bitmap))
        return 0;
    int ret = BLK_OP(node->driver, bitmaps, load)(node, bitmap, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "loading the bitmaps of '%s'", node->name) : 0;
}

int blk_bitmaps_load(struct blk_node *node, struct blk_error *err)
{
    int ret = 0;

    for (struct blk_dirty_bitmap *b = node->bitmaps ? node->bitmaps->first : NULL; b && ret == 0;
         b = b->next)
        ret = load_one(node, b, err);
    return ret;
}

int blk_bitmaps_get_usable(struct blk_node *node, const char *name,
                           struct blk_dirty_bitmap **bitmap, struct blk_error *err)
{
    struct blk_dirty_bitmap *found = blk_bitmaps_find(node, name);

    *bitmap = NULL;
    if (!found)
        return blk_bitmaps_not_found(node, name, err);
    /* Loading may find that it is damaged. */
    int ret = load_one(node, found, err);
    if (ret < 0)
        return ret;
    if (found->inconsistent) {
        BLK_AUTOFREE char *why = blk_xasprintf(
            "it was in use when the image was last written, or is damaged, and may have missed "
            "writes; 'blkimg bitmap --remove %s %s' removes it",
            node->name, name);
        return blk_fail_why(err, EINVAL, why, "bitmap '%s' of '%s'", name, node->name);
    }
    if (found->unusable)
        return blk_fail_why(err, ENOTSUP, "it has properties that this version does not know",
                            "bitmap '%s' of '%s'", name, node->name);
    *bitmap = found;
    return 0;
}

int blk_bitmaps_can_add(struct blk_node *node, struct blk_error *err)
{
    int ret = blk_require(node, BLK_BITMAPS, err, "'%s'", node->name);
    if (ret < 0 || !BLK_OP(node->driver, bitmaps, can_add))
        return ret;
    return BLK_OP(node->driver, bitmaps, can_add)(node, err);
}

int blk_bitmaps_can_create(const struct blk_driver *driver, const char *filename,
                           const struct blk_options *creation, struct blk_error *err)
{
    int ret = blk_driver_require(driver, BLK_BITMAPS, err, "creating '%s' with bitmaps", filename);
    if (ret < 0 || !BLK_OP(driver, bitmaps, can_create))
        return ret;
    ret = BLK_OP(driver, bitmaps, can_create)(creation, err);
    if (ret < 0)
        blk_context(err, "creating '%s' with bitmaps", filename);
    return ret;
}

int blk_bitmaps_check_usable(struct blk_node *node, struct blk_error *err)
{
    int ret = 0;

    for (struct blk_dirty_bitmap *b = node->bitmaps ? node->bitmaps->first : NULL; b && ret == 0;
         b = b->next) {
        struct blk_dirty_bitmap *usable;
        ret = blk_bitmaps_get_usable(node, b->name, &usable, err);
    }
    return ret;
}

static int add_like(struct blk_node *node, const struct blk_dirty_bitmap *from,
                    struct blk_dirty_bitmap **bitmap, struct blk_error *err)
{
    *bitmap = NULL;
    int ret = blk_bitmaps_can_add(node, err);
    if (ret == 0)
        ret = blk_dirty_bitmap_new(from->name, blk_size(node), from->granularity_bits, bitmap, err);
    if (ret < 0)
        return ret;
    (*bitmap)->persistent = true;
    (*bitmap)->enabled = from->enabled;
    ret = blk_bitmaps_add(node, *bitmap, err);
    if (ret < 0) {
        blk_dirty_bitmap_free(*bitmap);
        *bitmap = NULL;
    }
    return ret;
}

int blk_bitmaps_merge_same(struct blk_node *node, const struct blk_dirty_bitmap *from,
                           struct blk_error *err)
{
    struct blk_dirty_bitmap *to;
    int ret = blk_bitmaps_find(node, from->name)
                  ? blk_bitmaps_get_usable(node, from->name, &to, err)
                  : add_like(node, from, &to, err);
    if (ret == 0)
        blk_dirty_bitmap_merge(to, from);
    return ret;
}

/* Whether any bitmap of the set wants to know of writes. */
static bool any_records(const struct blk_dirty_bitmaps *bitmaps)
{
    for (const struct blk_dirty_bitmap *b = bitmaps->first; b; b = b->next)
        if (b->enabled && !b->inconsistent)
            return true;
    return false;
}

static void mark_enabled(struct blk_dirty_bitmaps *bitmaps, uint64_t offset, uint64_t bytes)
{
    for (struct blk_dirty_bitmap *b = bitmaps->first; b; b = b->next)
        if (b->enabled && !b->inconsistent && !b->unusable && !b->read_only)
            blk_dirty_bitmap_set(b, offset, bytes);
}

/* What is disabled needs no bits: the image keeps it as it is. */
static int load_enabled(struct blk_node *node, struct blk_error *err)
{
    int ret = 0;

    for (struct blk_dirty_bitmap *b = node->bitmaps->first; b && ret == 0; b = b->next)
        if (b->enabled)
            ret = load_one(node, b, err);
    return ret;
}

/*
 * The first recorded write: the image has to say so before. Loading may find bitmaps damaged, so
 * what records is looked up under the mutex too.
 */
static int begin_tracking(struct blk_node *node, struct blk_error *err)
{
    struct blk_dirty_bitmaps *bitmaps = node->bitmaps;

    LOCK_SCOPE(&bitmaps->mutex);
    if (is_tracked(bitmaps) || !any_records(bitmaps))
        return 0;
    int ret = load_enabled(node, err);
    if (ret == 0 && BLK_OP(node->driver, bitmaps, track))
        ret = BLK_OP(node->driver, bitmaps, track)(node, err);
    if (ret < 0)
        return ret;
    atomic_store(&bitmaps->tracked, true);
    return 0;
}

int blk_bitmaps_will_write(struct blk_node *node, uint64_t offset, uint64_t bytes,
                           struct blk_error *err)
{
    struct blk_dirty_bitmaps *bitmaps = node->bitmaps;

    if (!bitmaps || !bitmaps->first)
        return 0;
    int ret = is_tracked(bitmaps) ? 0 : begin_tracking(node, err);
    if (ret == 0)
        blk_bitmaps_did_write(node, offset, bytes);
    return ret;
}

void blk_bitmaps_did_write(struct blk_node *node, uint64_t offset, uint64_t bytes)
{
    if (node->bitmaps && is_tracked(node->bitmaps))
        mark_enabled(node->bitmaps, offset, bytes);
}

int blk_bitmaps_resize(struct blk_node *node, uint64_t size, struct blk_error *err)
{
    int first = 0;

    for (struct blk_dirty_bitmap *b = node->bitmaps ? node->bitmaps->first : NULL; b; b = b->next) {
        if (b->inconsistent || b->unusable || b->size == size)
            continue;
        uint64_t old_size = b->size;
        int ret = blk_dirty_bitmap_resize(b, size, err);
        if (ret == 0) {
            if (b->enabled && size > old_size)
                blk_dirty_bitmap_set(b, old_size, size - old_size);
            continue;
        }
        /* It stands for a disk that is no more. */
        b->inconsistent = true;
        node->bitmaps->changed = true;
        first = first ? first : ret;
    }
    return first;
}

bool blk_bitmaps_unsaved(const struct blk_node *node)
{
    const struct blk_dirty_bitmaps *bitmaps = node->bitmaps;

    if (!bitmaps)
        return false;
    if (bitmaps->changed || is_tracked(bitmaps))
        return true;
    for (const struct blk_dirty_bitmap *b = bitmaps->first; b; b = b->next)
        if (b->persistent && !b->inconsistent && !b->unusable && atomic_load(&b->changed))
            return true;
    return false;
}

void blk_bitmaps_name(const struct blk_node *node, const char *action, struct blk_error *err)
{
    const struct blk_dirty_bitmap *first = node->bitmaps ? node->bitmaps->first : NULL;
    char names[512] = "";
    size_t length = 0, more = 0;

    for (const struct blk_dirty_bitmap *b = first; b; b = b->next) {
        if (!b->persistent || b->inconsistent)
            continue;
        if (length >= sizeof(names) - 120)
            more++;
        else
            length += (size_t)snprintf(names + length, sizeof(names) - length, "%s'%.64s'",
                                       length ? ", " : "", b->name);
    }
    if (more)
        snprintf(names + length, sizeof(names) - length, " and %zu more", more);
    blk_context(err, "%s: bitmap %s of '%s'", action, length ? names : "list", node->name);
}
