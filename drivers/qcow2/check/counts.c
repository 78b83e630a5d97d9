/* SPDX-License-Identifier: MIT */
/*
 * Compares the references found with the refcounts that the image has: they are brought into the
 * form of a refcount block, so that equal blocks are found by comparing bytes.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/refcount.h"

/* One cluster whose count is not the number of references to it. */
static void report_difference(struct qcow2_check *check, uint64_t cluster, uint64_t count,
                              uint64_t refs)
{
    bool is_low = count < refs;

    check->counts_differ = true;
    check->counts_low |= is_low;
    if (check->announce && (is_low ? !check->may_raise : check->incomplete))
        return;
    if (check->announce)
        qcow2_check_note(check,
                         "Repairing cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                         cluster, count, refs);
    else if (is_low)
        qcow2_check_corruption(check, "cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                               cluster, count, refs);
    else
        qcow2_check_leak(check, 1,
                         "Leaked cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                         cluster, count, refs);
}

int qcow2_check_stored_count(const struct qcow2_check *check, uint64_t cluster, uint64_t *count,
                             struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(check->node);

    *count = qcow2_check_refs(check, cluster);
    if (check->broken_counts || !check->counts_differ)
        return 0;
    qcow2_lock(s);
    int ret = qcow2_refcount(check->node, cluster, count, err);
    qcow2_unlock(s);
    return ret;
}

/*
 * Compares the counts in `block` (NULL: all zero) with the references to `entries` clusters from
 * `first` on. `wanted` has room for a block.
 */
static void compare_block(struct qcow2_check *check, const uint8_t *block, uint64_t first,
                          uint64_t entries, uint8_t *wanted)
{
    if (!block && qcow2_check_is_unused(check, first, entries))
        return;
    if (block) {
        qcow2_check_write_counts(check, first, entries, wanted);
        if (memcmp(wanted, block, qcow2_counts_bytes(check->order, entries)) == 0)
            return;
    }
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t count = block ? qcow2_count_get(block, check->order, i) : 0;
        uint64_t refs = qcow2_check_refs(check, first + i);
        if (count != refs)
            report_difference(check, first + i, count, refs);
    }
}

/* The end of the last cluster that is counted or referred to. */
static void note_end(struct qcow2_check *check, const uint8_t *block, uint64_t first,
                     uint64_t entries)
{
    uint64_t cluster_bytes = qcow2_state(check->node)->cluster_bytes;

    if (!block && qcow2_check_is_unused(check, first, entries))
        return;
    for (uint64_t i = entries; i-- > 0;) {
        if (qcow2_check_refs(check, first + i) ||
            (block && qcow2_count_get(block, check->order, i))) {
            check->result->image_end_offset = (first + i + 1) * cluster_bytes;
            return;
        }
    }
}

int qcow2_check_compare(struct qcow2_check *check, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t table_entries = (uint64_t)s->header.reftable_clusters * s->cluster_bytes / 8;
    BLK_AUTOFREE uint64_t *table = NULL;
    BLK_AUTOFREE uint8_t *buf = malloc(s->cluster_bytes);
    BLK_AUTOFREE uint8_t *wanted = calloc(1, s->cluster_bytes);
    int ret = 0;
    if (!buf || !wanted)
        return blk_fail(err, ENOMEM, "checking '%s'", check->node->name);

    /* Broken counts have been reported, and mean nothing. */
    if (!check->broken_counts)
        ret = qcow2_read_table(check->node, &qcow2_reftable_kind, s->header.reftable_offset,
                               table_entries, &table, err);
    for (uint64_t first = 0; first < check->clusters && ret == 0; first += s->refblock_entries) {
        uint64_t index = first / s->refblock_entries;
        uint64_t entries = u64_min(s->refblock_entries, check->clusters - first);
        uint64_t offset = table && index < table_entries ? table[index] & QCOW2_REFTABLE_OFFSET : 0;
        if (offset)
            ret = blk_child_pread(qcow2_file(check->node), offset, s->cluster_bytes, buf, err);
        if (ret < 0)
            break;
        if (table)
            compare_block(check, offset ? buf : NULL, first, entries, wanted);
        note_end(check, offset ? buf : NULL, first, entries);
    }
    return ret;
}
