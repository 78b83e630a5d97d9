/* SPDX-License-Identifier: MIT */
/* What happens when a table turns out to be invalid. */
#ifndef DRIVERS_QCOW2_HEADER_CORRUPT_H
#define DRIVERS_QCOW2_HEADER_CORRUPT_H

#include "drivers/qcow2/state.h"

/*
 * Records that the image is damaged: sets the corrupt bit when it is writable, poisons it, and
 * fails with EIO and the text as the cause. May be called with the lock held.
 */
int qcow2_corrupt(struct blk_node *node, struct blk_error *err, const char *why, ...)
    BLK_PRINTF(3, 4);

#endif
