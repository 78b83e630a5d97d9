/*
 * The runtime options of a qcow2 node.
 */
#ifndef DRIVERS_QCOW2_OPTIONS_H
#define DRIVERS_QCOW2_OPTIONS_H

#include "drivers/qcow2/qcow2.h"

struct qcow2_cache_sizes {
    uint64_t l2, refcount; /* bytes */
    uint64_t slice_bytes;  /* of an L2 slice */
};

/*
 * Reads all options but the data file's. The header is known. Errors: -EINVAL, naming the option.
 */
int qcow2_options_read(struct blk_node *node, struct blk_options *options,
                       struct qcow2_cache_sizes *sizes, struct blk_error *err);

#endif
