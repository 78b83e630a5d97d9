/* SPDX-License-Identifier: MIT */
/*
 * Changing the format of an image that exists.
 *
 *   amend.c       options; version 2 to 3, refcount width, flags, data file
 *   downgrade.c   version 3 to 2
 */
#ifndef DRIVERS_QCOW2_SHAPE_AMEND_H
#define DRIVERS_QCOW2_SHAPE_AMEND_H

#include "drivers/qcow2/snapshot/snapshot.h"

/*
 * Makes an image of version 3 with 16 bit refcounts one of version 2, by one switch. What version
 * 2 cannot express is refused (-ENOTSUP, by name) or expanded: clusters that read as zeroes
 * become unallocated, or data where a backing file would show. `progress` (may be NULL) is called
 * for every L1 entry, those of snapshots included.
 */
int qcow2_downgrade(struct blk_node *node, const struct blk_progress *progress,
                    struct blk_error *err);

#endif
