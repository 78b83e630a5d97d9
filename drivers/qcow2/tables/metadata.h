/* SPDX-License-Identifier: MIT */
/* What must never be written over: header, tables, refcount blocks. */
#ifndef DRIVERS_QCOW2_TABLES_METADATA_H
#define DRIVERS_QCOW2_TABLES_METADATA_H

#include <stdint.h>

#include "drivers/qcow2/state.h"

/*
 * [locked; for reading where the sets are known] 0 if the host range touches no header, active L1
 * or L2, refcount table or block, or the first cluster of the snapshot table (only reading it tells
 * how long it is), nor a bitmap directory or a table of a snapshot, as far as overlap_checks says;
 * otherwise the image is corrupt (see there).
 */
int qcow2_check_overlap(struct blk_node *node, uint64_t offset, uint64_t bytes,
                        struct blk_error *err);

/* [locked] Finds out where active L2 tables and refcount blocks are, before the first change. */
int qcow2_metadata_load(struct blk_node *node, struct blk_error *err);

/* [locked] Keeps the set in step: a table or block now is, or no longer is, at that cluster. */
int qcow2_metadata_add(struct qcow2_state *s, uint64_t offset, struct blk_error *err);
void qcow2_metadata_remove(struct qcow2_state *s, uint64_t offset);

/*
 * Fails if the host range, where a mapping says that guest data is, holds tables. The lock is not
 * held.
 */
int qcow2_check_target(struct blk_node *node, uint64_t host, uint64_t bytes, struct blk_error *err);

#endif
