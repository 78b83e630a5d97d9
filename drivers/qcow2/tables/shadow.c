/* SPDX-License-Identifier: MIT */
/*
 * A whole new refcount structure next to the live one (C8).
 *
 * The new counts are an array in memory in the form that refcount blocks have, so that a block is
 * a piece of it. New tables go to clusters that neither the live nor the new counts use: until
 * the header is switched nothing that the image consists of has been touched.
 */
#include "drivers/qcow2/tables/shadow.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/refcount.h"

static uint64_t counts_per_block(const struct qcow2_shadow *shadow)
{
    return ((uint64_t)qcow2_state(shadow->node)->cluster_bytes * 8) >> shadow->order;
}

/* Makes the arrays hold at least `clusters`, in whole blocks. */
static int make_arrays(struct qcow2_shadow *shadow, uint64_t clusters, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    uint64_t old = shadow->capacity, capacity = round_up(clusters, counts_per_block(shadow));
    if (capacity > old) {
        capacity = round_up(u64_max(capacity, old + old / 8), counts_per_block(shadow));
        uint64_t bytes = capacity / counts_per_block(shadow) * s->cluster_bytes;
        uint64_t old_bytes = old / counts_per_block(shadow) * s->cluster_bytes;
        uint8_t *counts = bytes > SIZE_MAX ? NULL : realloc(shadow->counts, bytes);
        if (counts) {
            memset(counts + old_bytes, 0, bytes - old_bytes);
            shadow->counts = counts;
        }
        uint8_t *live = counts ? realloc(shadow->live, capacity / 8) : NULL;
        if (!live)
            return blk_fail(err, ENOMEM, "counting the clusters of '%s'", shadow->node->name);
        memset(live + old / 8, 0, capacity / 8 - old / 8);
        shadow->live = live;
        shadow->capacity = capacity;
    }
    shadow->clusters = u64_max(shadow->clusters, clusters);
    return 0;
}

static void set_live(struct qcow2_shadow *shadow, uint64_t cluster)
{
    shadow->live[cluster / 8] |= (uint8_t)(1u << cluster % 8);
}

static bool is_live(const struct qcow2_shadow *shadow, uint64_t cluster)
{
    return shadow->live[cluster / 8] >> cluster % 8 & 1;
}

/* Takes over the live counts from `cluster` on, as far as one slice goes; *length is how many. */
static int copy_slice(struct qcow2_shadow *shadow, uint64_t cluster, bool copy_counts,
                      uint64_t *length, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(shadow->node);
    struct qcow2_table *slice;
    uint64_t index = 0, per_slice = qcow2_counts_per_slice(s);

    *length = u64_min(shadow->clusters - cluster, per_slice - cluster % per_slice);
    int ret = qcow2_refslice(shadow->node, cluster, &slice, &index, err);
    for (uint64_t i = 0; ret == 0 && slice && i < *length; i++) {
        uint64_t count = qcow2_count_get(slice->data, s->refcount_order, index + i);
        if (!count)
            continue;
        set_live(shadow, cluster + i);
        if (!copy_counts)
            continue;
        if (count > qcow2_count_max(shadow->order))
            return blk_fail_why(err, ERANGE,
                                "a cluster is shared more often than that width can count",
                                "counting the clusters of '%s'", shadow->node->name);
        qcow2_count_put(shadow->counts, shadow->order, cluster + i, count);
    }
    return ret;
}

/* The live refcount structure itself, which a repair may find uncounted. */
static void protect_structure(struct qcow2_shadow *shadow)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    qcow2_shadow_protect(shadow, 0, s->cluster_bytes);
    qcow2_shadow_protect(shadow, s->header.reftable_offset,
                         s->header.reftable_clusters * (uint64_t)s->cluster_bytes);
    for (uint64_t i = 0; s->reftable && i < s->reftable_entries; i++)
        if (s->reftable[i])
            qcow2_shadow_protect(shadow, s->reftable[i], s->cluster_bytes);
}

int qcow2_shadow_begin(struct blk_node *node, unsigned order, bool copy_counts,
                       const struct blk_progress *progress, struct qcow2_shadow *shadow,
                       struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    *shadow = (struct qcow2_shadow){
        .node = node,
        .order = order,
        .progress = progress,
    };

    int ret = make_arrays(shadow, div_round_up(blk_size(qcow2_file(node)), s->cluster_bytes), err);
    for (uint64_t at = 0, length; at < shadow->clusters && ret == 0; at += length) {
        qcow2_lock(s);
        ret = copy_slice(shadow, at, copy_counts, &length, err);
        qcow2_unlock(s);
        blk_progress_tell(progress, at, 2 * shadow->clusters);
        /*
         * Counts that cannot be read protect nothing; a caller that starts from zero knows what is
         * in use.
         */
        if ((ret == -EIO || ret == -EFBIG) && !copy_counts) {
            blk_error_clear(err);
            ret = 0;
        }
    }
    if (ret < 0) {
        qcow2_shadow_end(shadow);
        return ret;
    }
    protect_structure(shadow);
    return 0;
}

void qcow2_shadow_end(struct qcow2_shadow *shadow)
{
    free(shadow->counts);
    free(shadow->live);
    *shadow = (struct qcow2_shadow){ .counts = NULL };
}

uint64_t qcow2_shadow_get(const struct qcow2_shadow *shadow, uint64_t cluster)
{
    return cluster < shadow->clusters ? qcow2_count_get(shadow->counts, shadow->order, cluster) : 0;
}

int qcow2_shadow_add(struct qcow2_shadow *shadow, uint64_t offset, uint64_t bytes, int delta,
                     struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    uint64_t end = bytes ? ((offset + bytes - 1) >> s->cluster_bits) + 1 : 0;

    for (uint64_t cluster = offset >> s->cluster_bits; cluster < end; cluster++) {
        uint64_t count = qcow2_shadow_get(shadow, cluster);
        if (cluster >= shadow->clusters || (delta < 0 && !count) ||
            (delta > 0 && count == qcow2_count_max(shadow->order)))
            return blk_fail_why(err, ERANGE,
                                delta < 0 ? "a refcount is lower than the references"
                                          : "a refcount of that width cannot count further",
                                "counting the cluster at offset %" PRIu64 " of '%s'",
                                (cluster << s->cluster_bits), shadow->node->name);
        qcow2_count_put(shadow->counts, shadow->order, cluster, count + (uint64_t)(int64_t)delta);
        /* What is live cannot be taken before the switch, so it is not worth looking at again. */
        if (delta < 0 && count == 1 && !is_live(shadow, cluster))
            shadow->hint = u64_min(shadow->hint, cluster);
    }
    return 0;
}

void qcow2_shadow_protect(struct qcow2_shadow *shadow, uint64_t offset, uint64_t bytes)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    uint64_t end = bytes ? ((offset + bytes - 1) >> s->cluster_bits) + 1 : 0;

    /* What lies behind the end of the file holds nothing that could be written over. */
    end = u64_min(end, shadow->clusters);
    for (uint64_t cluster = offset >> s->cluster_bits; cluster < end; cluster++)
        set_live(shadow, cluster);
}

int qcow2_shadow_alloc(struct qcow2_shadow *shadow, uint64_t bytes, uint64_t *offset,
                       struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    uint64_t wanted = u64_max(div_round_up(bytes, s->cluster_bytes), 1);
    uint64_t start = shadow->hint, length = 0, first_free = UINT64_MAX;

    for (uint64_t at = start; at < shadow->clusters && length < wanted; at++) {
        bool is_free = !is_live(shadow, at) && !qcow2_shadow_get(shadow, at);
        if (is_free && first_free == UINT64_MAX)
            first_free = at;
        if (is_free)
            length++;
        else
            start = at + 1, length = 0;
    }
    if (start + wanted > QCOW2_MAX_HOST_OFFSET >> s->cluster_bits)
        return blk_fail(err, EFBIG, "allocating clusters in '%s'", shadow->node->name);
    int ret = make_arrays(shadow, start + wanted, err);
    if (ret < 0)
        return ret;
    for (uint64_t i = 0; i < wanted; i++)
        qcow2_count_put(shadow->counts, shadow->order, start + i, 1);
    shadow->hint = first_free < start ? first_free : start + wanted;
    *offset = start << s->cluster_bits;
    return 0;
}

/* ---- finishing ---- */

static int drop_old_structure(struct qcow2_shadow *shadow, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(shadow->node);
    qcow2_lock(s);
    int ret = qcow2_reftable_load(shadow->node, err);
    qcow2_unlock(s);
    if (ret == 0)
        ret = qcow2_shadow_add(shadow, s->reftable_offset, s->reftable_entries * 8, -1, err);
    for (uint64_t i = 0; ret == 0 && i < s->reftable_entries; i++)
        if (s->reftable[i])
            ret = qcow2_shadow_add(shadow, s->reftable[i], s->cluster_bytes, -1, err);
    return ret;
}

/* Whether the block's counts are all zero. */
static bool is_block_empty(const struct qcow2_shadow *shadow, uint64_t block)
{
    uint64_t bytes = qcow2_state(shadow->node)->cluster_bytes;
    return bytes_are_zero(shadow->counts + block * bytes, bytes);
}

struct placed {
    uint64_t *blocks; /* host offsets; 0: none */
    uint64_t capacity;
    uint64_t table_offset, table_bytes;
};

/*
 * Gives every block that is needed a place. Placing may make another one necessary, so until none
 * is.
 */
static int place_blocks(struct qcow2_shadow *shadow, struct placed *placed, struct blk_error *err)
{
    bool again = true;
    while (again) {
        again = false;
        for (uint64_t block = 0; block * counts_per_block(shadow) < shadow->clusters; block++) {
            if (block >= placed->capacity) {
                uint64_t capacity = block * 2 + 16;
                uint64_t *blocks = realloc(placed->blocks, capacity * sizeof(*blocks));
                if (!blocks)
                    return blk_fail(err, ENOMEM, "allocating refcount blocks");
                memset(blocks + placed->capacity, 0,
                       (capacity - placed->capacity) * sizeof(*blocks));
                placed->blocks = blocks;
                placed->capacity = capacity;
            }
            if (placed->blocks[block] || is_block_empty(shadow, block))
                continue;
            int ret = qcow2_shadow_alloc(shadow, 1, &placed->blocks[block], err);
            if (ret < 0)
                return ret;
            again = true;
        }
    }
    return 0;
}

static uint64_t entries_needed(const struct placed *placed)
{
    uint64_t entries = placed->capacity;
    while (entries && !placed->blocks[entries - 1])
        entries--;
    return entries;
}

/*
 * Places blocks and table: the table is placed again until it is large enough for what its own
 * place needs.
 */
static int place(struct qcow2_shadow *shadow, struct placed *placed, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    int ret = place_blocks(shadow, placed, err);
    while (ret == 0 && placed->table_bytes < entries_needed(placed) * 8) {
        if (placed->table_bytes)
            ret = qcow2_shadow_add(shadow, placed->table_offset, placed->table_bytes, -1, err);
        placed->table_bytes = round_up((entries_needed(placed) + 1) * 8, s->cluster_bytes);
        if (placed->table_bytes > QCOW2_MAX_REFTABLE_BYTES)
            return blk_fail_why(err, EFBIG, "its refcount table would become too large",
                                "changing the refcounts of '%s'", shadow->node->name);
        if (ret == 0)
            ret = qcow2_shadow_alloc(shadow, placed->table_bytes, &placed->table_offset, err);
        if (ret == 0)
            ret = place_blocks(shadow, placed, err);
    }
    return ret;
}

static int write_structure(struct qcow2_shadow *shadow, const struct placed *placed,
                           struct blk_error *err)
{
    struct blk_node *node = shadow->node;
    uint64_t bytes = qcow2_state(node)->cluster_bytes;
    uint64_t entries = entries_needed(placed);
    int ret = 0;

    blk_event(qcow2_file(node), BLK_EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS);
    for (uint64_t block = 0; block < entries && ret == 0; block++) {
        blk_progress_tell(shadow->progress, entries + block, 2 * entries);
        if (placed->blocks[block])
            ret = blk_child_pwrite(qcow2_file(node), placed->blocks[block], bytes,
                                   shadow->counts + block * bytes, 0, err);
    }
    if (ret < 0)
        return ret;

    uint8_t *table = blk_buffer_alloc(placed->table_bytes);
    if (!table)
        return blk_fail(err, ENOMEM, "writing the refcount table of '%s'", node->name);
    memset(table, 0, placed->table_bytes);
    for (uint64_t i = 0; i < entries; i++)
        be64_put(table + i * 8, placed->blocks[i]);
    blk_event(qcow2_file(node), BLK_EVENT_REFBLOCK_ALLOC_WRITE_TABLE);
    ret = blk_child_pwrite(qcow2_file(node), placed->table_offset, placed->table_bytes, table, 0,
                           err);
    free(table);
    return ret;
}

int qcow2_shadow_finish(struct qcow2_shadow *shadow, bool drop_old, struct qcow2_header *next,
                        struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    struct placed placed = { .blocks = NULL };
    int ret = drop_old ? drop_old_structure(shadow, err) : 0;
    if (ret == 0)
        ret = place(shadow, &placed, err);
    if (ret == 0)
        ret = write_structure(shadow, &placed, err);
    if (ret == 0) {
        next->reftable_offset = placed.table_offset;
        next->reftable_clusters = (uint32_t)(placed.table_bytes >> s->cluster_bits);
        next->refcount_order = shadow->order;
    }
    free(placed.blocks);
    return ret;
}

void qcow2_shadow_discard_freed(const struct qcow2_shadow *shadow)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    struct blk_node *file = qcow2_file(shadow->node);
    uint64_t start = 0;

    if (!s->pass_discard.snapshot || !(file->flags & BLK_UNMAP))
        return;
    uint64_t limit = u64_min(shadow->clusters, blk_size(file) >> s->cluster_bits);
    for (uint64_t i = 0; i <= limit; i++) {
        if (i < limit && is_live(shadow, i) && !qcow2_shadow_get(shadow, i))
            continue;
        if (start < i)
            blk_child_discard(file, start << s->cluster_bits, (i - start) << s->cluster_bits, NULL);
        start = i + 1;
    }
}
