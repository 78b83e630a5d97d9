/* SPDX-License-Identifier: MIT */
/* Writing cluster 0. */
#ifndef DRIVERS_QCOW2_HEADER_SWITCH_H
#define DRIVERS_QCOW2_HEADER_SWITCH_H

#include <stddef.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"

/*
 * Lays out cluster 0: header, extensions, end mark, backing name. The extensions lie within the
 * first sector, except for the feature names, which come last. Fills buf[0..cluster size) and
 * header's backing_offset, backing_bytes and header_bytes. For new images; for existing ones see
 * qcow2_header_relayout(). -EFBIG when it does not fit into the cluster or the first sector.
 */
int qcow2_header_encode(struct qcow2_header *header, const struct qcow2_tail *tail, uint8_t *buf,
                        struct blk_error *err);

/*
 * The switch of C4: replaces the header's fields by those of *next in one write of sector 0, and
 * flushes. cluster_bits, header_bytes, backing name and extensions stay. All that *next points to
 * must already be stable (qcow2_commit_all()). On success the state's header is *next. After a
 * failure the state of the medium is unknown: the image is poisoned.
 */
int qcow2_header_switch(struct blk_node *node, const struct qcow2_header *next,
                        struct blk_error *err);

/*
 * Writes these bytes of cluster 0 and flushes. They may tear: a crash can leave only a part
 * written. Requests may be in flight. A failure poisons the image.
 */
int qcow2_header_patch(struct blk_node *node, uint64_t offset, const void *data, size_t bytes,
                       struct blk_error *err);

/* qcow2_header_switch() of the refcount table alone, while requests are in flight (epoch.c). */
int qcow2_header_switch_reftable(struct blk_node *node, uint64_t offset, uint32_t clusters,
                                 struct blk_error *err);

/*
 * qcow2_header_switch() with other extensions or another backing name: what lies past sector 0 goes
 * to bytes that the old layout does not use, and is flushed first. Feature names that are in the
 * way are dropped. -ENOSPC, with everything as it was, when no such layout exists. On success the
 * state's header and tail are replaced by copies of the new ones.
 */
int qcow2_header_relayout(struct blk_node *node, const struct qcow2_header *next,
                          const struct qcow2_tail *tail, struct blk_error *err);

/* 0 if qcow2_header_relayout() would find a layout for `tail`, else its error. Changes nothing. */
int qcow2_header_can_relayout(struct blk_node *node, const struct qcow2_tail *tail,
                              struct blk_error *err);

/*
 * Sets the corrupt bit of an image that is already poisoned. Best effort: the operation that found
 * the damage fails anyway.
 */
void qcow2_header_mark_corrupt(struct blk_node *node);

#endif
