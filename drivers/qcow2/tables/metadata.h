/* SPDX-License-Identifier: MIT */
/* What must never be written over: header, tables, refcount blocks. */
#ifndef DRIVERS_QCOW2_TABLES_METADATA_H
#define DRIVERS_QCOW2_TABLES_METADATA_H

#include <stdint.h>

#include "drivers/qcow2/state.h"

/*
 * [locked; holding it for reading is enough once the sets are loaded] 0 if the host range touches
 * nothing that overlap_checks protects: header, active L1 and L2 tables, refcount table and blocks,
 * the first cluster of the snapshot table (only reading it tells how long it is), bitmap directory,
 * tables of snapshots. Otherwise fails as qcow2_corrupt().
 */
int qcow2_check_overlap(struct blk_node *node, uint64_t offset, uint64_t bytes,
                        struct blk_error *err);

/* [locked] Finds the active L2 tables and refcount blocks, before the first change. */
int qcow2_metadata_load(struct blk_node *node, struct blk_error *err);

/* [locked] Updates the set: a table or block now is, or no longer is, at that cluster. */
int qcow2_metadata_add(struct qcow2_state *s, uint64_t offset, struct blk_error *err);
void qcow2_metadata_remove(struct qcow2_state *s, uint64_t offset);

/*
 * Fails if the host range, which a mapping says holds guest data, holds tables. Called without the
 * lock.
 */
int qcow2_check_target(struct blk_node *node, uint64_t host, uint64_t bytes, struct blk_error *err);

#endif
