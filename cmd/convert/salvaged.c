/* SPDX-License-Identifier: MIT */
/*
 * What --salvage could not read. Workers report pieces in any order, and one unreadable table makes
 * millions of them: neighbours are merged, and a line is said for each range that is left, at most
 * so many, with the total.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "cmd/convert/convert.h"

#define MAX_LINES 100

/* Ranges that are kept: more than are told, as those that are found out of order merge later. */
#define MAX_RANGES 1024

struct salvaged_range {
    uint64_t start, end; /* of the joined inputs */
    char *why;           /* of the first piece */
};

void convert_salvaged_add(struct convert_salvaged *salvaged, uint64_t offset, uint64_t bytes,
                          const struct blk_error *why)
{
    struct salvaged_range *list = salvaged->ranges;
    size_t at = salvaged->count;

    salvaged->bytes += bytes;
    while (at > 0 && list[at - 1].start > offset)
        at--;
    bool joins_left = at > 0 && list[at - 1].end == offset;
    bool joins_right = at < salvaged->count && list[at].start == offset + bytes;
    if (joins_left && joins_right) {
        list[at - 1].end = list[at].end;
        free(list[at].why);
        memmove(&list[at], &list[at + 1], (--salvaged->count - at) * sizeof(*list));
    } else if (joins_left) {
        list[at - 1].end += bytes;
    } else if (joins_right) {
        list[at].start = offset;
    } else if (salvaged->count == MAX_RANGES) {
        salvaged->untold = true;
    } else {
        if (!list)
            list = salvaged->ranges = blk_xcalloc(MAX_RANGES, sizeof(*list));
        memmove(&list[at + 1], &list[at], (salvaged->count++ - at) * sizeof(*list));
        list[at] = (struct salvaged_range){
            offset,
            offset + bytes,
            blk_xasprintf("%s: %s", why->what, why->why),
        };
    }
}

void convert_salvaged_end(struct convert_salvaged *salvaged, bool quiet)
{
    size_t told = quiet ? 0 : u64_min(salvaged->count, MAX_LINES);

    for (size_t i = 0; i < told; i++) {
        const struct salvaged_range *range = &salvaged->ranges[i];
        report_failure("bytes %" PRIu64 " to %" PRIu64 " cannot be read and become zeroes: %s",
                       range->start, range->end - 1, range->why);
    }
    if (salvaged->bytes && !quiet)
        report_failure("%" PRIu64 " bytes cannot be read and become zeroes%s", salvaged->bytes,
                       salvaged->untold || told < salvaged->count ? "; more places than are listed"
                                                                  : "");
    for (size_t i = 0; i < salvaged->count; i++)
        free(salvaged->ranges[i].why);
    free(salvaged->ranges);
    *salvaged = (struct convert_salvaged){ .count = 0 };
}
