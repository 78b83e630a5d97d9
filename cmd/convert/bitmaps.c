/*
 * --bitmaps: the persistent dirty bitmaps of the source go with its
 * content. They are added to the target when all is copied, so that
 * enabled ones do not record the copy itself; the close stores them.
 */
#include "blockcore/bitmap/bitmaps.h"

#include <errno.h>

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
