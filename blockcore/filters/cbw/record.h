/* SPDX-License-Identifier: MIT */
/*
 * What the files of copy-before-write share: the record itself, which is the state of the filter's
 * node. From the top down: filter.c and snapshot_access.c (the drivers), view.c (the frozen view),
 * cbw.c (the record's life, guest writes), save.c (saving), claim.c (claims).
 *
 * Two things keep the view right. A *claim* makes one thread the only one that copies a range. And
 * the range lock `reads` is held, shared, by a thread that reads pending clusters of the source for
 * the view. A guest write first has its clusters copied (or the snapshot broken), under `mutex`;
 * then it takes `reads` of its range exclusively and releases it at once. So reads that saw the
 * clusters pending have ended, and later ones see that they are not; nothing needs to be held while
 * the guest writes.
 *
 * Lock order: claim, `reads`, `mutex`. The nodes below are used without `mutex`; ranges of theirs
 * come after `reads`.
 */
#ifndef BLOCKCORE_FILTERS_CBW_RECORD_H
#define BLOCKCORE_FILTERS_CBW_RECORD_H

#include "blockcore/base/lock.h"
#include "blockcore/filters/cbw/cbw.h"
#include "blockcore/graph/range_lock.h"

#define CBW_MAX_HELPERS 8

struct cbw_save;

struct cbw_claim {
    uint64_t offset, bytes; /* whole clusters */
    struct cbw_claim *next;
};

struct blk_cbw {
    /* fixed */
    struct blk_node *source, *target;
    uint64_t size; /* of the source at the frozen moment */
    uint64_t cluster_bytes;
    enum blk_cbw_on_error on_error;
    uint64_t timeout_ms;
    struct blk_dirty_bitmap *mask; /* clusters that matter; NULL: all */

    /* own locking */
    struct blk_range_lock reads;
    struct blk_dirty_bitmap *pending; /* matters and is not copied; cleared under `mutex` */

    struct blk_mutex mutex;   /* guards what follows */
    pthread_cond_t changed;   /* any of it; timed waits use CLOCK_MONOTONIC */
    struct cbw_claim *claims; /* held and waiting, in order of arrival */
    bool broken;
    struct blk_error why; /* when broken */

    /* the helper threads (save.c) */
    struct cbw_save *queue; /* saves that wait for their range and for a helper */
    unsigned queued, idle, helpers;
    pthread_t threads[CBW_MAX_HELPERS];
    bool closing;
};

/*
 * Fills the zeroed state of a filter that has its file and target, and sets the node's size. On
 * failure there is nothing to release.
 */
int cbw_begin(struct blk_node *filter, const struct blk_cbw_params *params, struct blk_error *err);

/* Waits for saves whose guest has given up, and frees what the record has. */
void cbw_end(struct blk_cbw *cbw);

/*
 * With `mutex` held: adds a claim of whole clusters at the end; whether it may be held now; takes
 * it out.
 */
void cbw_claim_add(struct blk_cbw *cbw, struct cbw_claim *claim, uint64_t offset, uint64_t bytes);
bool cbw_claim_is_free(const struct blk_cbw *cbw, const struct cbw_claim *claim);
void cbw_claim_remove(struct blk_cbw *cbw, struct cbw_claim *claim);

/* With `mutex` held: the failure of everything that needs the snapshot, when it is broken. */
int cbw_check_locked(struct blk_cbw *cbw, struct blk_error *err);

/*
 * Has all pending clusters of the range copied by a helper thread within the time limit. -ETIMEDOUT
 * when it did not finish in time: then it does not count, even if it succeeds later.
 */
int cbw_save_in_time(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, struct blk_error *err);

/* Ends the helper threads; saves that were given up are waited for. */
void cbw_stop_helpers(struct blk_cbw *cbw);

#endif
