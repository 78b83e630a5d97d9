/* SPDX-License-Identifier: MIT */
/*
 * The data operations.
 *
 *   status.c        block_status
 *   read.c, write.c, zero.c, compressed.c
 *   preallocate.c   places for clusters that nobody has written yet
 *   vm_state.c      VM state, which lies behind the disk
 *   compress.c      packs and unpacks one cluster
 */
#ifndef DRIVERS_QCOW2_DATA_DATA_H
#define DRIVERS_QCOW2_DATA_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/graph/driver.h"
#include "blockcore/graph/types.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/frees.h"

int qcow2_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                       struct blk_extent *extent, struct blk_error *err);

int qcow2_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                struct blk_error *err);
/*
 * Reads without taking the range lock, for callers that hold it. Bytes between the virtual size and
 * the VM state are zeroes.
 */
int qcow2_read_held(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                    struct blk_error *err);
int qcow2_read_piece(struct blk_node *node, uint64_t offset, struct blk_piece_read *read,
                     struct blk_error *err);
int qcow2_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                 unsigned flags, struct blk_error *err);
/* Choose places for writes to come; give back those that no write has used. */
int qcow2_place(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);
void qcow2_end_places(struct blk_node *node);
/* Writes zeroes as data: for what cannot be marked as zero. */
int qcow2_write_zero_data(struct blk_node *node, uint64_t offset, uint64_t bytes,
                          struct blk_error *err);
/*
 * Whether the guest range is known to read as zeroes without reading any data. For callers that
 * hold the range lock.
 */
int qcow2_is_known_zero(struct blk_node *node, uint64_t offset, uint64_t bytes, bool *zero,
                        struct blk_error *err);
int qcow2_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                     uint64_t bytes, struct blk_error *err);
bool qcow2_can_share(struct blk_node *node, const struct blk_node *source);
int qcow2_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                       struct blk_error *err);
int qcow2_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);
/*
 * Removes the mapping of whole clusters, so that the backing file shows through, or zeroes. The
 * range may extend past the virtual size, as far as L1 does.
 */
int qcow2_unmap(struct blk_node *node, uint64_t offset, uint64_t bytes, enum qcow2_free_why why,
                struct blk_error *err);
/*
 * Marks whole (sub)clusters as zeroes, as write_zeroes does; the range may extend past the virtual
 * size. Version 3 only.
 */
int qcow2_zero_behind(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      struct blk_error *err);
int qcow2_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                           struct blk_error *err);
int qcow2_compress(struct blk_node *node, const void *cluster, void *piece, uint32_t *length,
                   struct blk_error *err);
int qcow2_write_pieces(struct blk_node *node, uint64_t offset, const struct blk_pieces *pieces,
                       struct blk_error *err);

/* ---- vm_state.c ---- */

/* These run alone: writing may move the L1 table. */
extern const struct blk_vm_state_ops qcow2_vm_state_ops;

/* ---- preallocate.c ---- */

/*
 * Maps the unmapped clusters of the guest range to newly allocated ones that read as zeroes;
 * FALLOC and FULL reserve or write their space too. For create and truncate. OFF does nothing.
 */
int qcow2_preallocate(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      enum blk_prealloc prealloc, struct blk_error *err);

/* ---- compress.c ---- */

/* One cluster. *out_bytes is the length of the piece; -ENOSPC when it does not fit into `room`. */
int qcow2_compress_cluster(const struct qcow2_state *s, const void *cluster, void *out, size_t room,
                           size_t *out_bytes, struct blk_error *err);
/*
 * Unpacks a piece (`in_bytes` may include what follows it in its last sector) into exactly one
 * cluster. *used (may be NULL) is the length of the piece itself; 0: not known, as it would go on
 * behind the cluster.
 */
int qcow2_decompress_cluster(const struct qcow2_state *s, const void *in, size_t in_bytes,
                             void *out, size_t *used, struct blk_error *err);

#endif
