/* SPDX-License-Identifier: MIT */
/*
 * A complete refcount structure being built next to the live one, for operations that switch
 * everything by one header sector (C8): snapshot create, apply, delete, check -r, another width,
 * the emptying of an overlay. Use:
 *   qcow2_commit_all(); qcow2_shadow_begin() with the live counts or with none; change counts with
 *   qcow2_shadow_set/_add; place new tables with qcow2_shadow_alloc() and write them there with
 *   blk_child_pwrite(); qcow2_shadow_finish() writes table and blocks and fills the refcount
 *   fields of *next; blk_child_flush(); qcow2_header_switch(); qcow2_forget_tables().
 * Nothing that the live structure counts is ever written over, whatever the new counts say. If
 * anything fails before the switch, the image is what it was.
 */
#ifndef DRIVERS_QCOW2_TABLES_SHADOW_H
#define DRIVERS_QCOW2_TABLES_SHADOW_H

#include "blockcore/graph/types.h"
#include "drivers/qcow2/state.h"

struct qcow2_shadow {
    struct blk_node *node;
    unsigned order;    /* width of the new counts */
    uint8_t *counts;   /* packed, of that width: qcow2_count_get() */
    uint64_t clusters; /* number of counts; grows */
    uint64_t capacity; /* number of counts that there is room for */
    uint8_t *live;     /* one bit for each cluster: must not be written over before the switch */
    uint64_t hint;     /* no free cluster below */
    const struct blk_progress *progress; /* of copying the counts and writing them; or NULL */
};

/*
 * `copy_counts`: start from the live counts; else from zeroes (repair), where live counts that
 * cannot be read are no error. Clusters with a live count are kept from being written over in
 * both cases, and so is what the caller marks with qcow2_shadow_protect(). `progress` (may be NULL)
 * is called here and in qcow2_shadow_finish(). Errors: -ENOMEM, -EIO, -ERANGE when a live count
 * does not fit the width.
 */
int qcow2_shadow_begin(struct blk_node *node, unsigned order, bool copy_counts,
                       const struct blk_progress *progress, struct qcow2_shadow *shadow,
                       struct blk_error *err);
void qcow2_shadow_end(struct qcow2_shadow *shadow);
uint64_t qcow2_shadow_get(const struct qcow2_shadow *shadow, uint64_t cluster);
/*
 * Adds `delta` (+1 or -1) to the counts of the clusters that the range touches. -ERANGE: would
 * not fit or fall below 0.
 */
int qcow2_shadow_add(struct qcow2_shadow *shadow, uint64_t offset, uint64_t bytes, int delta,
                     struct blk_error *err);
/* Keeps the range from being written over before the switch, whatever the counts say. */
void qcow2_shadow_protect(struct qcow2_shadow *shadow, uint64_t offset, uint64_t bytes);
/*
 * Contiguous clusters that are free in the live and in the new structure; their new counts become
 * 1.
 */
int qcow2_shadow_alloc(struct qcow2_shadow *shadow, uint64_t bytes, uint64_t *offset,
                       struct blk_error *err);
/*
 * Takes the live refcount table and blocks out of the new counts (if `drop_old`), places and writes
 * the new ones, and sets next->reftable_offset, reftable_clusters and refcount_order. Not flushed.
 */
int qcow2_shadow_finish(struct qcow2_shadow *shadow, bool drop_old, struct qcow2_header *next,
                        struct blk_error *err);
/*
 * After the switch: discards in the file the clusters that are no longer counted. Only a hint: a
 * failure does not matter.
 */
void qcow2_shadow_discard_freed(const struct qcow2_shadow *shadow);

#endif
