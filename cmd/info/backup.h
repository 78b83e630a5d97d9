/* SPDX-License-Identifier: MIT */
/* What blkimg info says of an image in a chain of backups: its ids, and whether the chain fits. */
#ifndef CMD_INFO_BACKUP_H
#define CMD_INFO_BACKUP_H

#include <jansson.h>

#include "blockcore/graph/node.h"

/*
 * Adds "backup" to the layer's object, and "since" to those of its bitmaps, where the image says
 * anything of the kind. Looks at the header of its backing file; one that cannot be read is no
 * error, nor is an identity of a newer form.
 */
void info_add_backup(json_t *layer, struct blk_node *node);

/* Prints the ids of a layer, and what does not fit as a warning. */
void info_print_backup(const json_t *layer);
void info_print_backup_warning(const json_t *layer);

#endif
