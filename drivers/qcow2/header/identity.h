/* The identity of a backup in the header. */
#ifndef DRIVERS_QCOW2_HEADER_IDENTITY_H
#define DRIVERS_QCOW2_HEADER_IDENTITY_H

#include "blockcore/base/error.h"
#include "drivers/qcow2/state.h"

struct blk_id;

/* The driver's operations; _apply puts the new one into a header's tail, for bitmap/store.c. */
int qcow2_identity_get(struct blk_node *node, struct blk_identity *identity, struct blk_error *err);
void qcow2_identity_set(struct blk_node *node, const struct blk_identity *identity);
int qcow2_identity_put(struct blk_node *node, const struct blk_id *backup,
                       const struct blk_id *parent, struct blk_error *err);
void qcow2_identity_apply(struct blk_node *node, struct qcow2_tail *tail);
/* After opening or a store: does the image say that it is a backup? */
void qcow2_identity_note(struct blk_node *node);
/* blk_identity_lose() of the whole image, durably with the next flush; for a check. */
int qcow2_identity_give_up(struct blk_node *node, struct blk_error *err);

#endif
