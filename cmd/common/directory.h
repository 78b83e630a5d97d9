/* SPDX-License-Identifier: MIT */
/* The directories of files that a command names itself. */
#ifndef CMD_COMMON_DIRECTORY_H
#define CMD_COMMON_DIRECTORY_H

#include "blockcore/base/error.h"

/* Makes durable what was done to the names in the directory of `file`. 0 or -errno (fsync(2)). */
int sync_directory_of(const char *file, struct blk_error *err);

#endif
