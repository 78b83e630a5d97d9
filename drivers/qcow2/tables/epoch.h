/* SPDX-License-Identifier: MIT */
/* Bringing changed tables to the medium. */
#ifndef DRIVERS_QCOW2_TABLES_EPOCH_H
#define DRIVERS_QCOW2_TABLES_EPOCH_H

#include "drivers/qcow2/state.h"

/*
 * Commits until nothing is pending, and flushes: all tables in the file are as in memory, all
 * of it stable, no free is outstanding. What C8 operations begin with. Returns poison as an error.
 */
int qcow2_commit_all(struct blk_node *node, struct blk_error *err);

/*
 * The driver's operation: everything is handed to the file, frees and their counts included; not
 * flushed.
 */
int qcow2_flush_to_os(struct blk_node *node, struct blk_error *err);

/* Commits if the caches are full of changes or many frees wait. Called without locks, often. */
int qcow2_commit_if_full(struct blk_node *node, struct blk_error *err);

#endif
