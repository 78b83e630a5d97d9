/* SPDX-License-Identifier: MIT */
/*
 * A guest: a thread that runs io commands (blkimg-io(1)) from a file against a node while a job
 * copies it.
 */
#ifndef CMD_IO_GUEST_H
#define CMD_IO_GUEST_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"

struct guest;

/*
 * Opens the file of commands. Nothing runs yet. -errno when it cannot be read, -EINVAL when it is a
 * regular file with a line that is no command or not for a guest; *guest is NULL then. The caller
 * ends it with guest_free().
 */
int guest_open(const char *commands, struct guest **guest, struct blk_error *err);

/* Starts the thread. The node stays open until guest_wait() returns. */
int guest_start(struct guest *guest, struct blk_node *node, struct blk_error *err);

/*
 * Waits for the end of the commands, which a signal brings about, and of all requests. -errno when
 * the commands could not be read; what becomes of a request is the guest's own business, and told
 * on stdout.
 */
int guest_wait(struct guest *guest, struct blk_error *err);

/* For a guest that does not run. NULL does nothing. */
void guest_free(struct guest *guest);

#endif
