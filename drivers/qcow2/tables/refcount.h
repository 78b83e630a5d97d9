/* SPDX-License-Identifier: MIT */
/* How often each host cluster is referred to. */
#ifndef DRIVERS_QCOW2_TABLES_REFCOUNT_H
#define DRIVERS_QCOW2_TABLES_REFCOUNT_H

#include <stdint.h>

#include "drivers/qcow2/state.h"

/*
 * [locked] Reads the refcount table unless it is in memory. The functions declared here and in
 * alloc.h do that themselves.
 */
int qcow2_reftable_load(struct blk_node *node, struct blk_error *err);

/* [locked] The count of the cluster with that index; 0 beyond the table. */
int qcow2_refcount(struct blk_node *node, uint64_t cluster, uint64_t *count, struct blk_error *err);

/*
 * [locked] Adds one to the counts of all clusters that [offset, offset + bytes) touches. Takes
 * effect on the medium before any L2 or L1 change of the same epoch. -ERANGE (nothing changed)
 * when a count is at its maximum.
 */
int qcow2_refcount_increase(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err);

/*
 * [locked] Takes one from the counts of the clusters that the range touches, immediately: only for
 * clusters that nothing on the medium points to; for others see qcow2_free_later(). A count that is
 * already 0 is corruption.
 */
int qcow2_refcount_decrease(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err);

/* Counts in one cached slice of a refcount block. */
static inline uint64_t qcow2_counts_per_slice(const struct qcow2_state *s)
{
    return ((uint64_t)s->refblock_cache.entry_bytes * 8) >> s->refcount_order;
}

/*
 * [locked] The slice that has the cluster's count, and the count's index in it. *slice is NULL
 * where there is no block.
 */
int qcow2_refslice(struct blk_node *node, uint64_t cluster, struct qcow2_table **slice,
                   uint64_t *index, struct blk_error *err);

/* [locked] Stores a count, which must fit. */
void qcow2_refslice_put(struct qcow2_state *s, struct qcow2_table *slice, uint64_t index,
                        uint64_t count);

/* [locked] Sets the entry of a refcount block in the refcount table. */
void qcow2_reftable_set(struct qcow2_state *s, uint64_t block, uint64_t offset);

#endif
