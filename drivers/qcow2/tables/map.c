/* SPDX-License-Identifier: MIT */
/*
 * Where guest data is: L1 -> L2 slice -> entry -> state of a cluster or subcluster.
 *
 * Lookups share the lock; only a slice that is not in memory makes one take it for writing. Entries
 * are judged when they are used: an impossible one is a corruption and never followed.
 */
#include "drivers/qcow2/tables/map.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "drivers/qcow2/header/corrupt.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/frees.h"
#include "drivers/qcow2/tables/l1.h"
#include "drivers/qcow2/tables/metadata.h"
#include "drivers/qcow2/tables/refcount.h"

/* ---- entries ---- */

struct qcow2_entry qcow2_entry_get(const struct qcow2_state *s, const uint8_t *slice,
                                   uint32_t index)
{
    const uint8_t *at = slice + (size_t)index * s->l2_entry_bytes;
    return (struct qcow2_entry){ be64_get(at), s->extended ? be64_get(at + 8) : 0 };
}

uint32_t qcow2_entries_in_row(const uint8_t *entries, uint32_t most, uint64_t step)
{
    uint64_t first = be64_get(entries);
    uint32_t i = 1;

    /* Eight at a time, without a branch between them, is what compilers vectorise. */
    for (; i + 8 <= most; i += 8) {
        uint64_t differences = 0;
        for (uint32_t j = i; j < i + 8; j++)
            differences |= be64_get(entries + (uint64_t)j * 8) ^ (first + j * step);
        if (differences)
            break;
    }
    while (i < most && be64_get(entries + (uint64_t)i * 8) == first + i * step)
        i++;
    return i;
}

static void entry_put(const struct qcow2_state *s, uint8_t *slice, uint32_t index,
                      struct qcow2_entry entry)
{
    uint8_t *at = slice + (size_t)index * s->l2_entry_bytes;
    be64_put(at, entry.entry);
    if (s->extended)
        be64_put(at + 8, entry.bitmap);
}

/*
 * With a data file, guest offset 0 is at host offset 0: there only COPIED tells that it is
 * allocated.
 */
bool qcow2_entry_has_host(const struct qcow2_state *s, struct qcow2_entry entry)
{
    return entry.entry & QCOW2_ENTRY_OFFSET || (s->data_file && entry.entry & QCOW2_ENTRY_COPIED);
}

static int extended_kind(const struct qcow2_state *s, struct qcow2_entry entry, unsigned subcluster,
                         enum qcow2_kind *kind, const char **why)
{
    bool allocated = entry.bitmap >> subcluster & 1;
    bool zero = entry.bitmap >> (subcluster + QCOW2_SUBCLUSTERS) & 1;
    bool host = qcow2_entry_has_host(s, entry);

    if (allocated && (zero || !host)) {
        *why = zero ? "a subcluster that is allocated and zero at once"
                    : "an allocated subcluster in no cluster";
        return -EIO;
    }
    if (allocated)
        *kind = QCOW2_DATA;
    else if (zero)
        *kind = host ? QCOW2_ZERO_HOST : QCOW2_ZERO;
    else
        *kind = host ? QCOW2_UNALLOCATED_HOST : QCOW2_UNALLOCATED;
    return 0;
}

int qcow2_entry_kind(const struct qcow2_state *s, struct qcow2_entry entry, unsigned subcluster,
                     enum qcow2_kind *kind, const char **why)
{
    if (entry.entry & QCOW2_ENTRY_COMPRESSED) {
        *kind = QCOW2_COMPRESSED;
        *why = "a compressed cluster in an image with an external data file";
        return s->data_file ? -EIO : 0;
    }
    if ((entry.entry & QCOW2_ENTRY_OFFSET) & (s->cluster_bytes - 1)) {
        *why = "a cluster at an unaligned offset";
        return -EIO;
    }
    if (s->extended)
        return extended_kind(s, entry, subcluster, kind, why);

    bool host = qcow2_entry_has_host(s, entry);
    if (entry.entry & QCOW2_ENTRY_ZERO) {
        *kind = host ? QCOW2_ZERO_HOST : QCOW2_ZERO;
        *why = "a zero cluster, which version 2 does not have";
        return s->header.version < 3 ? -EIO : 0;
    }
    *kind = host ? QCOW2_DATA : QCOW2_UNALLOCATED;
    return 0;
}

/* ---- tables ---- */

static uint64_t l1_index(const struct qcow2_state *s, uint64_t offset)
{
    return (offset >> s->cluster_bits) / s->l2_entries;
}

/* Index of the guest offset's entry in its slice. */
static uint32_t index_in_slice(const struct qcow2_state *s, uint64_t offset)
{
    return (uint32_t)((offset >> s->cluster_bits) % s->l2_entries % s->slice_entries);
}

/* Host offset of the slice that maps the guest offset, in the L2 table at l2_offset. */
static uint64_t slice_offset(const struct qcow2_state *s, uint64_t l2_offset, uint64_t offset)
{
    uint64_t in_table = (offset >> s->cluster_bits) % s->l2_entries;
    return l2_offset + in_table / s->slice_entries * s->l2_cache.entry_bytes;
}

static int bad_l1_entry(struct blk_node *node, uint64_t offset, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t index = l1_index(s, offset);
    return qcow2_corrupt(node, err, "L1 entry %" PRIu64 " is 0x%" PRIx64, index, s->l1[index]);
}

/* [locked] As qcow2_slice_write(), to read: *slice is NULL where there is no L2 table. */
static int slice_read(struct blk_node *node, uint64_t offset, struct qcow2_table **slice,
                      struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    *slice = NULL;
    int ret = qcow2_l1_load(node, err);
    if (ret < 0)
        return ret;

    uint64_t at = l1_index(s, offset);
    uint64_t table = at < s->l1_entries ? s->l1[at] & QCOW2_ENTRY_OFFSET : 0;
    if (!table)
        return 0;
    if (table & (s->cluster_bytes - 1))
        return bad_l1_entry(node, offset, err);
    return qcow2_cache_get(node, &s->l2_cache, slice_offset(s, table, offset), slice, err);
}

/* Gives the L1 entry an L2 table of its own: an empty one, or a copy of the shared one at `old`. */
static int make_table(struct blk_node *node, uint64_t index, uint64_t old, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t table;
    int ret = qcow2_alloc(node, s->cluster_bytes, &table, err);
    if (ret < 0)
        return ret;

    ret = qcow2_take_room(node, table, s->cluster_bytes, err);
    for (uint64_t at = 0; at < s->cluster_bytes && ret == 0; at += s->l2_cache.entry_bytes) {
        struct qcow2_table *from = NULL, *to;
        if (old)
            ret = qcow2_cache_get(node, &s->l2_cache, old + at, &from, err);
        if (ret == 0)
            ret = qcow2_cache_new(&s->l2_cache, table + at, &to, err);
        if (ret == 0 && from)
            memcpy(to->data, from->data, s->l2_cache.entry_bytes);
    }
    if (ret == 0)
        ret = qcow2_metadata_add(s, table, err);
    if (ret < 0) {
        qcow2_cache_drop(&s->l2_cache, table, s->cluster_bytes);
        qcow2_refcount_decrease(node, table, s->cluster_bytes, NULL);
        return ret;
    }
    if (old) {
        qcow2_cache_drop(&s->l2_cache, old, s->cluster_bytes);
        qcow2_metadata_remove(s, old);
        qcow2_free_later(node, old, s->cluster_bytes, QCOW2_FREE_OTHER);
    }
    qcow2_l1_set(node, (uint32_t)index, table | QCOW2_ENTRY_COPIED);
    return 0;
}

int qcow2_slice_write(struct blk_node *node, uint64_t offset, struct qcow2_table **slice,
                      uint32_t *index, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    int ret = qcow2_l1_load(node, err);
    if (ret == 0)
        ret = qcow2_metadata_load(node, err);
    if (ret < 0)
        return ret;

    uint64_t at = l1_index(s, offset);
    if (at >= s->l1_entries)
        return blk_fail_why(err, EIO, "the L1 table does not reach that far",
                            "mapping offset %" PRIu64 " of '%s'", offset, node->name);
    uint64_t entry = s->l1[at];
    uint64_t table = entry & QCOW2_ENTRY_OFFSET;
    if (table & (s->cluster_bytes - 1))
        return bad_l1_entry(node, offset, err);
    if (!table || !(entry & QCOW2_ENTRY_COPIED)) {
        ret = make_table(node, at, table, err);
        if (ret < 0)
            return ret;
    }
    *index = index_in_slice(s, offset);
    return slice_read(node, offset, slice, err);
}

void qcow2_entry_free(struct blk_node *node, struct qcow2_entry entry, enum qcow2_free_why why)
{
    const struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    if (s->data_file)
        return;
    if (entry.entry & QCOW2_ENTRY_COMPRESSED)
        qcow2_free_later(node, qcow2_compressed_offset(entry.entry, s->cluster_bits),
                         qcow2_compressed_bytes(entry.entry, s->cluster_bits), why);
    else if (entry.entry & QCOW2_ENTRY_OFFSET)
        qcow2_free_later(node, entry.entry & QCOW2_ENTRY_OFFSET, s->cluster_bytes, why);
}

int qcow2_slice_set(struct blk_node *node, struct qcow2_table *slice, uint32_t index,
                    struct qcow2_entry entry, enum qcow2_free_why why, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    struct qcow2_entry old = qcow2_entry_get(s, slice->data, index);
    enum qcow2_kind kind;
    const char *problem;
    if (qcow2_entry_kind(s, old, 0, &kind, &problem) < 0)
        return qcow2_corrupt(node, err, "an L2 table describes %s", problem);

    bool same_host = !((old.entry | entry.entry) & QCOW2_ENTRY_COMPRESSED) &&
                     !((old.entry ^ entry.entry) & QCOW2_ENTRY_OFFSET);
    if (!same_host)
        qcow2_entry_free(node, old, why);
    entry_put(s, slice->data, index, entry);
    qcow2_cache_dirty(&s->l2_cache, slice, index * s->l2_entry_bytes, s->l2_entry_bytes);
    return 0;
}

/* ---- lookup ---- */

/* State of the (sub)cluster that has the guest offset. -EIO: impossible, *problem says what. */
static int map_one(const struct qcow2_state *s, const struct qcow2_table *slice, uint32_t index,
                   uint64_t offset, struct qcow2_mapping *mapping, const char **problem)
{
    struct qcow2_entry entry = qcow2_entry_get(s, slice->data, index);
    uint64_t in_cluster = offset & (s->cluster_bytes - 1);

    *mapping = (struct qcow2_mapping){ .copied = entry.entry & QCOW2_ENTRY_COPIED };
    if (qcow2_entry_kind(s, entry, (unsigned)(in_cluster / s->subcluster_bytes), &mapping->kind,
                         problem) < 0)
        return -EIO;
    if (mapping->kind == QCOW2_COMPRESSED) {
        mapping->bytes = s->cluster_bytes - in_cluster;
        mapping->host_offset = qcow2_compressed_offset(entry.entry, s->cluster_bits);
        mapping->compressed_bytes = qcow2_compressed_bytes(entry.entry, s->cluster_bits);
        return 0;
    }
    mapping->bytes = s->subcluster_bytes - in_cluster % s->subcluster_bytes;
    if (mapping->kind == QCOW2_UNALLOCATED || mapping->kind == QCOW2_ZERO)
        return 0;
    mapping->host_offset = (entry.entry & QCOW2_ENTRY_OFFSET) + in_cluster;
    *problem = "another offset of the data file";
    return s->data_file && mapping->host_offset != offset ? -EIO : 0;
}

/* Whether `next` continues `first`, which is `bytes` long so far. */
static bool continues(const struct qcow2_mapping *first, const struct qcow2_mapping *next)
{
    if (next->kind != first->kind || next->copied != first->copied ||
        next->kind == QCOW2_COMPRESSED)
        return false;
    return next->kind == QCOW2_UNALLOCATED || next->kind == QCOW2_ZERO ||
           next->host_offset == first->host_offset + first->bytes;
}

/*
 * Lengthens the mapping of an entry by those that follow it and are the same but for the next
 * cluster: they need no decoding. `bytes` is how far to look.
 */
static void lengthen_in_row(const struct qcow2_state *s, const struct qcow2_table *slice,
                            uint32_t index, uint64_t bytes, struct qcow2_mapping *mapping)
{
    uint64_t most = u64_min(s->slice_entries - index, div_round_up(bytes, s->cluster_bytes) + 1);
    uint64_t step = 0;

    if (s->extended || mapping->kind == QCOW2_COMPRESSED)
        return;
    if (mapping->kind != QCOW2_UNALLOCATED && mapping->kind != QCOW2_ZERO) {
        step = s->cluster_bytes;
        most = u64_min(most, (QCOW2_MAX_HOST_OFFSET - mapping->host_offset) >> s->cluster_bits);
    }
    if (most > 1)
        mapping->bytes +=
            (uint64_t)(qcow2_entries_in_row(slice->data + (size_t)index * s->l2_entry_bytes,
                                            (uint32_t)most, step) -
                       1)
            << s->cluster_bits;
}

/* The uniform range at `offset` within its slice. */
static int map_in_slice(struct blk_node *node, const struct qcow2_table *slice, uint64_t offset,
                        uint64_t bytes, struct qcow2_mapping *mapping, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t start = round_down(offset, s->cluster_bytes);
    uint32_t index = index_in_slice(s, offset);
    const char *problem;
    if (map_one(s, slice, index, offset, mapping, &problem) < 0) {
        mapping->bytes = u64_min(s->subcluster_bytes - offset % s->subcluster_bytes, bytes);
        return qcow2_corrupt(node, err, "guest offset %" PRIu64 " is mapped to %s", offset,
                             problem);
    }

    if (mapping->bytes < bytes)
        lengthen_in_row(s, slice, index, bytes, mapping);
    while (mapping->bytes < bytes) {
        uint64_t at = offset + mapping->bytes;
        uint64_t further = index + (at - start) / s->cluster_bytes;
        struct qcow2_mapping next;
        /* A bad entry further on is for the request that starts there to report. */
        if (further >= s->slice_entries ||
            map_one(s, slice, (uint32_t)further, at, &next, &problem) < 0 ||
            !continues(mapping, &next))
            break;
        mapping->bytes += next.bytes;
    }
    mapping->bytes = u64_min(mapping->bytes, bytes);
    return 0;
}

/*
 * L1 entries that one lookup goes through at most. Above a backing file of short extents the same
 * gap is looked up for each of them.
 */
#define MAX_L1_RUN 512

/* Where there is no L2 table, nor in the L1 entries that follow. */
static void map_nothing(const struct qcow2_state *s, uint64_t offset, uint64_t bytes,
                        struct qcow2_mapping *mapping)
{
    uint64_t per_table = (uint64_t)s->l2_entries << s->cluster_bits;
    uint64_t length = per_table - offset % per_table;
    uint64_t first = l1_index(s, offset);

    for (uint64_t at = first + 1; length < bytes && at < first + MAX_L1_RUN; at++) {
        if (at < s->l1_entries && s->l1[at] & QCOW2_ENTRY_OFFSET)
            break;
        length += per_table;
    }
    *mapping = (struct qcow2_mapping){ .kind = QCOW2_UNALLOCATED, .bytes = u64_min(length, bytes) };
}

/*
 * Looks up without loading anything; false if something has to be loaded. The lock is held for
 * reading.
 */
static bool map_cached(struct blk_node *node, uint64_t offset, uint64_t bytes,
                       struct qcow2_mapping *mapping, int *ret, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_READ_LOCKED(&s->lock);
    uint64_t at = l1_index(s, offset);
    uint64_t table = s->l1 && at < s->l1_entries ? s->l1[at] & QCOW2_ENTRY_OFFSET : 0;

    if (!s->l1 || table & (s->cluster_bytes - 1))
        return false;
    *ret = 0;
    if (!table) {
        map_nothing(s, offset, bytes, mapping);
        return true;
    }
    struct qcow2_table *slice = qcow2_cache_find(&s->l2_cache, slice_offset(s, table, offset));
    if (!slice)
        return false;
    *ret = map_in_slice(node, slice, offset, bytes, mapping, err);
    return true;
}

/* How far it reaches that the slice of `offset` cannot be had. */
static uint64_t unmapped_bytes(const struct qcow2_state *s, uint64_t offset, uint64_t bytes)
{
    uint64_t per_slice = (uint64_t)s->slice_entries << s->cluster_bits;
    return s->l1 ? u64_min(per_slice - offset % per_slice, bytes) : bytes;
}

/* [locked] qcow2_map() itself. */
static int map_locked(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      struct qcow2_mapping *mapping, struct blk_error *err)
{
    ASSERT_LOCKED(&qcow2_state(node)->lock);
    struct qcow2_table *slice;
    int ret = slice_read(node, offset, &slice, err);
    if (ret < 0)
        mapping->bytes = ret == -EIO ? unmapped_bytes(qcow2_state(node), offset, bytes) : 0;
    if (ret < 0)
        return ret;
    if (slice)
        return map_in_slice(node, slice, offset, bytes, mapping, err);
    map_nothing(qcow2_state(node), offset, bytes, mapping);
    return 0;
}

int qcow2_map(struct blk_node *node, uint64_t offset, uint64_t bytes, struct qcow2_mapping *mapping,
              struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret;

    blk_read_lock(&s->lock);
    bool done = map_cached(node, offset, bytes, mapping, &ret, err);
    blk_read_unlock(&s->lock);
    if (done)
        return ret;

    QCOW2_LOCK_SCOPE(s);
    return map_locked(node, offset, bytes, mapping, err);
}
