/* SPDX-License-Identifier: MIT */
/*
 * A target that follows a node while a guest keeps writing.
 *
 * A filter sits above the source, and the guest's requests go to it. At first they only change the
 * source and leave dirty bits, set before a write is issued and again when it has ended: the job
 * copies what is dirty, in passes, and a write during a pass is never lost. Then the filter becomes
 * synchronous: each write goes to both before it completes, so that nothing becomes dirty any more,
 * and the job catches up with the rest. From then on they are in sync.
 *
 * No write of the guest fails because of the target: that fails the job, and its bits stay dirty.
 */
#ifndef BLOCKCORE_FILTERS_MIRROR_MIRROR_H
#define BLOCKCORE_FILTERS_MIRROR_MIRROR_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/bitmap/dirty_bitmap.h"
#include "blockcore/graph/node.h"

/*
 * Puts a filter above `source`; no request may be in flight. The caller's reference to `source`
 * passes to the filter; `target`, a graph of its own that is at least as large, stays open longer
 * than the filter. Nothing is dirty. On failure nothing has changed.
 */
int blk_mirror_insert(struct blk_node *source, struct blk_node *target, struct blk_node **filter,
                      struct blk_error *err);

/*
 * Moves the dirty bits to `taken`, which blk_mirror_new_bitmap() made; they have to be copied
 * after that.
 */
void blk_mirror_take_dirty(struct blk_node *filter, struct blk_dirty_bitmap *taken);
int blk_mirror_new_bitmap(struct blk_node *filter, struct blk_dirty_bitmap **bitmap,
                          struct blk_error *err);
uint64_t blk_mirror_dirty_bytes(const struct blk_node *filter);

/* From now on the guest's writes go to both. Waits for those in flight. */
void blk_mirror_synchronise(struct blk_node *filter);

/*
 * Copies what is dirty, while the writes of the guest are synchronous. On success source and target
 * are in sync, unless a write of the guest has failed in the meantime. -ECANCELED after a signal;
 * the first failure of a write to the target.
 */
int blk_mirror_catch_up(struct blk_node *filter, struct blk_error *err);

#endif
