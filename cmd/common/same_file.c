/* SPDX-License-Identifier: MIT */
/* Whether a source became shorter while it was read. */
#include "cmd/common/same_file.h"

#include <errno.h>
#include <sys/stat.h>

#include "blockcore/graph/feature.h"

int check_not_shrunk(const struct blk_node *source, struct blk_error *err)
{
    struct stat st;
    if (blk_kind_of(source) == BLK_PROTOCOL && stat(source->name, &st) == 0 &&
        S_ISREG(st.st_mode) && (uint64_t)st.st_size < blk_size(source))
        return blk_fail_why(err, EIO, "it shrank while it was being read", "reading '%s'",
                            source->name);

    for (int role = 0; role < BLK_ROLE_COUNT; role++) {
        const struct blk_node *child = source->children[role];
        int ret = child ? check_not_shrunk(child, err) : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}
