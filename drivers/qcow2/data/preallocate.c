/* SPDX-License-Identifier: MIT */
/* Preallocation: unmapped clusters get a place before anybody writes them. */
#include "blockcore/base/units.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/frees.h"
#include "drivers/qcow2/tables/map.h"

/* A row of clusters without a place, in one slice. */
struct row {
    uint64_t guest, clusters, host;
};

static bool has_place(const struct qcow2_state *s, struct qcow2_entry entry)
{
    return entry.entry & QCOW2_ENTRY_COMPRESSED || qcow2_entry_has_host(s, entry);
}

/* [locked] The first such row at or behind row->guest, up to `end`, and a place for it. */
static int place_row(struct blk_node *node, uint64_t end, struct row *row, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    struct qcow2_table *slice;
    uint32_t index;
    int ret = qcow2_slice_write(node, row->guest, &slice, &index, err);
    if (ret < 0)
        return ret;

    row->clusters = 0;
    for (uint64_t at = row->guest; index < s->slice_entries && at < end; at += s->cluster_bytes) {
        bool placed = has_place(s, qcow2_entry_get(s, slice->data, index++));
        if (placed && row->clusters)
            break;
        if (placed)
            row->guest += s->cluster_bytes;
        else
            row->clusters++;
    }
    uint64_t bytes = row->clusters * s->cluster_bytes;
    if (!bytes)
        return 0;
    if (s->data_file) {
        row->host = row->guest;
        return 0;
    }
    if (qcow2_file(node)->driver->growable)
        return qcow2_alloc_end(node, bytes, &row->host, err);
    ret = qcow2_alloc_run(node, bytes, &row->host, &bytes, NULL, err);
    row->clusters = bytes / s->cluster_bytes;
    return ret;
}

/* Makes the place of the row exist and read as zeroes. */
static int zero_row(struct blk_node *node, const struct row *row, enum blk_prealloc prealloc,
                    struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    struct blk_node *file = qcow2_file(node);
    uint64_t end = row->host + row->clusters * s->cluster_bytes;
    bool sparse = prealloc == BLK_PREALLOC_METADATA;

    if (s->data_file)
        return 0;
    if (!file->driver->growable)
        return blk_child_write_zeroes(file, row->host, end - row->host,
                                      sparse ? BLK_REQ_MAY_UNMAP : 0, err);
    if (end <= blk_size(file))
        return 0;
    return blk_child_truncate(file, end, sparse ? BLK_PREALLOC_OFF : prealloc, false, err);
}

static int link_row(struct blk_node *node, const struct row *row, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    struct qcow2_table *slice;
    uint32_t index;
    int ret = qcow2_slice_write(node, row->guest, &slice, &index, err);

    for (uint64_t i = 0; i < row->clusters && ret == 0; i++) {
        struct qcow2_entry entry = qcow2_entry_get(s, slice->data, index + (uint32_t)i);
        entry.entry = (row->host + i * s->cluster_bytes) | QCOW2_ENTRY_COPIED;
        ret = qcow2_slice_set(node, slice, index + (uint32_t)i, entry, QCOW2_FREE_OTHER, err);
    }
    return ret;
}

int qcow2_preallocate(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      enum blk_prealloc prealloc, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t per_slice = (uint64_t)s->slice_entries << s->cluster_bits;
    uint64_t end = round_up(offset + bytes, s->cluster_bytes);
    int ret = 0;

    if (prealloc == BLK_PREALLOC_OFF)
        return 0;
    for (uint64_t at = round_down(offset, s->cluster_bytes); at < end && ret == 0;) {
        struct row row = { .guest = at };
        uint64_t slice_end = u64_min(end, round_down(at, per_slice) + per_slice);

        qcow2_lock(s);
        ret = place_row(node, slice_end, &row, err);
        qcow2_unlock(s);
        if (ret == 0 && row.clusters)
            ret = zero_row(node, &row, prealloc, err);
        if (ret == 0 && row.clusters) {
            QCOW2_LOCK_SCOPE(s);
            ret = link_row(node, &row, err);
        }
        if (ret == 0)
            ret = qcow2_commit_if_full(node, err);
        at = row.clusters ? row.guest + row.clusters * s->cluster_bytes : slice_end;
    }
    atomic_store(&s->preallocation, -1);
    return ret;
}
