/* SPDX-License-Identifier: MIT */
/* The operations that decide what an image is like: create, resize, empty, amend, measure. */
#ifndef DRIVERS_QCOW2_SHAPE_SHAPE_H
#define DRIVERS_QCOW2_SHAPE_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/graph/driver.h"
#include "blockcore/graph/types.h"

struct blk_create;
struct blk_options;

/* ---- resize.c ---- */

int qcow2_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                   struct blk_error *err);
int qcow2_make_empty(struct blk_node *node, struct blk_error *err);

/* ---- create.c, create_options.c, amend.c, measure.c ---- */

extern const struct blk_option_desc qcow2_create_options[];
extern const struct blk_option_desc qcow2_amend_options[];
int qcow2_write_image(struct blk_create *create, struct blk_error *err);
int qcow2_bitmaps_can_create(const struct blk_options *creation, struct blk_error *err);
int qcow2_amend(struct blk_node *node, struct blk_options *options, bool force,
                const struct blk_progress *progress, struct blk_error *err);
int qcow2_measure(struct blk_options *options, struct blk_node *source, struct blk_measure *measure,
                  struct blk_error *err);

#endif
