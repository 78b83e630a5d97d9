/*
 * Whether a target is one of the files that a command reads, or that what it makes needs. The locks
 * find most of that out, but not with -U or locking=off, and their message would not say what the
 * user did.
 */
#ifndef CMD_COMMON_SAME_FILE_H
#define CMD_COMMON_SAME_FILE_H

#include <stdbool.h>

#include "blockcore/error.h"
#include "blockcore/node.h"

/* Whether both names lead to one file that exists, or are the same name. */
bool is_same_file(const char *a, const char *b);

/*
 * Refuses the target `name` (a list of options with `image_opts`) if any file of it is also a file
 * of `source`'s graph, backing chain included. -EINVAL then; 0 for names that do not exist.
 */
int check_apart(const struct blk_node *source, const char *name, bool image_opts,
                struct blk_error *err);

/*
 * Fails with -EIO if a file of the graph has become shorter than it was when it was opened: what
 * was read past its new end were zeroes, not its content. To be called when all has been read.
 */
int check_not_shrunk(const struct blk_node *source, struct blk_error *err);

#endif
