/* SPDX-License-Identifier: MIT */
/* The names of events, and announcing one to whoever injects errors below. */
#include "blockcore/graph/events.h"

#include <string.h>

#include "blockcore/graph/driver.h"

static const char *const names[BLK_EVENT_COUNT] = {
#define X(id, name) [BLK_EVENT_##id] = name,
    BLK_EVENTS(X)
#undef X
};

int blk_event_parse(const char *name)
{
    for (int i = 0; i < BLK_EVENT_COUNT; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

void blk_event(struct blk_node *node, enum blk_event event)
{
    if (node && BLK_OP(node->driver, debug, event))
        BLK_OP(node->driver, debug, event)(node, event);
}
