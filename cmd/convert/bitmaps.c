/* SPDX-License-Identifier: MIT */
/*
 * --bitmaps: the persistent dirty bitmaps of the source go with its content. They are added to the
 * target when all is copied, so that enabled ones do not record the copy itself; the close stores
 * them. With them go the ids of backups (identity.h).
 */
#include "blockcore/bitmap/bitmaps.h"

#include <errno.h>

#include "blockcore/bitmap/identity.h"
#include "cmd/convert/convert.h"

static struct blk_dirty_bitmap *first_of(const struct blk_node *node)
{
    return node->bitmaps ? node->bitmaps->first : NULL;
}

/* What is to be copied: once loaded, only broken ones that the user leaves out are not usable. */
static bool is_copied(const struct blk_dirty_bitmap *bitmap)
{
    return bitmap->persistent && !bitmap->inconsistent && !bitmap->unusable;
}

int convert_load_bitmaps(const struct convert_options *options, struct blk_node *source,
                         struct blk_error *err)
{
    source = blk_skip_filters(source);
    int ret = blk_require(source, BLK_BITMAPS, err, "copying the bitmaps of '%s'", source->name);
    if (ret == 0)
        ret = blk_bitmaps_load(source, err);
    for (struct blk_dirty_bitmap *b = first_of(source); b && ret == 0; b = b->next) {
        struct blk_dirty_bitmap *usable;
        if (b->inconsistent && options->skip_broken_bitmaps)
            continue;
        ret = blk_bitmaps_get_usable(source, b->name, &usable, err);
    }
    return ret;
}

int convert_check_bitmaps(struct blk_node *source, struct blk_node *target, struct blk_error *err)
{
    source = blk_skip_filters(source);
    target = blk_skip_filters(target);
    int ret = blk_bitmaps_can_add(target, err);

    for (struct blk_dirty_bitmap *b = first_of(source); b && ret == 0; b = b->next) {
        if (!is_copied(b))
            continue;
        if (blk_bitmaps_find(target, b->name))
            ret = blk_bitmaps_exists(target, b->name, err);
        else
            ret = blk_dirty_bitmap_check_size(b->name, blk_size(target), b->granularity_bits, err);
    }
    return ret;
}

int convert_copy_bitmaps(struct blk_node *source, struct blk_node *target, struct blk_error *err)
{
    int ret = 0;

    source = blk_skip_filters(source);
    target = blk_skip_filters(target);
    for (struct blk_dirty_bitmap *b = first_of(source); b && ret == 0; b = b->next) {
        if (is_copied(b))
            ret = blk_bitmaps_merge_same(target, b, err);
    }
    return ret;
}

/* ---- identity ---- */

static bool is_whole_copy(const struct convert_options *options, const struct blk_node *source,
                          const struct blk_node *target)
{
    return options->input_count == 1 && !options->no_create && !options->snapshot &&
           !options->salvage && blk_size(source) == blk_size(target);
}

/* Without a backing file of either, or with the same: what is not copied shows through both. */
static bool is_same_below(struct blk_node *source, struct blk_node *target)
{
    struct blk_node *backing = blk_child(target, BLK_ROLE_BACKING);
    uint64_t look = blk_identity_look(backing);

    return !backing || (look && look == blk_identity_look(blk_child(source, BLK_ROLE_BACKING)));
}

/* What those count from that are copied. */
static void keep_copied(const struct convert_options *options, const struct blk_node *source,
                        struct blk_identity *identity)
{
    const struct blk_identity all = *identity;

    identity->bitmap_count = 0;
    for (struct blk_dirty_bitmap *b = first_of(source); options->bitmaps && b; b = b->next) {
        const struct blk_id *since = is_copied(b) ? blk_identity_since(&all, b->name) : NULL;
        if (since)
            blk_identity_set_since(identity, b->name, since);
    }
}

void convert_carry_identity(const struct convert_options *options, struct blk_node *source,
                            struct blk_node *target)
{
    struct blk_node *format = blk_skip_filters(target);
    bool layer = blk_child(format, BLK_ROLE_BACKING);
    struct blk_identity identity;

    if (!is_whole_copy(options, source, target) || !blk_identity_fits(format) ||
        !is_same_below(source, format))
        return;
    /* One of a newer form cannot be carried, and is no reason to copy nothing. */
    int ret =
        blk_identity_of_copy(source, layer ? BLK_COPIED_LAYER : BLK_COPIED_WHOLE, &identity, NULL);
    if (ret < 0)
        return;
    keep_copied(options, source, &identity);
    if (!blk_id_is_none(&identity.backup) || !blk_id_is_none(&identity.parent) ||
        identity.bitmap_count)
        blk_identity_set(format, &identity);
}
