/* SPDX-License-Identifier: MIT */
/* Syncing the directory of a file. */
#include "cmd/common/directory.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <unistd.h>

#include "blockcore/base/memory.h"

int sync_directory_of(const char *file, struct blk_error *err)
{
    BLK_AUTOFREE char *copy = blk_xstrdup(file);
    const char *directory = dirname(copy);
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return blk_fail(err, errno, "opening directory '%s'", directory);
    int ret = fsync(fd) == 0 ? 0 : blk_fail(err, errno, "syncing directory '%s'", directory);
    if (close(fd) < 0 && ret == 0)
        ret = blk_fail(err, errno, "closing directory '%s'", directory);
    return ret;
}
