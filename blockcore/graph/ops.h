/* SPDX-License-Identifier: MIT */
/*
 * What can be done to an image as a whole: the operations of the driver's table that are neither
 * requests (io.h) nor steps of opening and closing.
 *
 * Each acts on the first node below `root`'s filters, and runs alone: it drains `root`, which must
 * be the node through which requests come. So none of these may be called from a request. What the
 * format lacks is named (feature.h), with -ENOTSUP. All return 0 or -errno with `err` filled. For
 * the backing file see backing.h, for bitmaps bitmaps.h, for identities identity.h.
 */
#ifndef BLOCKCORE_GRAPH_OPS_H
#define BLOCKCORE_GRAPH_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/info.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

struct blk_driver;
struct blk_options;

/* ---- information ---- */

/*
 * Fills `info`, which the caller has zeroed and frees (BLK_AUTO_INFO). A format that only passes
 * its file through reports what the file does. A protocol reports nothing, which is not an error.
 */
int blk_get_info(struct blk_node *root, struct blk_info *info, struct blk_error *err);

/* Only the size of the image's clusters; 0 where it has none. */
int blk_cluster_bytes(struct blk_node *root, uint64_t *bytes, struct blk_error *err);

/* The same two for drivers, on their children: nothing is drained (io.h). */
int blk_child_get_info(struct blk_node *node, struct blk_info *info, struct blk_error *err);
int blk_child_cluster_bytes(struct blk_node *node, uint64_t *bytes, struct blk_error *err);

/*
 * What the image occupies on its media, without its backing file. -ENOTSUP, with `err` left alone,
 * where that is not known.
 */
int blk_allocated_bytes(struct blk_node *root, uint64_t *bytes, struct blk_error *err);

/* ---- changes ---- */

/*
 * Sizes for a new image of `driver` with these create options and the contents of `source` (NULL:
 * an empty image). Reads the source by ordinary requests, so it is not drained.
 */
int blk_measure(const struct blk_driver *driver, struct blk_options *options,
                struct blk_node *source, struct blk_measure *measure, struct blk_error *err);

/* Changes what `options` ask for and marks those as used. `progress` may be NULL. */
int blk_amend(struct blk_node *root, struct blk_options *options, bool force,
              const struct blk_progress *progress, struct blk_error *err);

/* `repair`: enum blk_repair, 0 to change nothing. `check` has the callback and gets the counts. */
int blk_check(struct blk_node *root, unsigned repair, struct blk_check *check,
              struct blk_error *err);

/* Drops all data of this layer, so that the backing file shows through. */
int blk_make_empty(struct blk_node *root, struct blk_error *err);

/* ---- internal snapshots ---- */

/* The caller frees *list with blk_snapshots_free(), whatever is returned. */
int blk_snapshot_list(struct blk_node *root, struct blk_snapshot **list, size_t *count,
                      struct blk_error *err);
int blk_snapshot_create(struct blk_node *root, const char *name, struct blk_error *err);
int blk_snapshot_apply(struct blk_node *root, const char *id_or_name, struct blk_error *err);
int blk_snapshot_delete(struct blk_node *root, const char *id_or_name, struct blk_error *err);
/* Makes reads show this snapshot; for an image opened read-only. */
int blk_snapshot_load(struct blk_node *root, const char *id_or_name, struct blk_error *err);

/* ---- breakpoints ---- */

/*
 * These go to the first node down the file children that has breakpoints (blkdebug). They are used
 * while requests are in flight, so nothing is drained. -ENOTSUP where no node has breakpoints.
 */
bool blk_has_breakpoints(struct blk_node *root);
int blk_debug_break(struct blk_node *root, const char *event, const char *tag,
                    struct blk_error *err);
int blk_debug_remove_break(struct blk_node *root, const char *tag, struct blk_error *err);
int blk_debug_resume(struct blk_node *root, const char *tag, struct blk_error *err);
bool blk_debug_is_suspended(struct blk_node *root, const char *tag);

#endif
