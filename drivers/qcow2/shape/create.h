/* SPDX-License-Identifier: MIT */
/* The options of an image that is to be made: shared by create and measure. */
#ifndef DRIVERS_QCOW2_SHAPE_CREATE_H
#define DRIVERS_QCOW2_SHAPE_CREATE_H

#include "blockcore/graph/types.h"
#include "drivers/qcow2/state.h"

struct qcow2_request {
    uint64_t size; /* bytes, whole sectors */
    uint32_t version;
    unsigned cluster_bits;
    unsigned refcount_order;
    enum blk_prealloc preallocation;
    enum qcow2_compression compression;
    bool extended_l2, lazy_refcounts, data_file_raw;
    /* NULL: none. Owned by the options. */
    const char *backing_file, *backing_format, *data_file;
};

/*
 * Reads all create options, with the defaults for those not given. Refuses unknown values and
 * encryption.
 */
int qcow2_request_parse(struct blk_options *options, struct qcow2_request *request,
                        struct blk_error *err);

/* "compat" values: 0.10 and v2, 1.1 and v3. */
int qcow2_parse_compat(const char *text, uint32_t *version, struct blk_error *err);
/* "refcount_bits": a power of two up to 64. */
int qcow2_parse_refcount_bits(uint64_t bits, unsigned *order, struct blk_error *err);

/* The clusters that a refcount structure needs if `clusters` others are in use. */
struct qcow2_refcount_need {
    uint64_t table_clusters, block_clusters;
};
struct qcow2_refcount_need qcow2_refcount_need(uint64_t clusters, unsigned cluster_bits,
                                               unsigned refcount_order);

#endif
