/* SPDX-License-Identifier: MIT */
/* The backing file of an image that is to be made. */
#ifndef CMD_COMMON_BACKING_H
#define CMD_COMMON_BACKING_H

#include "cmd/common/image.h"

/*
 * Opens `name` (args->format; `flags`: enum blk_open_flags), which shows that it is an image and
 * that none of its chain is the file `overlay`, which will be overwritten. On failure *backing is
 * NULL.
 */
int backing_open(const struct image_args *args, const char *name, unsigned flags,
                 const char *overlay, struct blk_node **backing, struct blk_error *err);

/*
 * How the header of `overlay` should name `backing` (a path from the current directory): by name
 * alone if both are in one directory, so that they can be moved together; else by its full path.
 * Names that are no paths stay as they are. malloc()ed.
 */
char *backing_name_for_header(const char *overlay, const char *backing);

#endif
