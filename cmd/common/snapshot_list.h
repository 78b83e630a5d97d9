/* SPDX-License-Identifier: MIT */
/* The list of internal snapshots, as info and snapshot show it. */
#ifndef CMD_COMMON_SNAPSHOT_LIST_H
#define CMD_COMMON_SNAPSHOT_LIST_H

#include <jansson.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

/*
 * There may be 65536, so they are kept as they come from the driver; JSON is made of one at a time.
 */
struct snapshot_list {
    struct blk_snapshot *items;
    size_t count;
};

/* The snapshots of a node; none where its format has none. The caller frees the list. */
int snapshot_list_get(struct blk_node *node, struct snapshot_list *list, struct blk_error *err);
void snapshot_list_free(struct snapshot_list *list);

/* Prints the list as a table. */
void snapshot_list_print(const struct snapshot_list *list);

/* One item as an object, for struct json_stream; `opaque` is the struct snapshot_list. */
json_t *snapshot_list_item(const void *opaque, size_t index);

#endif
