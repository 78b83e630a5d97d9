/* SPDX-License-Identifier: MIT */
/* Drivers by name. */
#include "blockcore/graph/driver.h"

#include <errno.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/nearest.h"
#include "blockcore/graph/foreign.h"

const struct blk_driver *blk_driver_find(const char *name)
{
    for (size_t i = 0; blk_drivers[i]; i++)
        if (blk_drivers[i]->open && strcmp(blk_drivers[i]->name, name) == 0)
            return blk_drivers[i];
    return NULL;
}

int blk_driver_unknown(const char *name, struct blk_error *err)
{
    const struct blk_foreign *foreign = blk_foreign_find(name);
    struct blk_nearest nearest = BLK_NEAREST_INIT(name);
    BLK_AUTOFREE char *why = NULL;

    for (size_t i = 0; blk_drivers[i]; i++)
        if (blk_drivers[i]->open)
            blk_nearest_try(&nearest, blk_drivers[i]->name);
    if (foreign)
        why = blk_xasprintf("this format (%s) is not supported", foreign->what);
    else if (nearest.name)
        why = blk_xasprintf("did you mean '%s'?", nearest.name);
    return blk_fail_why(err, EINVAL, why ? why : "no such format or protocol",
                        "Unknown driver '%s'", name);
}
