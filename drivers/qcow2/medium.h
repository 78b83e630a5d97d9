/* SPDX-License-Identifier: MIT */
/*
 * Reading tables from the file, and what is known of where the file ends: it may have been cut off,
 * and what it lost must not be taken for zeroes.
 */
#ifndef DRIVERS_QCOW2_MEDIUM_H
#define DRIVERS_QCOW2_MEDIUM_H

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"

/* [locked] The slice at `offset`, read from the file if need be. */
int qcow2_cache_get(struct blk_node *node, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_table **table, struct blk_error *err);

/*
 * Whether the host range goes on past the end of the file (or data file), whose last cluster need
 * not be whole. Such a file has lost something, which must not be taken for zeroes.
 */
bool qcow2_is_cut_off(const struct blk_node *node, const struct blk_node *file, uint64_t offset,
                      uint64_t bytes);
/* -EIO: `what` lies at the offset. qcow2_check_cut_off() fails only if the range is cut off. */
int qcow2_fail_cut_short(const struct blk_node *file, uint64_t offset, const char *what,
                         struct blk_error *err);
int qcow2_check_cut_off(const struct blk_node *node, const struct blk_node *file, uint64_t offset,
                        uint64_t bytes, const char *what, struct blk_error *err);

/*
 * How many of the range's bytes the file has, to the byte. All of them for a file that others may
 * be writing: it may be longer than it was.
 */
uint64_t qcow2_bytes_there(const struct blk_node *node, const struct blk_node *file,
                           uint64_t offset, uint64_t bytes);

/* What messages call a table, and how long one may be. */
struct qcow2_table_kind {
    const char *name;
    uint64_t max_bytes;
};

extern const struct qcow2_table_kind qcow2_l1_kind, qcow2_snapshot_l1_kind, qcow2_reftable_kind;

/*
 * Reads a table of `entries` big-endian u64 at `offset` into host order; malloc()ed. Fails when it
 * is too long for its kind, unaligned, or outside the file. For L1 tables of snapshots, bitmap
 * tables and the like.
 */
int qcow2_read_table(struct blk_node *node, const struct qcow2_table_kind *kind, uint64_t offset,
                     uint64_t entries, uint64_t **table, struct blk_error *err);

#endif
