#include "blockcore/published.h"

#include <stdbool.h>
#include <stddef.h>

void blk_published_add(struct blk_published *published, struct blk_published_entry *entry,
                       const struct blk_published_ops *ops, void *state)
{
    *entry = (struct blk_published_entry){ ops, state, published->last };
    published->last = entry;
}

static int end_all(struct blk_published *published, bool keep, struct blk_error *err)
{
    int first = 0;

    while (published->last) {
        const struct blk_published_entry *entry = published->last;
        struct blk_error own = BLK_ERROR_INIT;
        published->last = entry->earlier;
        int ret = (keep ? entry->ops->keep : entry->ops->take_back)(entry->state, &own);
        if (ret < 0 && first == 0) {
            first = ret;
            if (err)
                *err = own;
        }
    }
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
