/* SPDX-License-Identifier: MIT */
/*
 * Another size, and an empty image.
 *
 * What changes at once for all is one header sector (C4): growing prepares everything past the old
 * end, where nobody looks, and then switches the size; shrinking switches the size and then frees
 * what is past it. A crash in between leaves mappings past the end. They are harmless until the
 * image grows again, and growing takes them away first.
 *
 * Emptying switches to an L1 table of nothing, gives back what the old one led to, and then the
 * room in the file: each step begins when the one before is stable, so that nothing is punched out
 * or cut off that the medium refers to. The tables that are left move to the front for that, one
 * switch each.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/units.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/header/corrupt.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/shape/shape.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/frees.h"
#include "drivers/qcow2/tables/l1.h"
#include "drivers/qcow2/tables/map.h"
#include "drivers/qcow2/tables/metadata.h"
#include "drivers/qcow2/tables/new_l1.h"
#include "drivers/qcow2/tables/refcount.h"
#include "drivers/qcow2/tables/shadow.h"

/* [locked] Frees (later) an L2 table that nothing points to any more, and all that it points to. */
static int free_l2(struct blk_node *node, uint64_t table, enum qcow2_free_why why,
                   struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    if (table & (s->cluster_bytes - 1))
        return qcow2_corrupt(node, err, "an L2 table at the unaligned offset %" PRIu64, table);

    /*
     * All of it is read first: a part that cannot be read leaves the table, and nothing is freed.
     */
    for (uint64_t at = 0; at < s->cluster_bytes; at += s->l2_cache.entry_bytes) {
        struct qcow2_table *slice;
        int ret = qcow2_cache_get(node, &s->l2_cache, table + at, &slice, err);
        if (ret < 0)
            return ret;
    }
    for (uint64_t at = 0; at < s->cluster_bytes; at += s->l2_cache.entry_bytes) {
        const struct qcow2_table *slice = qcow2_cache_find(&s->l2_cache, table + at);
        for (uint32_t i = 0; i < s->slice_entries; i++)
            qcow2_entry_free(node, qcow2_entry_get(s, slice->data, i), why);
    }
    qcow2_cache_drop(&s->l2_cache, table, s->cluster_bytes);
    qcow2_metadata_remove(s, table);
    qcow2_free_later(node, table, s->cluster_bytes, why);
    return 0;
}

/* Empties the L1 entries from `first` to `end`. */
static int clear_l1(struct blk_node *node, uint64_t first, uint64_t end, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret = 0;

    blk_event(qcow2_file(node), BLK_EVENT_L1_SHRINK_WRITE_TABLE);
    for (uint64_t i = first; i < end && ret == 0; i++) {
        uint64_t table = s->l1[i] & QCOW2_ENTRY_OFFSET;
        if (!table)
            continue;
        qcow2_lock(s);
        ret = qcow2_metadata_load(node, err);
        if (ret == 0)
            ret = free_l2(node, table, QCOW2_FREE_SHRINK, err);
        if (ret == 0)
            qcow2_l1_set(node, (uint32_t)i, 0);
        qcow2_unlock(s);
        if (ret == 0)
            ret = qcow2_commit_if_full(node, err);
    }
    return ret;
}

/*
 * Takes away all mappings behind the smaller of two sizes, between which the disk changes; a
 * machine's state only where its place changes with the disk's size.
 */
static int clear_behind(struct blk_node *node, uint64_t size, uint64_t larger,
                        struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t state = qcow2_l1_entries_for(larger, s->cluster_bits, s->extended);
    bool stays = state == qcow2_l1_entries_for(size, s->cluster_bits, s->extended);
    uint64_t end = stays ? u64_min(state, s->l1_entries) : s->l1_entries;
    uint64_t per_table = (uint64_t)s->l2_entries << s->cluster_bits;
    uint64_t start = round_up(size, s->cluster_bytes);
    uint64_t whole = div_round_up(start, per_table);

    int ret = 0;
    if (start < whole * per_table && whole <= s->l1_entries)
        ret = qcow2_unmap(node, start, whole * per_table - start, QCOW2_FREE_SHRINK, err);
    return ret < 0 ? ret : clear_l1(node, whole, end, err);
}

/* ---- the end of the file ---- */

/* How many clusters the file has up to the last that is in use. */
static int count_to_last_used(struct blk_node *node, uint64_t *clusters, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t count = 0;
    int ret = 0;

    *clusters = div_round_up(blk_size(qcow2_file(node)), s->cluster_bytes);
    QCOW2_LOCK_SCOPE(s);
    while (*clusters && ret == 0) {
        ret = qcow2_refcount(node, *clusters - 1, &count, err);
        if (ret < 0 || count)
            break;
        --*clusters;
    }
    return ret;
}

/* Cuts off what is free at the end of the file. Nothing is pending. */
static int trim_file(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct blk_node *file = qcow2_file(node);
    uint64_t clusters;

    if (!file->driver->growable)
        return 0;
    int ret = count_to_last_used(node, &clusters, err);
    uint64_t end = clusters << s->cluster_bits;
    if (ret < 0 || end >= blk_size(file))
        return ret;
    ret = blk_child_truncate(file, end, BLK_PREALLOC_OFF, false, err);
    if (ret < 0)
        return ret;
    QCOW2_LOCK_SCOPE(s);
    s->unwritten = end;
    return 0;
}

/* ---- growing ---- */

/* Data between the old end and the end of its cluster was never the guest's: it becomes zeroes. */
static int zero_old_end(struct blk_node *node, uint64_t old_size, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t end = round_up(old_size, s->cluster_bytes);
    int ret = 0;

    for (uint64_t at = old_size; at < end && ret == 0;) {
        struct qcow2_mapping mapping;
        ret = qcow2_map(node, at, end - at, &mapping, err);
        if (ret == 0 && (mapping.kind == QCOW2_DATA || mapping.kind == QCOW2_COMPRESSED))
            ret = qcow2_write_zero_data(node, at, mapping.bytes, err);
        at += mapping.bytes;
    }
    return ret;
}

/* What a longer backing file has behind the old end must not show. */
static int hide_backing(struct blk_node *node, uint64_t old_size, uint64_t size,
                        struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    uint64_t end = backing ? u64_min(size, blk_size(backing)) : 0;
    if (end <= old_size)
        return 0;

    uint64_t aligned = round_up(old_size, s->subcluster_bytes);
    if (s->header.version < 3)
        aligned = end;
    int ret = 0;
    if (aligned > old_size)
        ret = qcow2_write_zero_data(node, old_size, aligned - old_size, err);
    if (ret == 0 && end > aligned)
        ret = qcow2_zero_behind(node, aligned, round_up(end, s->subcluster_bytes) - aligned, err);
    return ret;
}

static int grow(struct blk_node *node, uint64_t old_size, uint64_t size, enum blk_prealloc prealloc,
                struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret = qcow2_l1_fetch(node, err);
    if (ret < 0)
        return ret;
    ret = clear_behind(node, old_size, size, err);
    if (ret < 0)
        return ret;
    ret = qcow2_grow_l1(node, qcow2_l1_entries_for(size, s->cluster_bits, s->extended), err);
    if (ret < 0)
        return ret;
    ret = zero_old_end(node, old_size, err);
    if (ret < 0)
        return ret;
    ret = hide_backing(node, old_size, size, err);
    if (ret < 0)
        return ret;
    if (s->data_file)
        ret = blk_child_truncate(blk_child(node, BLK_ROLE_DATA), size,
                                 prealloc == BLK_PREALLOC_METADATA ? BLK_PREALLOC_OFF : prealloc,
                                 false, err);
    if (ret < 0)
        return ret;
    /* Others may write a raw data file directly: all of it has to be mapped. */
    if (s->data_file_raw && prealloc == BLK_PREALLOC_OFF)
        prealloc = BLK_PREALLOC_METADATA;
    return qcow2_preallocate(node, old_size, size - old_size, prealloc, err);
}

/* ---- the operations ---- */

static int switch_size(struct blk_node *node, uint64_t size, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;
    struct qcow2_header next = s->header;
    next.size = size;
    ret = qcow2_header_switch(node, &next, err);
    if (ret < 0)
        return ret;
    blk_node_set_size(node, size);
    return blk_bitmaps_resize(node, size, err);
}

static int shrink(struct blk_node *node, uint64_t size, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t old_size = blk_size(node);
    int ret = qcow2_l1_fetch(node, err);
    if (ret < 0)
        return ret;
    ret = switch_size(node, size, err);
    if (ret < 0)
        return ret;
    ret = clear_behind(node, size, old_size, err);
    if (ret < 0)
        return ret;
    ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;
    /* What a snapshot may still need stays. */
    if (s->data_file && (s->data_file_raw || !s->header.snapshot_count))
        ret =
            blk_child_truncate(blk_child(node, BLK_ROLE_DATA), size, BLK_PREALLOC_OFF, false, err);
    if (ret < 0)
        return ret;
    return trim_file(node, err);
}

int qcow2_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                   struct blk_error *err)
{
    ASSERT_ALONE();
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t old_size = blk_size(node);
    (void)exact; /* always */

    if (size % BLK_SECTOR_BYTES)
        return blk_fail_why(err, EINVAL, "the new size must be a multiple of 512", "resizing '%s'",
                            node->name);
    if (size > BLK_MAX_BYTES)
        return blk_fail(err, EFBIG, "resizing '%s'", node->name);
    if (size < old_size && prealloc != BLK_PREALLOC_OFF)
        return blk_fail_why(err, EINVAL, "preallocation is for growing, not for shrinking",
                            "resizing '%s'", node->name);
    if (s->header.version < 3 && s->header.snapshot_count)
        return blk_fail_why(err, ENOTSUP, "snapshots of version 2 do not record the disk size",
                            "resizing '%s'", node->name);
    if (size == old_size)
        return 0;

    int ret = qcow2_check_poison(node, err);
    if (ret < 0)
        return ret;
    ret = blk_identity_will_change(node, err);
    if (ret < 0)
        return ret;
    ret = qcow2_bitmaps_suspend(node, size, err);
    if (ret < 0)
        return ret;
    if (size < old_size)
        return shrink(node, size, err);
    ret = grow(node, old_size, size, prealloc, err);
    if (ret < 0)
        return ret;
    return switch_size(node, size, err);
}

/* ---- emptying ---- */

/*
 * Puts an L1 table of nothing in the first place that is free, if that lies before `limit`; the
 * old one is freed (later).
 */
static int renew_l1(struct blk_node *node, uint64_t limit, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint32_t entries = s->l1_entries;
    uint64_t offset, *empty = calloc(entries ? entries : 1, sizeof(*empty));
    if (!empty)
        return blk_fail(err, ENOMEM, "emptying '%s'", node->name);

    int ret = qcow2_l1_write(node, empty, 0, entries, &offset, err);
    if (ret == 0 && offset < limit) {
        ret = qcow2_l1_activate(node, offset, empty, entries, QCOW2_FREE_SNAPSHOT, err);
        if (ret == 0)
            return 0;
    } else if (ret == 0) {
        ret = qcow2_unalloc(node, offset, u64_max((uint64_t)entries * 8, 8), err);
    }
    free(empty);
    return ret;
}

/* Lets the data file forget what the slice maps: a hint, which may fail. */
static void discard_slice(struct blk_node *node, const uint8_t *slice)
{
    const struct qcow2_state *s = qcow2_state(node);
    struct blk_node *data = blk_child(node, BLK_ROLE_DATA);
    uint64_t start = 0, end = 0;

    for (uint32_t i = 0; i < s->slice_entries; i++) {
        struct qcow2_entry entry = qcow2_entry_get(s, slice, i);
        if (entry.entry & QCOW2_ENTRY_COMPRESSED || !qcow2_entry_has_host(s, entry))
            continue;
        uint64_t host = entry.entry & QCOW2_ENTRY_OFFSET;
        if (host != end) {
            blk_child_discard(data, start, end - start, NULL);
            start = host;
        }
        end = host + s->cluster_bytes;
    }
    blk_child_discard(data, start, end - start, NULL);
}

/* The same for all that an L2 table maps, to which nothing stable points any more. */
static int discard_in_data_file(struct blk_node *node, uint64_t table, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint32_t bytes = s->l2_cache.entry_bytes;
    uint8_t *copy = malloc(bytes);
    int ret = copy ? 0 : blk_fail(err, ENOMEM, "emptying '%s'", node->name);

    for (uint64_t at = 0; at < s->cluster_bytes && ret == 0; at += bytes) {
        struct qcow2_table *slice;
        qcow2_lock(s);
        ret = qcow2_cache_get(node, &s->l2_cache, table + at, &slice, err);
        if (ret == 0)
            memcpy(copy, slice->data, bytes);
        qcow2_unlock(s);
        if (ret == 0)
            discard_slice(node, copy);
    }
    free(copy);
    return ret;
}

/* Gives back what the old L1 table, of which the medium has nothing any more, led to. */
static int free_tree(struct blk_node *node, const uint64_t *l1, uint32_t entries,
                     struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    bool punch_data =
        s->data_file && !s->data_file_raw && s->pass_discard.snapshot && !s->header.snapshot_count;
    int ret = 0;

    for (uint32_t i = 0; i < entries && ret == 0; i++) {
        uint64_t table = l1[i] & QCOW2_ENTRY_OFFSET;
        if (!table)
            continue;
        if (punch_data && table % s->cluster_bytes == 0)
            ret = discard_in_data_file(node, table, err);
        qcow2_lock(s);
        if (ret == 0)
            ret = free_l2(node, table, QCOW2_FREE_SNAPSHOT, err);
        qcow2_unlock(s);
        if (ret == 0)
            ret = qcow2_commit_if_full(node, err);
    }
    return ret;
}

/* Whether the cluster is in the refcount table, or a refcount block. Nothing is pending. */
static bool is_of_refcounts(const struct qcow2_state *s, uint64_t cluster)
{
    uint64_t offset = cluster << s->cluster_bits;
    if (offset >= s->reftable_offset && offset - s->reftable_offset < s->reftable_entries * 8)
        return true;
    for (uint64_t i = 0; i < s->reftable_entries; i++)
        if (s->reftable[i] == offset)
            return true;
    return false;
}

/* Rebuilds the refcounts in free space, and switches to them if the file can end earlier. */
static int renew_refcounts(struct blk_node *node, uint64_t clusters, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_header next = s->header;
    struct qcow2_shadow shadow;
    int ret = qcow2_shadow_begin(node, s->refcount_order, true, NULL, &shadow, err);
    if (ret < 0)
        return ret;

    ret = qcow2_shadow_finish(&shadow, true, &next, err);
    uint64_t after = shadow.clusters;
    while (after && !qcow2_shadow_get(&shadow, after - 1))
        after--;
    bool better = after < clusters;
    if (ret == 0 && better)
        ret = qcow2_barrier(node, err);
    if (ret == 0 && better)
        ret = qcow2_header_switch(node, &next, err);
    /* Also of what was not switched to: it may have made the file longer. */
    qcow2_forget_tables(node);
    if (ret == 0 && better)
        qcow2_shadow_discard_freed(&shadow);
    qcow2_shadow_end(&shadow);
    return ret;
}

/*
 * Cuts the file of an empty image. The tables that it still has may lie at the end, behind what
 * was freed: they move to the front first. Nothing is pending.
 */
static int cut_empty(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t clusters;

    if (!qcow2_file(node)->driver->growable)
        return 0;
    int ret = renew_l1(node, s->l1_offset, err);
    if (ret < 0)
        return ret;
    ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;
    ret = count_to_last_used(node, &clusters, err);
    if (ret < 0)
        return ret;
    if (clusters && is_of_refcounts(s, clusters - 1))
        ret = renew_refcounts(node, clusters, err);
    if (ret < 0)
        return ret;
    return trim_file(node, err);
}

int qcow2_make_empty(struct blk_node *node, struct blk_error *err)
{
    ASSERT_ALONE();
    struct qcow2_state *s = qcow2_state(node);

    blk_event(qcow2_file(node), BLK_EVENT_EMPTY_IMAGE_PREPARE);
    int ret = qcow2_l1_fetch(node, err);
    if (ret == 0)
        ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;

    uint32_t entries = s->l1_entries;
    uint64_t *old = malloc(entries ? entries * sizeof(*old) : 1);
    if (!old)
        return blk_fail(err, ENOMEM, "emptying '%s'", node->name);
    memcpy(old, s->l1, entries * sizeof(*old));
    ret = renew_l1(node, UINT64_MAX, err);
    if (ret == 0)
        ret = free_tree(node, old, entries, err);
    free(old);
    if (ret == 0 && s->data_file_raw)
        ret = blk_child_write_zeroes(blk_child(node, BLK_ROLE_DATA), 0, blk_size(node),
                                     BLK_REQ_MAY_UNMAP, err);
    if (ret == 0)
        ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;
    ret = cut_empty(node, err);
    if (ret < 0)
        blk_left_behind(err, "'%s' is empty, but its file is longer than necessary", node->name);
    return ret;
}
