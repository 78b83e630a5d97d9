/* SPDX-License-Identifier: MIT */
/*
 * Where the tables of internal snapshots are, so that nothing is written over them.
 *
 * L1 tables are kept as ranges, of which there are at most as many as snapshots. Their L2 tables
 * take reading each L1 table, and are looked for only if asked for (overlap-check=all). Taking,
 * deleting and applying snapshots forgets all this, as it forgets the other tables.
 *
 * A table of snapshots that cannot be understood protects what comes before the damage.
 */
#include "drivers/qcow2/tables/inactive.h"

#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/cluster_set.h"

static int compare_ranges(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

/* Sorts the ranges and joins those that overlap or touch. */
static void join_ranges(struct qcow2_inactive *inactive)
{
    uint64_t(*ranges)[2] = inactive->ranges;
    size_t kept = 0;

    if (inactive->count)
        qsort(ranges, inactive->count, sizeof(*ranges), compare_ranges);
    for (size_t i = 0; i < inactive->count; i++) {
        if (kept && ranges[i][0] <= ranges[kept - 1][1]) {
            ranges[kept - 1][1] = u64_max(ranges[kept - 1][1], ranges[i][1]);
            continue;
        }
        ranges[kept][0] = ranges[i][0];
        ranges[kept++][1] = ranges[i][1];
    }
    inactive->count = kept;
}

/* Reads the table entry by entry: only a few numbers of each are needed. */
static int load_ranges(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_inactive *inactive = &s->inactive;
    uint64_t at = s->header.snapshots_offset, end = blk_size(qcow2_file(node));
    uint8_t entry[QCOW2_SNAPSHOT_AT_EXTRA];

    inactive->ranges = blk_calloc(s->header.snapshot_count, sizeof(*inactive->ranges));
    if (!inactive->ranges)
        return blk_fail(err, ENOMEM, "looking for the snapshots of '%s'", node->name);
    for (uint32_t i = 0; i < s->header.snapshot_count; i++) {
        if (!range_within(at, sizeof(entry), end))
            break;
        int ret = blk_child_pread(qcow2_file(node), at, sizeof(entry), entry, err);
        if (ret < 0)
            return ret;
        uint64_t offset = be64_get(entry + QCOW2_SNAPSHOT_AT_L1_OFFSET);
        uint64_t bytes = be32_get(entry + QCOW2_SNAPSHOT_AT_L1_ENTRIES) * UINT64_C(8);
        if (bytes && bytes <= QCOW2_MAX_L1_BYTES && offset % s->cluster_bytes == 0 &&
            range_within(offset, bytes, end)) {
            inactive->ranges[inactive->count][0] = offset;
            inactive->ranges[inactive->count++][1] = offset + bytes;
        }
        at += round_up(sizeof(entry) + (uint64_t)be32_get(entry + QCOW2_SNAPSHOT_AT_EXTRA_BYTES) +
                           be16_get(entry + QCOW2_SNAPSHOT_AT_ID_BYTES) +
                           be16_get(entry + QCOW2_SNAPSHOT_AT_NAME_BYTES),
                       8);
    }
    join_ranges(inactive);
    return 0;
}

static int load_l2(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint8_t buf[4 * KIB];
    int ret = 0;

    for (size_t i = 0; i < s->inactive.count && ret == 0; i++) {
        uint64_t end = s->inactive.ranges[i][1], length;
        for (uint64_t at = s->inactive.ranges[i][0]; at < end && ret == 0; at += length) {
            length = u64_min(sizeof(buf), end - at);
            ret = blk_child_pread(qcow2_file(node), at, length, buf, err);
            for (uint64_t j = 0; ret == 0 && j < length; j += 8) {
                uint64_t l2 = be64_get(buf + j) & QCOW2_ENTRY_OFFSET;
                if (l2)
                    ret = qcow2_cluster_set_add(&s->inactive.l2, l2 >> s->cluster_bits, err);
            }
        }
    }
    return ret;
}

bool qcow2_inactive_is_loaded(const struct qcow2_state *s)
{
    unsigned checks = atomic_load(&s->overlap_checks);
    const unsigned either = QCOW2_OVERLAP_INACTIVE_L1 | QCOW2_OVERLAP_INACTIVE_L2;

    return !s->header.snapshot_count ||
           ((s->inactive.l1_known || !(checks & either)) &&
            (s->inactive.l2_known || !(checks & QCOW2_OVERLAP_INACTIVE_L2)));
}

int qcow2_inactive_load(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    bool needs_l2 = atomic_load(&s->overlap_checks) & QCOW2_OVERLAP_INACTIVE_L2;
    int ret = 0;

    if (node->flags & BLK_IN_CHECK || qcow2_inactive_is_loaded(s))
        return 0;
    if (!s->inactive.l1_known)
        ret = load_ranges(node, err);
    if (ret == 0 && needs_l2)
        ret = load_l2(node, err);
    if (ret < 0) {
        qcow2_drop_inactive(s);
        return ret;
    }
    s->inactive.l1_known = true;
    s->inactive.l2_known = needs_l2;
    return 0;
}

const char *qcow2_inactive_find(const struct qcow2_state *s, uint64_t offset, uint64_t bytes)
{
    const struct qcow2_inactive *inactive = &s->inactive;
    unsigned checks = atomic_load(&s->overlap_checks);
    size_t low = 0, high = inactive->count;

    if (!bytes)
        return NULL;
    while (checks & QCOW2_OVERLAP_INACTIVE_L1 && low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges_overlap(inactive->ranges[middle][0],
                           inactive->ranges[middle][1] - inactive->ranges[middle][0], offset,
                           bytes))
            return "the L1 table of a snapshot";
        if (inactive->ranges[middle][0] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (!(checks & QCOW2_OVERLAP_INACTIVE_L2))
        return NULL;
    uint64_t end = (offset + bytes - 1) >> s->cluster_bits;
    for (uint64_t cluster = offset >> s->cluster_bits; cluster <= end; cluster++)
        if (qcow2_cluster_set_contains(&inactive->l2, cluster))
            return "an L2 table of a snapshot";
    return NULL;
}
