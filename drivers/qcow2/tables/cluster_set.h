/* SPDX-License-Identifier: MIT */
/*
 * Sets of host clusters, by their index.
 */
#ifndef DRIVERS_QCOW2_TABLES_CLUSTER_SET_H
#define DRIVERS_QCOW2_TABLES_CLUSTER_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"

bool qcow2_cluster_set_contains(const struct qcow2_cluster_set *set, uint64_t cluster);
/* Errors: -ENOMEM. */
int qcow2_cluster_set_add(struct qcow2_cluster_set *set, uint64_t cluster, struct blk_error *err);
void qcow2_cluster_set_remove(struct qcow2_cluster_set *set, uint64_t cluster);

#endif
