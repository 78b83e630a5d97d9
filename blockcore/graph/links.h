/* SPDX-License-Identifier: MIT */
/* Symbolic links, and those of /proc that only the kernel can follow: to somebody's descriptors. */
#ifndef BLOCKCORE_GRAPH_LINKS_H
#define BLOCKCORE_GRAPH_LINKS_H

#include <stdbool.h>

#include "blockcore/base/error.h"

#define BLK_MAX_SYMLINKS 40

/* Replaces *path, a malloc()ed path to a symlink, by where that leads. 0 or -errno. */
int blk_follow_symlink(char **path);

/* Whether a symlink is one of /proc/PID/fd. */
bool blk_is_descriptor_link(const char *path);

/*
 * Whether the header of the image called `image` may have this name in it: 0, or -EINVAL if it is
 * that of a descriptor (/dev/fd/3, /dev/stdin), which means something to this process alone.
 */
int blk_check_name_to_store(const char *image, const char *name, struct blk_error *err);

#endif
