/* SPDX-License-Identifier: MIT */
/* Where guest data is: guest offset -> L1 -> L2 slice -> entry. */
#ifndef DRIVERS_QCOW2_TABLES_MAP_H
#define DRIVERS_QCOW2_TABLES_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/frees.h"

enum qcow2_kind {
    QCOW2_UNALLOCATED,      /* the backing file shows; no host cluster */
    QCOW2_UNALLOCATED_HOST, /* the same, in a cluster that has a host cluster (extended L2) */
    QCOW2_ZERO,             /* reads as zeroes; no host cluster */
    QCOW2_ZERO_HOST,        /* the same, host cluster kept */
    QCOW2_DATA,
    QCOW2_COMPRESSED,
};

/* State of a guest range. */
struct qcow2_mapping {
    enum qcow2_kind kind;
    bool copied;          /* the host cluster has no other reference */
    uint64_t bytes;       /* length of the range, contiguous in the host file, too */
    uint64_t host_offset; /* of the first byte asked for; of the piece when compressed */
    uint32_t compressed_bytes;
};

/*
 * Looks up [offset, offset + bytes): the longest uniform range at its beginning, within one L2
 * slice. On failure mapping->bytes is how far the failure extends; 0: not known.
 */
int qcow2_map(struct blk_node *node, uint64_t offset, uint64_t bytes, struct qcow2_mapping *mapping,
              struct blk_error *err);

/* One L2 entry, decoded. */
struct qcow2_entry {
    uint64_t entry;  /* first word */
    uint64_t bitmap; /* second word of extended L2; 0 otherwise */
};

/*
 * The kind of a subcluster (0 without extended L2) of an entry. -EIO for an invalid entry; *why
 * says what is wrong with it.
 */
int qcow2_entry_kind(const struct qcow2_state *s, struct qcow2_entry entry, unsigned subcluster,
                     enum qcow2_kind *kind, const char **why);

struct qcow2_entry qcow2_entry_get(const struct qcow2_state *s, const uint8_t *slice,
                                   uint32_t index);
/*
 * How many of `most` standard entries (the first one included) are a row: all have the same flags,
 * and each offset is `step` above the one before. That is a cluster, or 0 where nothing is mapped.
 */
uint32_t qcow2_entries_in_row(const uint8_t *entries, uint32_t most, uint64_t step);
/* Whether the entry, which is not a compressed cluster's, has a host cluster. */
bool qcow2_entry_has_host(const struct qcow2_state *s, struct qcow2_entry entry);

/*
 * [locked] The slice that maps the guest offset, for changing it, and the index of the entry in it.
 * A missing table is made, a shared one is copied.
 */
int qcow2_slice_write(struct blk_node *node, uint64_t offset, struct qcow2_table **slice,
                      uint32_t *index, struct blk_error *err);

/*
 * [locked] Stores an entry and frees (later) what the old one pointed to and the new one does not.
 */
int qcow2_slice_set(struct blk_node *node, struct qcow2_table *slice, uint32_t index,
                    struct qcow2_entry entry, enum qcow2_free_why why, struct blk_error *err);

/* [locked] Frees (later) what an entry points to. */
void qcow2_entry_free(struct blk_node *node, struct qcow2_entry entry, enum qcow2_free_why why);

#endif
