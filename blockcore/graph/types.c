/* SPDX-License-Identifier: MIT */
/* Names of preallocation modes, and lists of snapshots. */
#include "blockcore/graph/types.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const prealloc_names[] = {
    [BLK_PREALLOC_OFF] = "off",
    [BLK_PREALLOC_METADATA] = "metadata",
    [BLK_PREALLOC_FALLOC] = "falloc",
    [BLK_PREALLOC_FULL] = "full",
};

int blk_prealloc_parse(const char *text, enum blk_prealloc *mode)
{
    for (size_t i = 0; i < sizeof(prealloc_names) / sizeof(prealloc_names[0]); i++) {
        if (strcmp(text, prealloc_names[i]) == 0) {
            *mode = (enum blk_prealloc)i;
            return 0;
        }
    }
    return -EINVAL;
}

void blk_snapshots_free(struct blk_snapshot *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(list[i].id);
        free(list[i].name);
    }
    free(list);
}
