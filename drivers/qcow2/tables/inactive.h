/* SPDX-License-Identifier: MIT */
/*
 * The tables of internal snapshots, as what must not be written over.
 */
#ifndef DRIVERS_QCOW2_TABLES_INACTIVE_H
#define DRIVERS_QCOW2_TABLES_INACTIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"

/* [locked] Finds out where they are, as far as overlap_checks asks for it. */
int qcow2_inactive_load(struct blk_node *node, struct blk_error *err);

/* Whether that has been done; the lock is held for reading at least. */
bool qcow2_inactive_is_loaded(const struct qcow2_state *s);

/* What the host range touches of what is known and asked for: a constant, or NULL. */
const char *qcow2_inactive_find(const struct qcow2_state *s, uint64_t offset, uint64_t bytes);

void qcow2_inactive_forget(struct qcow2_state *s);

#endif
