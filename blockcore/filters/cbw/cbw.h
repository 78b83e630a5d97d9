/* SPDX-License-Identifier: MIT */
/*
 * Copy-before-write: the content of a node at one moment stays readable while a guest keeps
 * writing.
 *
 * The filter node `copy-before-write` sits above the active image (its file child). Before a
 * guest's write, write_zeroes, discard or shrinking it saves the old data of the clusters touched
 * to its target child. The node `snapshot-access` shows the frozen moment: from the target what has
 * been saved, all else from the source. Both drivers are thin; what they do is here, as is the
 * record of what has been copied, which a backup job shares: a cluster that the job has copied to
 * the target need not be saved any more, and the other way round.
 *
 * A cluster is the larger of both nodes' clusters, at least 64 KiB or what is asked for; the last
 * one ends with the frozen size.
 *
 * What is promised, by the mode of the filter:
 *   break-guest-write  the frozen view is always right; a guest write whose old data cannot be
 *                      saved (in time) fails
 *   break-snapshot     no guest write fails because of the snapshot: when a save fails, the
 *                      snapshot is broken for good. Reads of the view that were in flight finish
 *                      correctly, later ones fail and say why
 */
#ifndef BLOCKCORE_FILTERS_CBW_CBW_H
#define BLOCKCORE_FILTERS_CBW_CBW_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/bitmap/dirty_bitmap.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

struct blk_cbw;

enum blk_cbw_on_error { BLK_CBW_BREAK_GUEST_WRITE, BLK_CBW_BREAK_SNAPSHOT };

struct blk_cbw_params {
    enum blk_cbw_on_error on_error;
    uint64_t timeout_ms;        /* how long a guest write may wait for its saves; 0: no limit */
    uint64_t min_cluster_bytes; /* a power of two, or 0: least size of a cluster */
    /*
     * Only the clusters that it marks matter: others are not saved, and the view does not show
     * them. NULL: all.
     */
    const struct blk_dirty_bitmap *mask; /* not needed after the call */
};

/* ---- life ---- */

/*
 * Puts a filter above `source`: guests write to it from now on, and this is the frozen moment. No
 * request may be in flight. The caller's reference to `source` passes to the filter, `target` gets
 * one more. Requests go to the filter only. -EINVAL when the target is smaller than the source. On
 * failure nothing has changed.
 */
int blk_cbw_insert(struct blk_node *source, struct blk_node *target,
                   const struct blk_cbw_params *params, struct blk_node **filter,
                   struct blk_error *err);

/* The record of a copy-before-write filter; NULL for any other node. */
struct blk_cbw *blk_cbw_of(const struct blk_node *filter);

/* ---- for the drivers ---- */

uint64_t blk_cbw_size(const struct blk_cbw *cbw); /* frozen */

/*
 * Called by the filter before it changes a range of its file. 0: the change may be made. -errno: it
 * must not (only with break-guest-write).
 */
int blk_cbw_before_write(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes,
                         struct blk_error *err);

/*
 * Reads the frozen content, within the frozen size. The guest cannot overwrite what is being read
 * from the source. Errors: the read's own; the reason when the snapshot is broken; -EACCES for what
 * the mask leaves out.
 */
int blk_cbw_read(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, void *buf,
                 struct blk_error *err);

/*
 * Its state: ZERO, DATA, and ALLOCATED where the source itself (not its backing file) decided.
 * Never a host offset.
 */
int blk_cbw_block_status(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, unsigned want,
                         struct blk_extent *extent, struct blk_error *err);

/* ---- for jobs that copy to the same target ---- */

/* Bytes that matter and are not yet in the target: what the unit tests look at. */
uint64_t blk_cbw_pending_bytes(const struct blk_cbw *cbw);

/* 0, or -errno with the reason why the snapshot is broken. Once broken it stays so. */
int blk_cbw_check(struct blk_cbw *cbw, struct blk_error *err);

/*
 * Copies what of the range matters and is not yet in the target, in this thread, however long that
 * takes. Failures are the caller's business: they do not break the snapshot.
 */
int blk_cbw_save(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, struct blk_error *err);

#endif
