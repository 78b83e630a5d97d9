/* SPDX-License-Identifier: MIT */
/*
 * What the guest sees change when an internal snapshot is applied: no write that bitmaps could
 * record, so the mappings before and after are compared. A cluster that both have at the same place
 * is the same: nothing that more than one L1 table reaches is ever written over.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/map.h"

/* The clusters that differ are gathered in a bitmap of at most about this many bits. */
#define MAX_GATHERED_BITS (UINT64_C(1) << 26)

struct comparison {
    struct blk_node *node;
    struct blk_dirty_bitmap *changed;
    uint8_t *before, *after; /* an L2 table each */
};

static uint64_t l1_entry(const uint64_t *l1, uint64_t entries, uint64_t index)
{
    return index < entries ? l1[index] & QCOW2_ENTRY_OFFSET : 0;
}

/* Reads the L2 table at `offset`; all zeroes when there is none. */
static int read_l2_or_zeroes(struct comparison *c, uint64_t offset, uint8_t *buf,
                             struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(c->node);

    if (!offset) {
        memset(buf, 0, s->cluster_bytes);
        return 0;
    }
    if (offset % s->cluster_bytes)
        return blk_fail_why(err, EIO, "an L2 table is not aligned", "comparing the tables of '%s'",
                            c->node->name);
    return blk_child_pread(qcow2_file(c->node), offset, s->cluster_bytes, buf, err);
}

/* Whether both mean the same data. COPIED is only about who else has it. */
static bool is_same_entry(struct qcow2_entry a, struct qcow2_entry b)
{
    uint64_t copied = a.entry & b.entry & QCOW2_ENTRY_COMPRESSED ? 0 : QCOW2_ENTRY_COPIED;
    return (a.entry | copied) == (b.entry | copied) && a.bitmap == b.bitmap;
}

static int compare_l2(struct comparison *c, uint64_t guest, uint64_t before, uint64_t after,
                      struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(c->node);
    int ret = read_l2_or_zeroes(c, before, c->before, err);
    if (ret == 0)
        ret = read_l2_or_zeroes(c, after, c->after, err);
    if (ret < 0)
        return ret;
    for (uint32_t i = 0; i < s->l2_entries; i++)
        if (!is_same_entry(qcow2_entry_get(s, c->before, i), qcow2_entry_get(s, c->after, i)))
            blk_dirty_bitmap_set(c->changed, guest + ((uint64_t)i << s->cluster_bits),
                                 s->cluster_bytes);
    return 0;
}

static int compare(struct comparison *c, const uint64_t *before, uint64_t before_entries,
                   const uint64_t *after, uint64_t after_entries, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(c->node);
    uint64_t per_table = (uint64_t)s->l2_entries << s->cluster_bits;
    int ret = 0;

    for (uint64_t i = 0; i < u64_max(before_entries, after_entries) && ret == 0; i++) {
        uint64_t from = l1_entry(before, before_entries, i);
        uint64_t to = l1_entry(after, after_entries, i);
        if (from != to && i * per_table < c->changed->size)
            ret = compare_l2(c, i * per_table, from, to, err);
    }
    return ret;
}

/* Gathers what differs between the active L1, of which nothing is pending, and the other. */
static int gather(struct comparison *c, const uint64_t *l1, uint32_t l1_entries,
                  struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(c->node);
    BLK_AUTOFREE uint64_t *active = NULL;

    c->before = blk_buffer_alloc(s->cluster_bytes);
    c->after = blk_buffer_alloc(s->cluster_bytes);
    int ret = c->before && c->after
                  ? 0
                  : blk_fail(err, ENOMEM, "comparing the tables of '%s'", c->node->name);
    if (ret == 0)
        ret = qcow2_read_table(c->node, &qcow2_l1_kind, s->header.l1_offset, s->header.l1_entries,
                               &active, err);
    if (ret == 0)
        ret = compare(c, active, s->header.l1_entries, l1, l1_entries, err);
    free(c->before);
    free(c->after);
    return ret;
}

static int new_gathered(const struct blk_node *node, uint64_t size,
                        struct blk_dirty_bitmap **changed, struct blk_error *err)
{
    unsigned granularity_bits = qcow2_state(node)->cluster_bits;

    while (granularity_bits < BLK_BITMAP_MAX_GRANULARITY_BITS &&
           size >> granularity_bits > MAX_GATHERED_BITS)
        granularity_bits++;
    return blk_dirty_bitmap_new("changed", size, granularity_bits, changed, err);
}

int qcow2_bitmaps_begin_apply(struct blk_node *node, const uint64_t *l1, uint32_t l1_entries,
                              uint64_t size, struct blk_dirty_bitmap **changed,
                              struct blk_error *err)
{
    struct comparison c = { .node = node };
    uint64_t old_size = blk_size(node);

    *changed = NULL;
    if (!node->bitmaps || !node->bitmaps->first)
        return 0;
    int ret = qcow2_commit_all(node, err);
    if (ret == 0)
        ret = new_gathered(node, u64_max(size, old_size), &c.changed, err);
    if (ret < 0)
        return ret;
    ret = gather(&c, l1, l1_entries, err);
    if (ret == 0 && size > old_size)
        blk_dirty_bitmap_set(c.changed, old_size, size - old_size);
    if (ret == 0 && size != old_size)
        ret = qcow2_bitmaps_suspend(node, size, err);
    if (ret == 0 && blk_dirty_bitmap_count(c.changed))
        ret = blk_bitmaps_will_write(node, 0, 0, err);
    if (ret == 0)
        *changed = c.changed;
    else
        blk_dirty_bitmap_free(c.changed);
    return ret;
}

int qcow2_bitmaps_end_apply(struct blk_node *node, uint64_t size,
                            const struct blk_dirty_bitmap *changed, struct blk_error *err)
{
    uint64_t offset = 0, start, bytes;

    if (!changed)
        return 0;
    int ret = blk_bitmaps_resize(node, size, err);
    while (blk_dirty_bitmap_next(changed, offset, size, &start, &bytes)) {
        blk_bitmaps_did_write(node, start, bytes);
        offset = start + bytes;
    }
    return ret;
}
