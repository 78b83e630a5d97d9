/* SPDX-License-Identifier: MIT */
/* Giving clusters back. */
#ifndef DRIVERS_QCOW2_TABLES_FREES_H
#define DRIVERS_QCOW2_TABLES_FREES_H

#include <stdint.h>

#include "drivers/qcow2/state.h"

/* qcow2_refcount_decrease() for a caller that does not hold the lock. */
int qcow2_unalloc(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

/*
 * Why something is freed. With the pass-discard options this decides whether it is also discarded
 * in the file. What shrinking frees always is: giving back space is its purpose.
 */
enum qcow2_free_why {
    QCOW2_FREE_REQUEST,
    QCOW2_FREE_SNAPSHOT,
    QCOW2_FREE_OTHER,
    QCOW2_FREE_SHRINK,
};

/*
 * [locked] Takes one from the counts of the clusters that the range touches, once the change that
 * unpoints them (made under the same lock) is stable.
 */
void qcow2_free_later(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      enum qcow2_free_why why);

/*
 * Applies frees whose cause is stable, and discards in the file what may be. Called without the
 * lock.
 */
int qcow2_frees_apply(struct blk_node *node, const struct qcow2_frees *frees,
                      struct blk_error *err);

#endif
