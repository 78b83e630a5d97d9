/* SPDX-License-Identifier: MIT */
/* What format an image has, by how it begins. */
#ifndef BLOCKCORE_GRAPH_PROBE_H
#define BLOCKCORE_GRAPH_PROBE_H

#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/driver.h"

#define BLK_PROBE_BYTES 512

/* The name of the format of what begins with `head`, readable here or not; raw matches all. */
const char *blk_probe_name(const uint8_t *head, size_t bytes);

/*
 * Finds the driver for what `file` holds. -EMEDIUMTYPE for what is known to be of a format that no
 * driver reads: raw would match it.
 */
int blk_probe_file(struct blk_node *file, const struct blk_driver **driver, struct blk_error *err);

#endif
