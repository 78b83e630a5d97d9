/* SPDX-License-Identifier: MIT */
/* Finding free clusters. */
#ifndef DRIVERS_QCOW2_TABLES_ALLOC_H
#define DRIVERS_QCOW2_TABLES_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"

/*
 * [locked] Finds contiguous free clusters and sets their counts to 1. _alloc finds exactly `bytes`,
 * rounded up to clusters. _alloc_run takes the first free run it meets, of at least one cluster and
 * at most `max_bytes`; *unwritten says that the place reads as zeroes. _alloc_end finds exactly
 * `bytes` where nothing was ever written.
 */
int qcow2_alloc(struct blk_node *node, uint64_t bytes, uint64_t *offset, struct blk_error *err);
int qcow2_alloc_run(struct blk_node *node, uint64_t max_bytes, uint64_t *offset, uint64_t *bytes,
                    bool *unwritten, struct blk_error *err);
int qcow2_alloc_end(struct blk_node *node, uint64_t bytes, uint64_t *offset, struct blk_error *err);

/*
 * Gives newly allocated clusters, which a later epoch will write, space in the file: a full disk
 * then fails the request that needs them, and not the epoch, which would poison the image. Does
 * nothing for a file that has no name yet.
 */
int qcow2_take_room(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

/*
 * [locked] Room for a compressed piece, which may share clusters with others: their counts go up
 * by one.
 */
int qcow2_alloc_compressed(struct blk_node *node, uint32_t bytes, uint64_t *offset,
                           struct blk_error *err);

/*
 * [locked] Gives a refcount table that had to grow a place in the file. Allocations do that
 * themselves; if it failed there, the next commit tries again.
 */
int qcow2_reftable_place(struct blk_node *node, struct blk_error *err);

#endif
