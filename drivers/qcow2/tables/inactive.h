/* SPDX-License-Identifier: MIT */
/*
 * Where the tables of internal snapshots are, so that nothing is written over them.
 */
#ifndef DRIVERS_QCOW2_TABLES_INACTIVE_H
#define DRIVERS_QCOW2_TABLES_INACTIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"

/* [locked] Finds the tables that overlap_checks asks for, unless that is done. */
int qcow2_inactive_load(struct blk_node *node, struct blk_error *err);

/* Whether that is done; the caller holds the lock, for reading at least. */
bool qcow2_inactive_is_loaded(const struct qcow2_state *s);

/* The kind of table that the host range touches, of those asked for: a constant, or NULL. */
const char *qcow2_inactive_find(const struct qcow2_state *s, uint64_t offset, uint64_t bytes);

#endif
