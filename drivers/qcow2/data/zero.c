/* SPDX-License-Identifier: MIT */
/*
 * write_zeroes and discard: marking instead of writing.
 *
 * Both work on whole clusters (write_zeroes with extended L2: subclusters). Zeroes in a part of one
 * that holds no data and reads as zeroes around them make it all zeroes, as in QEMU; other parts
 * are left to the caller, which writes zeroes as data.
 */
#include <errno.h>

#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/frees.h"
#include "drivers/qcow2/tables/map.h"
#include "drivers/qcow2/tables/metadata.h"

struct zeroing {
    bool discard; /* else write_zeroes */
    bool clear;   /* no mapping is left at all: the backing file shows, or zeroes */
    bool unmap;   /* host clusters are given back */
    enum qcow2_free_why why;
};

/* The entry that makes subclusters [first, last] read as zeroes. -ENOTSUP: only data can. */
static int zeroed_entry(const struct qcow2_state *s, const struct zeroing *zeroing,
                        struct qcow2_entry old, unsigned first, unsigned last,
                        struct qcow2_entry *entry)
{
    bool whole = last - first + 1 == s->subclusters;
    bool compressed = old.entry & QCOW2_ENTRY_COMPRESSED;
    uint64_t host = compressed ? 0 : old.entry & (QCOW2_ENTRY_OFFSET | QCOW2_ENTRY_COPIED);
    uint64_t touched = (QCOW2_SUBCLUSTERS_ALL_ALLOCATED >> (s->subclusters - 1 - (last - first)));

    if (zeroing->clear) {
        *entry = (struct qcow2_entry){ 0, 0 };
        return 0;
    }
    if (s->extended) {
        if (compressed && !whole)
            return -ENOTSUP;
        touched <<= first;
        entry->bitmap = compressed ? 0 : old.bitmap;
        entry->bitmap = (entry->bitmap & ~touched) | touched << QCOW2_SUBCLUSTERS;
        whole = entry->bitmap == QCOW2_SUBCLUSTERS_ALL_ZERO;
        entry->entry = whole && zeroing->unmap ? 0 : host;
        return 0;
    }
    entry->bitmap = 0;
    entry->entry = (zeroing->unmap ? 0 : host) | QCOW2_ENTRY_ZERO;
    return 0;
}

/* Whether the entry can stay as it is: nothing shows through that is not zero. */
static bool nothing_to_do(struct blk_node *node, const struct zeroing *zeroing, uint64_t guest,
                          struct qcow2_entry old)
{
    const struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    bool unallocated = !old.entry && !old.bitmap;
    if (zeroing->clear)
        return unallocated;
    /* Zeroes that were asked for are recorded; what was discarded only has to read as zeroes. */
    return zeroing->discard && unallocated && !node->backing_name &&
           (!backing || guest >= blk_size(backing));
}

/* [locked] Zeroes [from, to) of the guest, which one slice maps. */
static int zero_in_slice(struct blk_node *node, const struct zeroing *zeroing, uint64_t from,
                         uint64_t to, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    struct qcow2_table *slice;
    uint32_t index;
    int ret = qcow2_slice_write(node, from, &slice, &index, err);

    for (uint64_t at = from; at < to && ret == 0; index++) {
        uint64_t cluster = round_down(at, s->cluster_bytes);
        uint64_t end = u64_min(cluster + s->cluster_bytes, to);
        struct qcow2_entry old = qcow2_entry_get(s, slice->data, index), entry;
        unsigned first = (unsigned)((at - cluster) / s->subcluster_bytes);
        unsigned last = (unsigned)((end - 1 - cluster) / s->subcluster_bytes);

        if (!nothing_to_do(node, zeroing, at, old)) {
            ret = zeroed_entry(s, zeroing, old, first, last, &entry);
            if (ret == 0 && (entry.entry != old.entry || entry.bitmap != old.bitmap))
                ret = qcow2_slice_set(node, slice, index, entry, zeroing->why, err);
        }
        at = end;
    }
    return ret;
}

/* How much of the range can be skipped because nothing is mapped there and nothing needs to be. */
static int bytes_to_skip(struct blk_node *node, const struct zeroing *zeroing, uint64_t offset,
                         uint64_t bytes, uint64_t *skip, struct blk_error *err)
{
    struct qcow2_mapping mapping;
    *skip = 0;
    if (!nothing_to_do(node, zeroing, offset, (struct qcow2_entry){ 0, 0 }))
        return 0;
    int ret = qcow2_map(node, offset, bytes, &mapping, err);
    if (ret == 0 && mapping.kind == QCOW2_UNALLOCATED)
        *skip = mapping.bytes;
    return ret;
}

/* With a data file: its bytes follow where they must, or may, before the mapping says so (C2). */
static int zero_data_file(struct blk_node *node, const struct zeroing *zeroing, uint64_t offset,
                          uint64_t bytes, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    struct blk_node *data = blk_child(node, BLK_ROLE_DATA);
    uint64_t size = blk_size(node);
    bytes = offset < size ? u64_min(bytes, size - offset) : 0;
    if (s->data_file_raw)
        return blk_child_write_zeroes(data, offset, bytes, zeroing->unmap ? BLK_REQ_MAY_UNMAP : 0,
                                      err);
    return s->data_file && zeroing->unmap ? blk_child_discard(data, offset, bytes, err) : 0;
}

/*
 * discard-no-unref: the clusters stay where they are, only the file may forget what is in them. At
 * once, while the range is held: later a write could be there. What happens to the data is no
 * matter, as whoever reads the old mapping after a crash gets what was discarded.
 */
static int empty_kept(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    int ret = 0;

    if (!s->pass_discard.request)
        return 0;
    while (bytes && ret == 0) {
        struct qcow2_mapping mapping;
        ret = qcow2_map(node, offset, bytes, &mapping, err);
        if (ret < 0)
            return ret;
        if (mapping.kind == QCOW2_DATA && mapping.copied) {
            ret = qcow2_check_target(node, mapping.host_offset, mapping.bytes, err);
            if (ret == 0)
                blk_child_discard(qcow2_file(node), mapping.host_offset, mapping.bytes, NULL);
        }
        offset += mapping.bytes;
        bytes -= mapping.bytes;
    }
    return ret;
}

/* Whether host clusters that a request would give back stay with the guest's. */
static bool keeps_clusters(const struct qcow2_state *s, const struct zeroing *zeroing)
{
    return s->discard_no_unref && zeroing->unmap && !zeroing->clear &&
           zeroing->why == QCOW2_FREE_REQUEST;
}

/* Zeroes what one slice maps. For whoever holds the range. */
static int zero_held(struct blk_node *node, struct zeroing zeroing, uint64_t offset, uint64_t bytes,
                     struct blk_error *err)
{
    ASSERT_RANGE_HELD(&node->ranges, offset, bytes, BLK_RANGE_EXCLUSIVE);
    struct qcow2_state *s = qcow2_state(node);

    bool keep = keeps_clusters(s, &zeroing);
    int ret = zero_data_file(node, &zeroing, offset, bytes, err);
    if (ret == 0 && keep && !s->data_file)
        ret = empty_kept(node, offset, bytes, err);
    if (ret < 0)
        return ret;
    /* Where the data file must agree with the guest, its clusters stay mapped. */
    zeroing.unmap = zeroing.unmap && !s->data_file_raw && !keep;
    QCOW2_LOCK_SCOPE(s);
    return zero_in_slice(node, &zeroing, offset, offset + bytes, err);
}

static int zero_marked_piece(struct blk_node *node, struct zeroing zeroing, uint64_t offset,
                             uint64_t bytes, struct blk_error *err)
{
    struct blk_range range;

    blk_range_take(&node->ranges, &range, offset, bytes, qcow2_state(node)->cluster_bytes);
    int ret = zero_held(node, zeroing, offset, bytes, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

/* Whole (sub)clusters. */
static int zero_units(struct blk_node *node, struct zeroing zeroing, uint64_t offset,
                      uint64_t bytes, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t per_slice = (uint64_t)s->slice_entries << s->cluster_bits;
    int ret = qcow2_check_poison(node, err);

    while (bytes && ret == 0) {
        uint64_t piece;
        ret = bytes_to_skip(node, &zeroing, offset, bytes, &piece, err);
        if (ret == 0 && !piece) {
            piece = u64_min(bytes, per_slice - offset % per_slice);
            ret = qcow2_commit_if_full(node, err);
            if (ret == 0)
                ret = zero_marked_piece(node, zeroing, offset, piece, err);
        }
        offset += piece;
        bytes -= piece;
    }
    return ret;
}

/* ---- parts of (sub)clusters ---- */

/* Whether the range reads as zeroes as far as all layers and their files know without reading. */
static int reads_as_zeroes(struct blk_node *node, uint64_t offset, uint64_t end, bool *zero,
                           struct blk_error *err)
{
    end = u64_min(end, blk_size(node));
    for (*zero = true; offset < end && *zero;) {
        struct blk_extent extent;
        int ret = blk_child_block_status_above(blk_layers(node, NULL), offset, end - offset,
                                               BLK_WANT_ZERO, &extent, err);
        if (ret < 0)
            return ret;
        *zero = extent.flags & BLK_EXT_ZERO;
        offset += extent.bytes;
    }
    return 0;
}

/*
 * Whether zeroes in [offset, end) make all of the subcluster at `start` zeroes, with no data of its
 * own that would have to be given up for it. The range is held.
 */
static int completes_zeroes(struct blk_node *node, uint64_t start, uint64_t offset, uint64_t end,
                            bool *complete, struct blk_error *err)
{
    ASSERT_RANGE_HELD(&node->ranges, start, qcow2_state(node)->subcluster_bytes,
                      BLK_RANGE_EXCLUSIVE);
    uint64_t subcluster = qcow2_state(node)->subcluster_bytes;
    struct qcow2_mapping mapping;

    *complete = false;
    int ret = qcow2_map(node, start, subcluster, &mapping, err);
    if (ret < 0 || mapping.kind == QCOW2_DATA || mapping.kind == QCOW2_COMPRESSED)
        return ret;
    ret = reads_as_zeroes(node, start, offset, complete, err);
    if (ret == 0 && *complete)
        ret = reads_as_zeroes(node, end, start + subcluster, complete, err);
    return ret;
}

/* Zeroes a part of one subcluster. -ENOTSUP: data must be written. */
static int zero_part(struct blk_node *node, struct zeroing zeroing, uint64_t offset, uint64_t end,
                     struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t start = round_down(offset, s->subcluster_bytes);
    struct blk_range range;
    bool complete;

    int ret = qcow2_check_poison(node, err);
    if (ret == 0)
        ret = qcow2_commit_if_full(node, err);
    if (ret < 0)
        return ret;
    blk_range_take(&node->ranges, &range, start, s->subcluster_bytes, s->cluster_bytes);
    ret = completes_zeroes(node, start, offset, end, &complete, err);
    if (ret == 0 && !complete)
        ret = -ENOTSUP;
    if (ret == 0)
        ret = zero_held(node, zeroing, start, s->subcluster_bytes, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

/* Version 2 cannot mark zeroes: what is zero already stays. */
static int zero_unmarked(struct blk_node *node, uint64_t offset, uint64_t bytes,
                         struct blk_error *err)
{
    struct blk_range range;
    bool zero;

    blk_range_take_read(&node->ranges, &range, offset, bytes, 1);
    int ret = qcow2_is_known_zero(node, offset, bytes, &zero, err);
    blk_range_release(&node->ranges, &range);
    return ret == 0 && !zero ? -ENOTSUP : ret;
}

/* ---- the operations ---- */

int qcow2_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                       struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    /* The last (sub)cluster may reach past the end of the image. */
    uint64_t end = offset + bytes == blk_size(node) ? round_up(offset + bytes, s->subcluster_bytes)
                                                    : offset + bytes;
    struct zeroing zeroing = { .unmap = flags & BLK_REQ_MAY_UNMAP };

    if (s->header.version < 3)
        return zero_unmarked(node, offset, bytes, err);
    if (offset % s->subcluster_bytes == 0 && end % s->subcluster_bytes == 0)
        return zero_units(node, zeroing, offset, end - offset, err);
    if (round_down(offset, s->subcluster_bytes) != round_down(end - 1, s->subcluster_bytes))
        return -ENOTSUP; /* blockcore cuts at zero_alignment: this does not happen */
    return zero_part(node, zeroing, offset, end, err);
}

int qcow2_zero_behind(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    return zero_units(node, (struct zeroing){ .why = QCOW2_FREE_OTHER }, offset, bytes, err);
}

int qcow2_unmap(struct blk_node *node, uint64_t offset, uint64_t bytes, enum qcow2_free_why why,
                struct blk_error *err)
{
    struct zeroing zeroing = { .discard = true, .clear = true, .unmap = true, .why = why };
    return zero_units(node, zeroing, offset, bytes, err);
}

int qcow2_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t end = offset + bytes;
    if (end == blk_size(node))
        end = round_up(end, s->cluster_bytes);
    uint64_t start = round_up(offset, s->cluster_bytes);
    end = round_down(end, s->cluster_bytes);
    if (start >= end)
        return 0;
    if (s->header.version < 3) {
        /* No zero clusters here: what is not mapped shows the backing file, if there is one. */
        if (node->backing_name || blk_child(node, BLK_ROLE_BACKING))
            return 0;
        return qcow2_unmap(node, start, end - start, QCOW2_FREE_REQUEST, err);
    }
    return zero_units(node, (struct zeroing){ .discard = true, .unmap = true }, start, end - start,
                      err);
}
