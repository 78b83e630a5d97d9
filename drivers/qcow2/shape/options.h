/* SPDX-License-Identifier: MIT */
/* The runtime options of a qcow2 node. */
#ifndef DRIVERS_QCOW2_SHAPE_OPTIONS_H
#define DRIVERS_QCOW2_SHAPE_OPTIONS_H

#include "blockcore/graph/types.h"
#include "drivers/qcow2/state.h"

struct qcow2_settings {
    uint64_t l2_cache, refcount_cache; /* bytes */
    bool is_l2_given;                  /* l2_cache is what the user wants */
    uint64_t slice_bytes;              /* of an L2 slice */
    struct qcow2_pass_discard pass_discard;
    unsigned overlap_checks; /* enum qcow2_overlap */
    bool discard_no_unref;
};

/*
 * Reads all options but the data file's; those not given get their defaults. The header must have
 * been read. Errors: -EINVAL, naming the option.
 */
int qcow2_options_open(struct blk_node *node, struct blk_options *options,
                       struct qcow2_settings *settings, struct blk_error *err);

/* The driver's reopen->options_read and options_apply: options not given stay as they are. */
int qcow2_options_read(struct blk_node *node, struct blk_options *options, void **settings,
                       struct blk_error *err);
void qcow2_options_apply(struct blk_node *node, const void *settings);
/* The image was reopened: the default size of the L2 cache depends on what for. */
void qcow2_options_reopened(struct blk_node *node, bool writable);

#endif
