/* SPDX-License-Identifier: MIT */
/*
 * Writing guest data.
 *
 * A request is cut into runs of clusters that are treated alike:
 *
 *   in place   the host clusters belong to these guest clusters alone, and all touched
 *              (sub)clusters hold data: one write, under the range held shared;
 *   kept       the host clusters are there, but some read as zeroes or partly as the backing file;
 *   new        there are none, or they are shared or compressed: a run of free clusters is taken.
 *
 * For the last two the range is held in whole clusters, against all but readers: (1) under the lock
 * the place is chosen (run.c); (2) without it data and whatever of the (sub)clusters' old content surrounds
 * it are written there; (3) when no reader is there any more, the mapping is changed under the
 * lock. So a mapping never shows data that has not been written (C2), a failure before (3) leaves
 * what was there, and a cluster that is left behind is not being read when it is freed (C3).
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/data/run.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/frees.h"
#include "drivers/qcow2/tables/map.h"
#include "drivers/qcow2/tables/metadata.h"
#include "drivers/qcow2/tables/refcount.h"

/* Up to here head, data and tail are put together and written at once. */
#define MERGE_BYTES (1 * MIB)

/* What is written: bytes from memory, bytes of another file, or zeroes. */
struct payload {
    const uint8_t *buf;
    struct blk_copy_from from;
};

static void advance_payload(struct payload *payload, uint64_t bytes)
{
    if (payload->buf)
        payload->buf += bytes;
    payload->from.offset += bytes;
}

static int put_payload(struct blk_node *node, uint64_t host, uint64_t bytes,
                       const struct payload *payload, struct blk_error *err)
{
    struct blk_node *data = qcow2_data(node);
    blk_event(qcow2_file(node), BLK_EVENT_WRITE_AIO);
    if (payload->buf)
        return blk_child_pwrite(data, host, bytes, payload->buf, 0, err);
    if (payload->from.node)
        return blk_child_copy_range(data, host, &payload->from, bytes, err);
    return blk_child_write_zeroes(data, host, bytes, 0, err);
}

/* ---- in place ---- */

static bool is_in_place(const struct qcow2_mapping *mapping)
{
    return mapping->kind == QCOW2_DATA && mapping->copied;
}

/*
 * Whether what follows the mapping lies right behind it in the file but reads as zeroes or as the
 * backing file: both are written at once then, as "kept". The range is held.
 */
static int goes_on_kept(struct blk_node *node, uint64_t offset, uint64_t bytes,
                        const struct qcow2_mapping *mapping, bool *kept, struct blk_error *err)
{
    ASSERT_RANGE_HELD(&node->ranges, offset, bytes, BLK_RANGE_SHARED);
    struct qcow2_mapping next;

    *kept = false;
    if (mapping->bytes == bytes)
        return 0;
    int ret = qcow2_map(node, offset + mapping->bytes, bytes - mapping->bytes, &next, err);
    *kept = ret == 0 && next.copied && next.host_offset == mapping->host_offset + mapping->bytes &&
            (next.kind == QCOW2_ZERO_HOST || next.kind == QCOW2_UNALLOCATED_HOST);
    return ret;
}

/* write_in_place() itself. The range is held shared. */
static int write_in_place_held(struct blk_node *node, uint64_t offset, uint64_t bytes,
                               const struct payload *payload, uint64_t *done, struct blk_error *err)
{
    ASSERT_RANGE_HELD(&node->ranges, offset, bytes, BLK_RANGE_SHARED);
    struct qcow2_mapping mapping;
    bool kept;
    int ret = qcow2_map(node, offset, bytes, &mapping, err);
    if (ret < 0 || !is_in_place(&mapping))
        return ret;
    ret = goes_on_kept(node, offset, bytes, &mapping, &kept, err);
    if (ret < 0 || kept)
        return ret;

    ret = qcow2_check_target(node, mapping.host_offset, mapping.bytes, err);
    if (ret < 0)
        return ret;
    *done = mapping.bytes;
    return put_payload(node, mapping.host_offset, mapping.bytes, payload, err);
}

/*
 * Writes what can be written in place from `offset` on; *done is 0 when nothing can, or more. The
 * mapping is looked up once: while the range is held nobody changes it. Where it says that another
 * range has to be held, it is looked up again under that.
 */
static int write_in_place(struct blk_node *node, uint64_t offset, uint64_t bytes,
                          const struct payload *payload, uint64_t *done, struct blk_error *err)
{
    struct blk_range range;
    *done = 0;
    blk_range_take_shared(&node->ranges, &range, offset, bytes, 1);
    int ret = write_in_place_held(node, offset, bytes, payload, done, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

/* ---- (2) writing there ---- */

static uint64_t to_host(const struct qcow2_run *run, uint64_t guest)
{
    return run->host + (guest - run->guest);
}

/* Brings the old content of [from, to) over. */
static int fill(struct blk_node *node, const struct qcow2_run *run, uint64_t from, uint64_t to,
                struct blk_error *err)
{
    if (from == to)
        return 0;
    BLK_AUTOFREE uint8_t *buf = blk_buffer_alloc(to - from);
    if (!buf)
        return blk_fail(err, ENOMEM, "copying a cluster of '%s'", node->name);

    blk_event(qcow2_file(node), BLK_EVENT_COW_READ);
    int ret = qcow2_read_held(node, from, to - from, buf, err);
    if (ret < 0 || (run->unwritten && bytes_are_zero(buf, to - from)))
        return ret;
    blk_event(qcow2_file(node), BLK_EVENT_COW_WRITE);
    return blk_child_pwrite(qcow2_data(node), to_host(run, from), to - from, buf, 0, err);
}

/* Head, data and tail in one write. */
static int write_merged(struct blk_node *node, const struct qcow2_run *run,
                        const struct payload *payload, struct blk_error *err)
{
    uint64_t head = run->from - run->fill_from, tail = run->fill_to - run->to;
    uint64_t total = run->fill_to - run->fill_from;
    BLK_AUTOFREE uint8_t *buf = blk_buffer_alloc(total);
    if (!buf)
        return blk_fail(err, ENOMEM, "copying a cluster of '%s'", node->name);

    blk_event(qcow2_file(node), BLK_EVENT_COW_READ);
    int ret = qcow2_read_held(node, run->fill_from, head, buf, err);
    if (ret == 0)
        ret = qcow2_read_held(node, run->to, tail, buf + total - tail, err);
    if (ret < 0)
        return ret;
    memcpy(buf + head, payload->buf, run->to - run->from);

    /* What is zero on untouched ground need not be written. */
    uint64_t start = run->unwritten && bytes_are_zero(buf, head) ? head : 0;
    uint64_t end =
        run->unwritten && bytes_are_zero(buf + total - tail, tail) ? total - tail : total;
    blk_event(qcow2_file(node), BLK_EVENT_WRITE_AIO);
    return blk_child_pwrite(qcow2_data(node), to_host(run, run->fill_from + start), end - start,
                            buf + start, 0, err);
}

static int write_run(struct blk_node *node, struct qcow2_run *run, const struct payload *payload,
                     struct blk_error *err)
{
    bool has_edges = run->fill_from < run->from || run->to < run->fill_to;
    bool edges_zero = false;
    int ret = 0;

    if (has_edges && run->unwritten) {
        ret =
            qcow2_is_known_zero(node, run->fill_from, run->from - run->fill_from, &edges_zero, err);
        if (ret == 0 && edges_zero)
            ret = qcow2_is_known_zero(node, run->to, run->fill_to - run->to, &edges_zero, err);
        if (ret < 0)
            return ret;
    }
    if (!has_edges || edges_zero)
        return put_payload(node, to_host(run, run->from), run->to - run->from, payload, err);
    if (payload->buf && run->fill_to - run->fill_from <= MERGE_BYTES)
        return write_merged(node, run, payload, err);

    ret = put_payload(node, to_host(run, run->from), run->to - run->from, payload, err);
    if (ret == 0)
        ret = fill(node, run, run->fill_from, run->from, err);
    if (ret == 0)
        ret = fill(node, run, run->to, run->fill_to, err);
    return ret;
}

/* ---- (3) changing the mapping ---- */

static struct qcow2_entry linked(const struct qcow2_state *s, const struct qcow2_run *run,
                                 struct qcow2_entry old, uint64_t cluster)
{
    uint64_t guest = run->guest + cluster * s->cluster_bytes;
    struct qcow2_entry entry = {
        .entry = (run->host + cluster * s->cluster_bytes) | QCOW2_ENTRY_COPIED,
    };
    if (!s->extended)
        return entry;

    uint64_t from = u64_max(run->fill_from, guest);
    uint64_t to = u64_min(run->fill_to, guest + s->cluster_bytes);
    uint64_t written = qcow2_subclusters_between(s, from, to);
    if (!(old.entry & QCOW2_ENTRY_COMPRESSED))
        entry.bitmap = old.bitmap;
    entry.bitmap = (entry.bitmap & ~(written << QCOW2_SUBCLUSTERS)) | written;
    return entry;
}

static int link_run(struct blk_node *node, const struct qcow2_run *run, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    ASSERT_RANGE_HELD(&node->ranges, run->guest, run->clusters * s->cluster_bytes,
                      BLK_RANGE_EXCLUSIVE);
    struct qcow2_table *slice;
    uint32_t index;
    int ret = qcow2_slice_write(node, run->guest, &slice, &index, err);

    for (uint64_t i = 0; i < run->clusters && ret == 0; i++) {
        struct qcow2_entry old = qcow2_entry_get(s, slice->data, index + (uint32_t)i);
        ret = qcow2_slice_set(node, slice, index + (uint32_t)i, linked(s, run, old, i),
                              QCOW2_FREE_OTHER, err);
    }
    return ret;
}

static int write_held(struct blk_node *node, struct qcow2_run *run, struct blk_range *range,
                      const struct payload *payload, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_RANGE_HELD(&node->ranges, run->from, run->to - run->from, BLK_RANGE_UPDATE);
    qcow2_lock(s);
    int ret = qcow2_choose_run(node, run, err);
    qcow2_unlock(s);
    if (ret < 0)
        return ret;

    ret = write_run(node, run, payload, err);
    if (ret == 0 && run->way != QCOW2_WRITE_IN_PLACE) {
        blk_range_upgrade(&node->ranges, range);
        QCOW2_LOCK_SCOPE(s);
        ret = link_run(node, run, err);
        qcow2_end_placed(node, run);
    } else if (ret < 0 && run->way == QCOW2_WRITE_NEW) {
        /* Nothing points to what was taken: it can go back at once. */
        QCOW2_LOCK_SCOPE(s);
        qcow2_end_placed(node, run);
        qcow2_refcount_decrease(node, run->host, run->clusters * s->cluster_bytes, NULL);
    }
    return ret;
}

/* Writes the first run of clusters at `offset` that cannot be written in place. */
static int write_allocating(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            const struct payload *payload, uint64_t *done, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t per_slice = (uint64_t)s->slice_entries << s->cluster_bits;
    bytes = u64_min(bytes, per_slice - offset % per_slice);

    int ret = qcow2_commit_if_full(node, err);
    if (ret < 0)
        return ret;
    struct qcow2_run run = {
        .guest = round_down(offset, s->cluster_bytes),
        .from = offset,
        .to = offset + bytes,
    };
    struct blk_range range;
    blk_range_take_update(&node->ranges, &range, offset, bytes, s->cluster_bytes);
    ret = write_held(node, &run, &range, payload, err);
    blk_range_release(&node->ranges, &range);
    *done = run.to - run.from;
    return ret;
}

static int write_payload(struct blk_node *node, uint64_t offset, uint64_t bytes,
                         struct payload payload, struct blk_error *err)
{
    int ret = qcow2_check_poison(node, err);
    while (bytes && ret == 0) {
        uint64_t done;
        ret = write_in_place(node, offset, bytes, &payload, &done, err);
        if (ret == 0 && !done)
            ret = write_allocating(node, offset, bytes, &payload, &done, err);
        if (ret < 0)
            break;
        advance_payload(&payload, done);
        offset += done;
        bytes -= done;
    }
    return ret;
}

int qcow2_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                 unsigned flags, struct blk_error *err)
{
    (void)flags; /* supports_fua is not set */
    return write_payload(node, offset, bytes, (struct payload){ .buf = buf }, err);
}

int qcow2_write_zero_data(struct blk_node *node, uint64_t offset, uint64_t bytes,
                          struct blk_error *err)
{
    return write_payload(node, offset, bytes, (struct payload){ .buf = NULL }, err);
}

int qcow2_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                     uint64_t bytes, struct blk_error *err)
{
    return write_payload(node, offset, bytes, (struct payload){ .from = *from }, err);
}

bool qcow2_can_share(struct blk_node *node, const struct blk_node *source)
{
    return qcow2_state(node)->cluster_bytes % BLK_SHARE_BYTES == 0 &&
           blk_can_share(qcow2_data(node), source);
}
