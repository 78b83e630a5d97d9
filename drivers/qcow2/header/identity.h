/* SPDX-License-Identifier: MIT */
/* The identity of a backup in the header. */
#ifndef DRIVERS_QCOW2_HEADER_IDENTITY_H
#define DRIVERS_QCOW2_HEADER_IDENTITY_H

#include "blockcore/base/error.h"
#include "blockcore/graph/driver.h"
#include "drivers/qcow2/state.h"

extern const struct blk_identity_ops qcow2_identity_ops;

/* Puts an identity that was set into the tail of a header that is about to be written. */
void qcow2_identity_apply(struct blk_node *node, struct qcow2_tail *tail);
/* After opening or a store: sets node->is_backup, whether the image has a backup id. */
void qcow2_identity_note(struct blk_node *node);
/* For a check: blk_identity_lose() of the whole image; durable with the next flush. */
int qcow2_identity_give_up(struct blk_node *node, struct blk_error *err);

#endif
