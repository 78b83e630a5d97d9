/* SPDX-License-Identifier: MIT */
/*
 * Requests to a node.
 *
 * blk_*() is for users of a graph: each call checks the range against the node's size and is
 * counted in flight once. blk_child_*() is for drivers talking to their children: no count (the
 * request was counted where it entered), and writes may extend a growable child. Both take any
 * offset and length: requests that do not fit the node's alignment are widened, writes by
 * read-modify-write under the node's range lock.
 *
 * All return 0 or -errno. Ranges are bytes. After a failed write the range holds old or new
 * content, sector by sector.
 */
#ifndef BLOCKCORE_GRAPH_IO_H
#define BLOCKCORE_GRAPH_IO_H

#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

/* ---- for users of a graph ---- */

/* Reads exactly `bytes`. -EIO past the end. */
int blk_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
              struct blk_error *err);

/* The same for any range: what lies past the end reads as zeroes. */
int blk_pread_padded(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                     struct blk_error *err);

/* Writes exactly `bytes`; flags: BLK_REQ_FUA. -EIO past the end, -EACCES... when read-only. */
int blk_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
               unsigned flags, struct blk_error *err);

/* Flags: BLK_REQ_MAY_UNMAP, BLK_REQ_NO_FALLBACK, BLK_REQ_FUA. */
int blk_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                     struct blk_error *err);

/* Lets the node forget the range. Without BLK_UNMAP in the node's flags nothing happens. */
int blk_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

/*
 * Copies bytes of a medium without passing user space. -ENOTSUP: read and write the whole range
 * instead; a part of it may have been copied by then, unless they were only to be shared.
 */
int blk_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                   uint64_t bytes, struct blk_error *err);

/* Whether blocks of BLK_SHARE_BYTES of the protocol node `source` can be shared, aligned in both. */
bool blk_can_share(struct blk_node *node, const struct blk_node *source);

/*
 * Changes the size. Grown space reads as zeroes. `exact`: -ENOTSUP rather than a different size, as
 * for devices, which otherwise only need to be large enough. Drains the node.
 */
int blk_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                 struct blk_error *err);

/*
 * VM state, which some formats keep next to the disk: of the first node down the file children that
 * can. What was never written reads as zeroes. -ENOTSUP where none can. Drains the node.
 */
int blk_vm_state_read(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                      struct blk_error *err);
int blk_vm_state_write(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                       struct blk_error *err);

/* ---- for drivers, on their children ---- */

int blk_child_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                    struct blk_error *err);
int blk_child_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                     unsigned flags, struct blk_error *err);
int blk_child_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                           struct blk_error *err);
int blk_child_discard(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      struct blk_error *err);
int blk_child_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                         uint64_t bytes, struct blk_error *err);
int blk_child_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                       struct blk_error *err);

/* ---- memory for requests ---- */

/*
 * `bytes` of uninitialised memory, aligned to 4096 and so fit for O_DIRECT; free() releases it.
 * NULL when there is none.
 */
void *blk_buffer_alloc(uint64_t bytes);

#endif
