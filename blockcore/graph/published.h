/* SPDX-License-Identifier: MIT */
/*
 * Names that closes have given and that can still be taken back.
 *
 * What follows a name can fail: the sync of its directory, the last close(2), the close of another
 * node. And an image in several files, or several targets of one job, cannot get their names in one
 * instant. So each name is given in a way that can be undone, and what they replaced is removed
 * only when all is closed. A run that is killed in between leaves what was replaced next to it,
 * under a temporary name.
 */
#ifndef BLOCKCORE_GRAPH_PUBLISHED_H
#define BLOCKCORE_GRAPH_PUBLISHED_H

#include "blockcore/base/error.h"

/*
 * What a driver does with a name that it gave. Both free `state` and return 0 or -errno. A
 * take_back that succeeds says in err->left (blk_left_behind()) what has the name now.
 */
struct blk_published_ops {
    int (*take_back)(void *state,
                     struct blk_error *err); /* the name leads again to what it did before */
    int (*keep)(void *state, struct blk_error *err); /* removes what was replaced */
};

struct blk_published_entry {
    const struct blk_published_ops *ops;
    void *state;
    struct blk_published_entry *earlier;
};

struct blk_published {
    struct blk_published_entry *last;
};

#define BLK_PUBLISHED_INIT ((struct blk_published){ .last = NULL })

/*
 * For drivers: a name was given. The entry is part of `state`, which exists before the name is
 * given, so this cannot fail.
 */
void blk_published_add(struct blk_published *published, struct blk_published_entry *entry,
                       const struct blk_published_ops *ops, void *state);

/*
 * Take all names back, the last one first, or make them final. Every one is tried, whatever fails;
 * returns 0 or the first failure. The list is empty afterwards. If all could be taken back,
 * err->left says what has the names now; it is empty if there were none.
 */
int blk_published_take_back(struct blk_published *published, struct blk_error *err);
int blk_published_keep(struct blk_published *published, struct blk_error *err);

#endif
