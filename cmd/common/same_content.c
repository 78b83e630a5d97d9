/* SPDX-License-Identifier: MIT */
/* The proof that two images show the same content. */
#include "cmd/common/same_content.h"

#include <errno.h>
#include <inttypes.h>

#include "blockcore/base/bytes.h"
#include "blockcore/graph/driver.h"
#include "blockcore/jobs/difference.h"

int prove_same_content(struct blk_node *source, struct blk_node *target, unsigned workers,
                       struct blk_error *err)
{
    const struct blk_difference_params params = {
        .first = source,
        .second = target,
        .bytes = u64_max(blk_size(source), blk_size(target)),
        .workers = workers,
    };
    uint64_t offset;
    bool differs;

    int ret = blk_difference_find(&params, &differs, &offset, err);
    if (ret < 0)
        return ret;
    if (differs)
        return blk_fail_why(err, EIO, "they differ",
                            "comparing '%s' with '%s' from offset %" PRIu64, target->name,
                            source->name, offset);
    return 0;
}
