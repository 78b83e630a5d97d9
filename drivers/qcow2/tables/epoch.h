/* SPDX-License-Identifier: MIT */
/* Bringing changed tables to the medium. */
#ifndef DRIVERS_QCOW2_TABLES_EPOCH_H
#define DRIVERS_QCOW2_TABLES_EPOCH_H

#include "drivers/qcow2/state.h"

/*
 * Commits until nothing is pending, and flushes: the tables in the file are those in memory, all is
 * stable, and no free is outstanding. Operations of C8 begin with it. Fails if the image is
 * poisoned.
 */
int qcow2_commit_all(struct blk_node *node, struct blk_error *err);

/*
 * The driver's flush_to_os: writes everything to the file, including frees and their counts, but
 * does not flush the file.
 */
int qcow2_flush_to_os(struct blk_node *node, struct blk_error *err);

/*
 * Commits if the caches are full of changes or many frees wait. To be called often, without locks.
 */
int qcow2_commit_if_full(struct blk_node *node, struct blk_error *err);

#endif
