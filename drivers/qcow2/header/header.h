/* SPDX-License-Identifier: MIT */
/* Reading cluster 0, and what follows the header in it. */
#ifndef DRIVERS_QCOW2_HEADER_HEADER_H
#define DRIVERS_QCOW2_HEADER_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "drivers/qcow2/state.h"

/*
 * Reads and validates the header and all that follows it in cluster 0. Refuses unknown
 * incompatible features by their names, and every size or offset beyond the limits of format.h.
 * The caller frees *tail, also after a failure (it is set to empty first).
 */
int qcow2_header_read(struct blk_node *node, struct qcow2_header *header, struct qcow2_tail *tail,
                      struct blk_error *err);

void qcow2_tail_free(struct qcow2_tail *tail);
void qcow2_tail_copy(struct qcow2_tail *to, const struct qcow2_tail *from);
/* The extension of that type, or NULL. If there are several the last one counts, as in QEMU. */
const struct qcow2_extension *qcow2_tail_find(const struct qcow2_tail *tail, uint32_t type);
/* Gives an extension a copy of `data`: in the place of the one that counts, or added at the end. */
void qcow2_tail_set(struct qcow2_tail *tail, uint32_t type, const void *data, uint32_t bytes);
void qcow2_tail_remove(struct qcow2_tail *tail, uint32_t type);
/* Sets the backing name to a copy; NULL: none. */
void qcow2_tail_set_backing(struct qcow2_tail *tail, const char *name);
/* Adds the table of feature names that a new image of version 3 gets. */
void qcow2_tail_add_feature_names(struct qcow2_tail *tail);

/* Sets bitmaps_start and bitmaps_end, after header or tail have changed. */
void qcow2_note_bitmap_directory(struct qcow2_state *s);

/* How many entries an L1 table needs for that guest size. */
uint64_t qcow2_l1_entries_for(uint64_t size, unsigned cluster_bits, bool extended);

#endif
