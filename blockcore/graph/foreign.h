/* SPDX-License-Identifier: MIT */
/*
 * Formats that this program tells apart from raw but cannot read: other disk images, archives and
 * compressed streams. Read as raw they would give garbage with status 0, so an image that is one of
 * them opens only where its format is given.
 */
#ifndef BLOCKCORE_GRAPH_FOREIGN_H
#define BLOCKCORE_GRAPH_FOREIGN_H

#include <stddef.h>
#include <stdint.h>

/* How many bytes at the start and at the end of a file identify its format. */
#define BLK_FOREIGN_BYTES 512

struct blk_foreign {
    const char *name; /* as qemu-img's -f calls it, where it does */
    const char *what; /* for messages: "a VMware disk" */
};

/* The format of what begins with `head`, `bytes` long; NULL: none of these. */
const struct blk_foreign *blk_foreign_by_head(const uint8_t *head, size_t bytes);

/* The format of what ends with `tail`, `bytes` long; NULL: none of these. */
const struct blk_foreign *blk_foreign_by_tail(const uint8_t *tail, size_t bytes);

/* The format of that name, or NULL. */
const struct blk_foreign *blk_foreign_find(const char *name);

#endif
