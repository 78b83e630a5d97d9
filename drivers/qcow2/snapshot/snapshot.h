/* SPDX-License-Identifier: MIT */
/*
 * Internal snapshots.
 *
 *   table.c      the table: parsing with every check, encoding
 *   tree.c       counting and rebuilding what an L1 table reaches, for operations that switch to
 *                new tables
 *   snapshot.c   the operations: list, create, apply, delete, load
 */
#ifndef DRIVERS_QCOW2_SNAPSHOT_SNAPSHOT_H
#define DRIVERS_QCOW2_SNAPSHOT_SNAPSHOT_H

#include "blockcore/graph/driver.h"
#include "blockcore/graph/types.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/shadow.h"

/*
 * How much of ids and names is shown, and how long a new name may be: QEMU's limits. The format has
 * room for 65535 bytes.
 */
#define QCOW2_SHOWN_ID_BYTES 127
#define QCOW2_SHOWN_NAME_BYTES 255

/* Extra data that an entry must have in version 3: size of the VM state, size of the disk. */
#define QCOW2_SNAPSHOT_EXTRA_V3_BYTES 16

/* One entry of the table. */
struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_entries;
    char *id, *name;
    uint32_t date_seconds, date_nanoseconds;
    uint64_t vm_clock_ns;
    uint64_t vm_state_bytes;
    uint64_t disk_bytes;
    uint64_t icount; /* UINT64_MAX: not known */
    uint32_t extra_bytes;
    const uint8_t *raw; /* as it is stored, without the padding behind it */
    uint32_t raw_bytes;
    /* Only a check also gets entries with too much extra data, and entries past the limits. */
    uint64_t stored_bytes; /* more than raw_bytes if extra data was cut from `raw` */
    bool is_excess;        /* past the limits */
};

/*
 * Reads the table entry by entry (memory is bounded by one entry) and calls `visit` for each; the
 * entry is valid only during the call. Stops when `visit` does not return 0, and returns that.
 * *table_bytes (may be NULL): the length of the table. Errors: -EINVAL for a damaged table, -EFBIG
 * beyond the limits.
 */
int qcow2_snapshot_table_walk(struct blk_node *node,
                              int (*visit)(void *opaque, const struct qcow2_snapshot *snapshot,
                                           struct blk_error *err),
                              void *opaque, uint64_t *table_bytes, struct blk_error *err);

/* A table that is being put together. */
struct qcow2_snapshot_table {
    uint8_t *data; /* malloc()ed */
    uint64_t bytes, room;
    uint32_t count;
};

/*
 * Adds an entry: its stored form (`raw`) if it has one, padded; else its fields, encoded.
 * Errors: -ENOMEM, -EFBIG when the table grows beyond the limits.
 */
int qcow2_snapshot_table_add(struct qcow2_snapshot_table *table,
                             const struct qcow2_snapshot *snapshot, struct blk_error *err);

/*
 * Writes the table to a new place and sets the fields of *next for it. The new counts no longer
 * include the live table, which is `old_bytes` long. An empty table needs no place.
 */
int qcow2_snapshot_table_replace(struct qcow2_shadow *shadow,
                                 const struct qcow2_snapshot_table *table, uint64_t old_bytes,
                                 struct qcow2_header *next, struct blk_error *err);

/* ---- tree.c ---- */

/*
 * Adds `delta` (+1 or -1) to the new counts of all that the L1 table reaches (L2 tables, data,
 * compressed pieces), once for each reference. -EIO for entries that point to impossible places.
 */
int qcow2_tree_count(struct qcow2_shadow *shadow, const uint64_t *l1, uint64_t entries, int delta,
                     struct blk_error *err);

/*
 * Makes the COPIED flags of an L1 table and its L2 tables agree with the new counts, without
 * touching the stored tables: L2 tables that need other flags are copied to new places, and the old
 * ones lose a reference. Changes l1[]; *changed says whether l1[] or anything below it was changed.
 */
int qcow2_tree_set_copied(struct qcow2_shadow *shadow, uint64_t *l1, uint64_t entries,
                          bool *changed, struct blk_error *err);

/* Writes an L1 table to a new place. One without entries needs none: *offset is 0. */
int qcow2_tree_write_l1(struct qcow2_shadow *shadow, const uint64_t *l1, uint64_t entries,
                        uint64_t *offset, struct blk_error *err);

/* ---- snapshot.c ---- */

extern const struct blk_snapshot_ops qcow2_snapshot_ops;

#endif
