/* SPDX-License-Identifier: MIT */
/* Giving a file a name that must be free, on file systems with and without the calls for it. */
#ifndef BLOCKCORE_BASE_RENAME_H
#define BLOCKCORE_BASE_RENAME_H

#include <stdbool.h>

/*
 * Renames `from` to `to`, both in `directory` (a descriptor or AT_FDCWD), without replacing
 * anything: by a second link, by renameat2, or, where the file system has neither (FUSE, NFS), by
 * looking first. 0 or -errno; -EEXIST when the name is taken.
 */
int blk_rename_to_free(int directory, const char *from, const char *to);

/* Whether an errno of a link or rename says that it cannot be done here, not that it failed. */
bool blk_rename_is_unsupported(int code);

#endif
