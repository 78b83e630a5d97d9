/* SPDX-License-Identifier: MIT */
/*
 * Finding free clusters.
 *
 * First fit from a hint below which nothing is free. Regions of the file that have no refcount
 * block yet count as free; the first to allocate there puts the missing blocks at the beginning of
 * what it takes, so a growing file gets one block and then a long run of data.
 */
#include "drivers/qcow2/tables/alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/frees.h"
#include "drivers/qcow2/tables/metadata.h"
#include "drivers/qcow2/tables/refcount.h"

/* ---- finding ---- */

/* Free clusters in a row. */
struct free_run {
    uint64_t start, count;
    uint64_t first_free; /* the first one seen that stays free; UINT64_MAX: none */
    bool unwritten;      /* set when it is taken: nobody has written there yet */
};

/*
 * Length of the row of clusters at `cluster` that are all free (or all in use), as far as one
 * slice of counts tells. Of free ones no more than `most` are looked at: behind the last cluster
 * of a file, all the rest of the slice is free.
 */
static int row_in_slice(struct blk_node *node, uint64_t cluster, uint64_t most, bool *is_free,
                        uint64_t *length, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_table *slice;
    uint64_t index;
    int ret = qcow2_refslice(node, cluster, &slice, &index, err);
    if (ret < 0)
        return ret;
    if (!slice) {
        *is_free = true;
        *length = u64_min(most, s->refblock_entries - cluster % s->refblock_entries);
        return 0;
    }
    uint64_t end = qcow2_counts_per_slice(s);
    uint64_t at = index;
    *is_free = qcow2_count_get(slice->data, s->refcount_order, at) == 0;
    if (*is_free)
        end = u64_min(index + most, end);
    while (++at < end && (qcow2_count_get(slice->data, s->refcount_order, at) == 0) == *is_free)
        ;
    *length = at - index;
    return 0;
}

/*
 * The first row of at least `least` free clusters at or behind `from`; reports at most `most` of
 * it.
 */
static int find_free_run(struct blk_node *node, uint64_t from, uint64_t least, uint64_t most,
                         struct free_run *run, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t limit = QCOW2_MAX_HOST_OFFSET >> s->cluster_bits;

    *run = (struct free_run){ .start = from, .first_free = UINT64_MAX };
    for (uint64_t at = from; run->count < most;) {
        bool is_free;
        uint64_t length;
        int ret = row_in_slice(node, at, most - run->count, &is_free, &length, err);
        if (ret < 0)
            return ret;
        if (is_free)
            run->first_free = u64_min(run->first_free, at);
        at += length;
        if (is_free) {
            run->count += length;
        } else if (run->count >= least) {
            break;
        } else {
            run->start = at;
            run->count = 0;
        }
        if (at >= limit)
            return blk_fail(err, EFBIG, "allocating clusters in '%s'", node->name);
    }
    run->count = u64_min(run->count, most);
    return 0;
}

/* ---- taking ---- */

/* Refcount blocks that the clusters of the run need and that do not exist. */
static uint64_t missing_blocks(const struct qcow2_state *s, const struct free_run *run)
{
    uint64_t missing = 0;
    for (uint64_t block = run->start / s->refblock_entries;
         block <= (run->start + run->count - 1) / s->refblock_entries; block++)
        missing += block >= s->reftable_entries || !s->reftable[block];
    return missing;
}

int qcow2_take_room(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    struct blk_node *file = qcow2_file(node);
    return file->unnamed ? 0 : blk_child_write_zeroes(file, offset, bytes, 0, err);
}

/*
 * Makes the refcount table (in memory) large enough for that block. It may then have no place in
 * the file until qcow2_reftable_place() finds one.
 */
static int grow_reftable(struct blk_node *node, uint64_t block, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    if (block < s->reftable_entries)
        return 0;

    uint64_t per_cluster = s->cluster_bytes / 8;
    uint64_t entries = round_up(u64_max(block + 1, s->reftable_entries * 3 / 2), per_cluster);
    if ((block + 1) * 8 > QCOW2_MAX_REFTABLE_BYTES)
        return blk_fail_why(err, EFBIG, "its refcount table cannot grow any further",
                            "allocating clusters in '%s'", node->name);
    entries = u64_min(entries, QCOW2_MAX_REFTABLE_BYTES / 8);

    blk_event(qcow2_file(node), BLK_EVENT_REFTABLE_GROW);
    uint64_t *table = realloc(s->reftable, entries * 8);
    if (!table)
        return blk_fail(err, ENOMEM, "growing the refcount table of '%s'", node->name);
    uint64_t old_entries = s->reftable_entries;
    memset(table + old_entries, 0, (entries - old_entries) * 8);
    s->reftable = table; /* at once: what follows may look something up in it */
    s->reftable_entries = entries;

    /*
     * The place that it leaves: free once the header points elsewhere; at once if the header
     * never did, or nobody can see the file yet.
     */
    if (!s->reftable_unplaced) {
        uint64_t old_bytes = old_entries * 8;
        if (s->reftable_moved || qcow2_file(node)->unnamed)
            qcow2_refcount_decrease(node, s->reftable_offset, old_bytes, NULL);
        else
            qcow2_free_later(node, s->reftable_offset, old_bytes, QCOW2_FREE_OTHER);
    }
    s->reftable_unplaced = true;
    s->reftable_moved = true;
    return 0;
}

static int make_block(struct blk_node *node, uint64_t block, uint64_t offset, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret = qcow2_take_room(node, offset, s->cluster_bytes, err);
    if (ret == 0)
        ret = grow_reftable(node, block, err);
    if (ret < 0)
        return ret;
    blk_event(qcow2_file(node), BLK_EVENT_REFBLOCK_ALLOC);
    for (uint64_t at = 0; at < s->cluster_bytes && ret == 0; at += s->refblock_cache.entry_bytes) {
        struct qcow2_table *slice;
        ret = qcow2_cache_new(&s->refblock_cache, offset + at, &slice, err);
    }
    if (ret == 0)
        ret = qcow2_metadata_add(s, offset, err);
    if (ret == 0)
        qcow2_reftable_set(s, block, offset);
    else
        qcow2_cache_drop(&s->refblock_cache, offset, s->cluster_bytes);
    return ret;
}

/* Sets the counts of the run to 1. */
static int set_counts(struct blk_node *node, const struct free_run *run, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    for (uint64_t cluster = run->start; cluster < run->start + run->count; cluster++) {
        struct qcow2_table *slice;
        uint64_t index;
        int ret = qcow2_refslice(node, cluster, &slice, &index, err);
        if (ret < 0)
            return ret;
        qcow2_refslice_put(s, slice, index, 1);
    }
    return 0;
}

/*
 * Takes the run: blocks that its clusters lack go to its beginning and are cut off from it. The
 * clusters are checked against everything that must not be written over.
 */
static int take_run(struct blk_node *node, struct free_run *run, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t blocks = missing_blocks(s, run);

    int ret = qcow2_check_overlap(node, run->start << s->cluster_bits,
                                  run->count << s->cluster_bits, err);
    if (ret < 0)
        return ret;
    uint64_t next_place = run->start;
    uint64_t last = (run->start + run->count - 1) / s->refblock_entries;
    for (uint64_t block = run->start / s->refblock_entries; block <= last; block++) {
        if (block < s->reftable_entries && s->reftable[block])
            continue;
        ret = make_block(node, block, next_place << s->cluster_bits, err);
        if (ret < 0)
            break;
        next_place++;
    }
    if (ret == 0)
        ret = set_counts(node, run, err);
    if (ret < 0) {
        /* A block that is hooked up and lacks a count of its own must not reach the medium (C1). */
        if (next_place > run->start)
            qcow2_poison(s, -ret);
        return ret;
    }
    s->unwritten = u64_max(s->unwritten, (run->start + run->count) << s->cluster_bits);
    if (run->first_free == run->start)
        run->first_free = UINT64_MAX; /* not any more */
    run->start += blocks;
    run->count -= blocks;
    return 0;
}

/*
 * Takes at least `least` clusters, the first fit at or behind `from`. Up to `most` are looked
 * for, and a few more may come when fewer blocks were needed than there was room left for.
 */
static int take_clusters(struct blk_node *node, uint64_t from, uint64_t least, uint64_t most,
                         struct free_run *run, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret = qcow2_reftable_load(node, err);
    if (ret < 0)
        return ret;

    uint64_t extra = 0;
    for (;;) {
        ret = find_free_run(node, from, least + extra, most + extra, run, err);
        if (ret < 0)
            return ret;
        uint64_t missing = missing_blocks(s, run);
        if (missing <= extra || run->count - u64_min(missing, run->count) >= least)
            break;
        extra = missing;
    }
    /* Only what lies behind all that was ever written can be known to be zero. */
    run->unwritten = run->start << s->cluster_bits >= s->unwritten;
    return take_run(node, run, err);
}

static int give_back_rest(struct blk_node *node, const struct free_run *run, uint64_t keep,
                          struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    return qcow2_refcount_decrease(node, (run->start + keep) << s->cluster_bits,
                                   (run->count - keep) << s->cluster_bits, err);
}

static int alloc_exactly(struct blk_node *node, uint64_t from, uint64_t bytes, uint64_t *offset,
                         struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t wanted = div_round_up(bytes, s->cluster_bytes);
    struct free_run run;
    int ret = take_clusters(node, from, wanted, wanted, &run, err);
    if (ret == 0 && run.count > wanted)
        ret = give_back_rest(node, &run, wanted, err);
    if (ret < 0)
        return ret;

    *offset = run.start << s->cluster_bits;
    if (from == s->free_hint)
        s->free_hint = u64_min(run.first_free, run.start + wanted);
    return 0;
}

/* qcow2_alloc() but for the place of a refcount table that had to grow. */
static int alloc_unplaced(struct blk_node *node, uint64_t bytes, uint64_t *offset,
                          struct blk_error *err)
{
    return alloc_exactly(node, qcow2_state(node)->free_hint, bytes, offset, err);
}

int qcow2_reftable_place(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    /* Finding a place may make it grow again. */
    while (s->reftable_unplaced) {
        uint64_t bytes = s->reftable_entries * 8, offset;
        int ret = alloc_unplaced(node, bytes, &offset, err);
        if (ret == 0 && s->reftable_entries * 8 != bytes)
            ret = qcow2_refcount_decrease(node, offset, bytes, err);
        else if (ret == 0) {
            s->reftable_offset = offset;
            s->reftable_unplaced = false;
        }
        if (ret < 0)
            return ret;
    }
    return 0;
}

int qcow2_alloc(struct blk_node *node, uint64_t bytes, uint64_t *offset, struct blk_error *err)
{
    ASSERT_LOCKED(&qcow2_state(node)->lock);
    blk_event(qcow2_file(node), BLK_EVENT_CLUSTER_ALLOC);
    int ret = alloc_unplaced(node, bytes, offset, err);
    return ret < 0 ? ret : qcow2_reftable_place(node, err);
}

int qcow2_alloc_end(struct blk_node *node, uint64_t bytes, uint64_t *offset, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    int ret = qcow2_reftable_load(node, err);
    if (ret == 0)
        ret = alloc_exactly(node, s->unwritten >> s->cluster_bits, bytes, offset, err);
    return ret < 0 ? ret : qcow2_reftable_place(node, err);
}

int qcow2_alloc_run(struct blk_node *node, uint64_t max_bytes, uint64_t *offset, uint64_t *bytes,
                    bool *unwritten, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    uint64_t most = u64_max(max_bytes >> s->cluster_bits, 1);
    struct free_run run;

    blk_event(qcow2_file(node), BLK_EVENT_CLUSTER_ALLOC);
    int ret = take_clusters(node, s->free_hint, 1, most, &run, err);
    if (ret < 0)
        return ret;
    s->free_hint = run.start + run.count;
    if (run.count > most) {
        ret = give_back_rest(node, &run, most, err);
        if (ret < 0)
            return ret;
        run.count = most;
    }

    *offset = run.start << s->cluster_bits;
    *bytes = run.count << s->cluster_bits;
    if (unwritten)
        *unwritten = run.unwritten;
    return qcow2_reftable_place(node, err);
}

/* ---- compressed pieces ---- */

/* Puts the piece behind the previous one, reaching into the next cluster if that is free. */
static int pack(struct blk_node *node, uint32_t bytes, uint64_t *offset, bool *packed,
                struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t at = s->compressed_next;
    uint64_t room = round_up(at, s->cluster_bytes) - at;

    *packed = false;
    if (!at || !room)
        return 0;
    uint64_t count;
    int ret = qcow2_refcount(node, at >> s->cluster_bits, &count, err);
    if (ret < 0 || !count || count == s->refcount_max)
        return ret;
    if (bytes > room) {
        struct free_run next;
        uint64_t cluster = (at >> s->cluster_bits) + 1;
        ret = find_free_run(node, cluster, 1, 1, &next, err);
        if (ret < 0 || next.start != cluster || missing_blocks(s, &next))
            return ret;
        ret = take_run(node, &next, err);
        if (ret < 0)
            return ret;
        if (s->free_hint == cluster)
            s->free_hint = cluster + 1;
    }
    ret = qcow2_refcount_increase(node, at, 1, err);
    if (ret < 0)
        return ret;
    *offset = at;
    *packed = true;
    s->compressed_next = at + bytes;
    return 0;
}

int qcow2_alloc_compressed(struct blk_node *node, uint32_t bytes, uint64_t *offset,
                           struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    bool packed;

    blk_event(qcow2_file(node), BLK_EVENT_CLUSTER_ALLOC_BYTES);
    int ret = pack(node, bytes, offset, &packed, err);
    if (ret < 0 || packed)
        return ret;
    uint64_t cluster_bytes = s->cluster_bytes;
    ret = qcow2_alloc_run(node, cluster_bytes, offset, &cluster_bytes, NULL, err);
    if (ret == 0)
        s->compressed_next = *offset + bytes;
    return ret;
}
