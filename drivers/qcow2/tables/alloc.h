/* SPDX-License-Identifier: MIT */
/* Finding free clusters. */
#ifndef DRIVERS_QCOW2_TABLES_ALLOC_H
#define DRIVERS_QCOW2_TABLES_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"

/*
 * [locked] Finds free clusters, contiguous, and sets their counts to 1. _alloc gives exactly
 * `bytes`, rounded up to clusters; _alloc_run gives at least one cluster and at most `max_bytes`,
 * whatever comes first; *unwritten says that the place reads as zeroes. _alloc_end takes exactly
 * `bytes` where nothing was ever written.
 */
int qcow2_alloc(struct blk_node *node, uint64_t bytes, uint64_t *offset, struct blk_error *err);
int qcow2_alloc_run(struct blk_node *node, uint64_t max_bytes, uint64_t *offset, uint64_t *bytes,
                    bool *unwritten, struct blk_error *err);
int qcow2_alloc_end(struct blk_node *node, uint64_t bytes, uint64_t *offset, struct blk_error *err);

/*
 * Makes the file have newly allocated clusters that a later epoch writes: a full disk then fails
 * the request that needs them, and not the epoch, which would poison the image. Nothing on a file
 * without a name yet.
 */
int qcow2_take_room(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

/*
 * [locked] Room for a compressed piece, which may share clusters with others: their counts go up
 * by one.
 */
int qcow2_alloc_compressed(struct blk_node *node, uint32_t bytes, uint64_t *offset,
                           struct blk_error *err);

/*
 * [locked] Gives a refcount table that had to grow a place in the file. What allocates does it by
 * itself; where that failed, the next commit tries again.
 */
int qcow2_reftable_place(struct blk_node *node, struct blk_error *err);

#endif
