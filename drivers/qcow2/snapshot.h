/*
 * The snapshot table, as snapshot.c, check and measure see it.
 */
#ifndef DRIVERS_QCOW2_SNAPSHOT_H
#define DRIVERS_QCOW2_SNAPSHOT_H

#include "drivers/qcow2/qcow2.h"

/* One entry of the table. Strings and extra data are malloc()ed. */
struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_entries;
    char *id, *name;
    uint32_t date_seconds, date_nanoseconds;
    uint64_t vm_clock_ns;
    uint64_t vm_state_bytes;
    uint64_t disk_bytes;
    uint64_t icount;        /* UINT64_MAX: not known */
    uint8_t *unknown_extra; /* extra data behind what we know; kept */
    uint32_t unknown_extra_bytes;
};

/*
 * Reads the table entry by entry (memory is bounded by one entry) and calls `visit` for each; the entry is valid
 * only during the call. Stops at the first that is not 0 and returns it. *table_bytes (may be NULL): its
 * length. Errors: -EINVAL for a damaged table, -EFBIG beyond the limits.
 */
int qcow2_snapshot_table_walk(struct blk_node *node,
                              int (*visit)(void *opaque, const struct qcow2_snapshot *snapshot,
                                           struct blk_error *err),
                              void *opaque, uint64_t *table_bytes, struct blk_error *err);

#endif
