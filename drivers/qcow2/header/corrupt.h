/* SPDX-License-Identifier: MIT */
/* What happens when a table turns out to be invalid. */
#ifndef DRIVERS_QCOW2_HEADER_CORRUPT_H
#define DRIVERS_QCOW2_HEADER_CORRUPT_H

#include "drivers/qcow2/state.h"

/*
 * Records that the image is damaged; one that is open for writing, except for a check, is poisoned
 * and gets its corrupt bit set. Returns -EIO with the text as the cause. May be called with the
 * lock held.
 */
int qcow2_corrupt(struct blk_node *node, struct blk_error *err, const char *why, ...)
    BLK_PRINTF(3, 4);

#endif
