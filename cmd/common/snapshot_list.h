/*
 * The list of internal snapshots, as info and snapshot show it.
 */
#ifndef CMD_COMMON_SNAPSHOT_LIST_H
#define CMD_COMMON_SNAPSHOT_LIST_H

#include <jansson.h>

#include "blockcore/error.h"
#include "blockcore/node.h"

/*
 * The snapshots as an array of objects for json_print(); *list is NULL where there are none. The
 * caller owns it.
 */
int snapshot_list_get(struct blk_node *node, json_t **list, struct blk_error *err);

/* Prints such an array as a table. */
void snapshot_list_print(const json_t *list);

#endif
