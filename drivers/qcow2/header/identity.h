/* SPDX-License-Identifier: MIT */
/* The identity of a backup in the header. */
#ifndef DRIVERS_QCOW2_HEADER_IDENTITY_H
#define DRIVERS_QCOW2_HEADER_IDENTITY_H

#include "blockcore/base/error.h"
#include "blockcore/graph/driver.h"
#include "drivers/qcow2/state.h"

extern const struct blk_identity_ops qcow2_identity_ops;

/* Puts what was set into a header's tail, for whoever writes one. */
void qcow2_identity_apply(struct blk_node *node, struct qcow2_tail *tail);
/* After opening or a store: does the image say that it is a backup? */
void qcow2_identity_note(struct blk_node *node);
/* blk_identity_lose() of the whole image, durably with the next flush; for a check. */
int qcow2_identity_give_up(struct blk_node *node, struct blk_error *err);

#endif
