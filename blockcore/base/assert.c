/* SPDX-License-Identifier: MIT */
/* The end of a run whose own rules were broken: see assert.h. */
#include "blockcore/base/assert.h"

#include <stdio.h>
#include <stdlib.h>

void blk_assert_failed(const char *file, int line, const char *function, const char *condition)
{
    fprintf(stderr, "blkimg: internal error: %s:%d: %s(): '%s' does not hold\n", file, line,
            function, condition);
    abort();
}
