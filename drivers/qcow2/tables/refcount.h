/*
 * What refcount.c, alloc.c and epoch.c share among themselves. All of it [locked].
 */
#ifndef DRIVERS_QCOW2_TABLES_REFCOUNT_H
#define DRIVERS_QCOW2_TABLES_REFCOUNT_H

#include "drivers/qcow2/qcow2.h"

/* Counts in one cached slice of a refcount block. */
static inline uint64_t qcow2_counts_per_slice(const struct qcow2_state *s)
{
    return ((uint64_t)s->refblock_cache.entry_bytes * 8) >> s->refcount_order;
}

/*
 * The slice that has the cluster's count, and the count's index in it. *slice is NULL where there
 * is no block.
 */
int qcow2_refslice(struct blk_node *node, uint64_t cluster, struct qcow2_table **slice,
                   uint64_t *index, struct blk_error *err);

/* Stores a count, which must fit. */
void qcow2_refslice_put(struct qcow2_state *s, struct qcow2_table *slice, uint64_t index,
                        uint64_t count);

/*
 * Makes the refcount table (in memory) large enough for that block. It may then have no place in
 * the file until qcow2_reftable_place() finds one.
 */
int qcow2_reftable_grow(struct blk_node *node, uint64_t block, struct blk_error *err);
int qcow2_reftable_place(struct blk_node *node, struct blk_error *err);

/* Hooks a refcount block up. */
void qcow2_reftable_set(struct qcow2_state *s, uint64_t block, uint64_t offset);

/* As qcow2_alloc(), but leaves a refcount table that had to grow without a place. */
int qcow2_alloc_unplaced(struct blk_node *node, uint64_t bytes, uint64_t *offset,
                         struct blk_error *err);

/* The cluster's count became 0. */
void qcow2_cluster_freed(struct qcow2_state *s, uint64_t cluster);

/*
 * Applies frees whose cause is stable; tells the file which clusters it can forget. Without the
 * lock.
 */
int qcow2_frees_apply(struct blk_node *node, const struct qcow2_frees *frees,
                      struct blk_error *err);

#endif
