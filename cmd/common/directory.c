/* Syncing the folder of a file. */
#include "cmd/common/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <unistd.h>

#include "blockcore/base/memory.h"

int sync_folder_of(const char *file, struct blk_error *err)
{
    BLK_AUTOFREE char *copy = blk_xstrdup(file);
    const char *folder = dirname(copy);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return blk_fail(err, errno, "opening directory '%s'", folder);
    int ret = fsync(fd) == 0 ? 0 : blk_fail(err, errno, "syncing directory '%s'", folder);
    if (close(fd) < 0 && ret == 0)
        ret = blk_fail(err, errno, "closing directory '%s'", folder);
    return ret;
}
