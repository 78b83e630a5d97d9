/* SPDX-License-Identifier: MIT */
/* The list of names given by this run: all of them are kept, or all taken back. */
#include "blockcore/graph/published.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

void blk_published_add(struct blk_published *published, struct blk_published_entry *entry,
                       const struct blk_published_ops *ops, void *state)
{
    *entry = (struct blk_published_entry){ ops, state, published->last };
    published->last = entry;
}

/* Adds what a name leads to now. */
static void add_left(struct blk_error *all, const struct blk_error *own)
{
    if (!own->left[0])
        return;
    char before[sizeof(all->left)];
    memcpy(before, all->left, sizeof(before));
    blk_left_behind(all, "%s%s%s", before, before[0] ? "; " : "", own->left);
}

static int end_all(struct blk_published *published, bool keep, struct blk_error *err)
{
    struct blk_error left = BLK_ERROR_INIT;
    int first = 0;

    while (published->last) {
        const struct blk_published_entry *entry = published->last;
        struct blk_error own = BLK_ERROR_INIT;
        published->last = entry->earlier;
        int ret = (keep ? entry->ops->keep : entry->ops->take_back)(entry->state, &own);
        if (ret == 0)
            add_left(&left, &own);
        if (ret < 0 && first == 0) {
            first = ret;
            if (err)
                *err = own;
        }
    }
    if (first == 0 && err && left.left[0])
        *err = left;
    return first;
}

int blk_published_take_back(struct blk_published *published, struct blk_error *err)
{
    return end_all(published, false, err);
}

int blk_published_keep(struct blk_published *published, struct blk_error *err)
{
    return end_all(published, true, err);
}
