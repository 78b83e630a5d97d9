#include "blockcore/published.h"

#include <stdbool.h>
#include <stdlib.h>

#include "blockcore/memory.h"

void blk_published_add(struct blk_published *published, const struct blk_published_ops *ops,
                       void *state)
{
    struct blk_published_entry *entry = blk_xcalloc(1, sizeof(*entry));

    *entry = (struct blk_published_entry){ ops, state, published->last };
    published->last = entry;
}

/* Adds what a name leads to now. */
static void add_left(struct blk_error *all, const struct blk_error *own)
{
    if (!own->left[0])
        return;
    BLK_AUTOFREE char *before = all->left[0] ? blk_xasprintf("%s; ", all->left) : blk_xstrdup("");
    blk_left_behind(all, "%s%s", before, own->left);
}

static int end_all(struct blk_published *published, bool keep, struct blk_error *err)
{
    struct blk_error left = BLK_ERROR_INIT;
    int first = 0;

    while (published->last) {
        struct blk_published_entry *entry = published->last;
        struct blk_error own = BLK_ERROR_INIT;
        int ret = (keep ? entry->ops->keep : entry->ops->take_back)(entry->state, &own);
        if (ret == 0)
            add_left(&left, &own);
        if (ret < 0 && first == 0) {
            first = ret;
            if (err)
                *err = own;
        }
        published->last = entry->earlier;
        free(entry);
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
