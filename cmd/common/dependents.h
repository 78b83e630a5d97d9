/* SPDX-License-Identifier: MIT */
/* Whether a backup that is to be overwritten still has overlays. */
#ifndef CMD_COMMON_DEPENDENTS_H
#define CMD_COMMON_DEPENDENTS_H

#include "cmd/common/image.h"

/*
 * Refuses (-EEXIST) to overwrite `name` (a list of options with args->image_opts) if it is a backup
 * on which another image in its directory depends, unless args->force is set. For any other target,
 * one that is not there included, this is 0. Only headers are read, without locks, and of at most
 * DEPENDENTS_MAX_FILES files; what cannot be read depends on nothing.
 */
int check_no_dependents(const struct image_args *args, const char *name, struct blk_error *err);
#define DEPENDENTS_MAX_FILES 4096

/* The same for a plain file name; NULL and an empty one are no target. */
int check_file_no_dependents(const struct image_args *args, const char *path,
                             struct blk_error *err);

#endif
