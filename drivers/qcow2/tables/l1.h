/* SPDX-License-Identifier: MIT */
/* The active L1 table in memory. */
#ifndef DRIVERS_QCOW2_TABLES_L1_H
#define DRIVERS_QCOW2_TABLES_L1_H

#include <stdint.h>

#include "drivers/qcow2/state.h"

/* [locked] Reads the L1 table unless it is in memory. */
int qcow2_l1_load(struct blk_node *node, struct blk_error *err);

/* The same for a caller that does not hold the lock. */
int qcow2_l1_fetch(struct blk_node *node, struct blk_error *err);

/* [locked] Sets an L1 entry. */
void qcow2_l1_set(struct blk_node *node, uint32_t index, uint64_t entry);

/* Makes reads use another L1 table (a snapshot's). For a node opened read-only; runs alone. */
int qcow2_use_l1(struct blk_node *node, uint64_t offset, uint32_t entries, uint64_t size,
                 struct blk_error *err);

/* Where the machine's state begins: a guest offset behind the disk. */
uint64_t qcow2_vm_state_offset(const struct blk_node *node);

#endif
