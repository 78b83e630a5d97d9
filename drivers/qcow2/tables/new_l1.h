/* SPDX-License-Identifier: MIT */
/* Another active L1 table: larger, or empty. */
#ifndef DRIVERS_QCOW2_TABLES_NEW_L1_H
#define DRIVERS_QCOW2_TABLES_NEW_L1_H

#include <stdint.h>

#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/frees.h"

/*
 * Writes `entries` of `table` (zeroes behind its `count`) to newly allocated clusters; not flushed.
 */
int qcow2_l1_write(struct blk_node *node, const uint64_t *table, uint32_t count, uint32_t entries,
                   uint64_t *offset, struct blk_error *err);

/*
 * Makes the table at `offset`, which is written, the active one on the medium and in memory, and
 * frees (later) the old one. On success the state owns `table`. Runs alone.
 */
int qcow2_l1_activate(struct blk_node *node, uint64_t offset, uint64_t *table, uint32_t entries,
                      enum qcow2_free_why why, struct blk_error *err);

/* Gives the active L1 table at least that many entries. Runs alone. */
int qcow2_grow_l1(struct blk_node *node, uint64_t entries, struct blk_error *err);

#endif
