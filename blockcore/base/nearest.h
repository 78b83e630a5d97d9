/* SPDX-License-Identifier: MIT */
/* "Did you mean": the known name that is nearest to a mistyped one. */
#ifndef BLOCKCORE_BASE_NEAREST_H
#define BLOCKCORE_BASE_NEAREST_H

#include <string.h>

struct blk_nearest {
    const char *word;
    const char *name;  /* the nearest so far; NULL: none is near */
    unsigned distance; /* a name must be nearer than this */
};

/* More than half of the letters wrong is another word. */
#define BLK_NEAREST_INIT(word) ((struct blk_nearest){ word, NULL, (unsigned)strlen(word) / 2 + 1 })

/* Takes `name` if it is nearer than what was tried before. */
void blk_nearest_try(struct blk_nearest *nearest, const char *name);

#endif
