/* SPDX-License-Identifier: MIT */
/*
 * What an L1 table reaches, for operations that switch the whole image to new tables (C8):
 * create, apply and delete of snapshots. Everything works on the new counts of a shadow; what is
 * stored is only read, and new tables go to clusters that are free before and after the switch.
 *
 * A cluster's count is the number of paths to it: each L1 table that reaches an L2 table counts
 * that and all that its entries point to. COPIED is accurate in the active L1 and its L2 tables
 * only. A snapshot keeps the tables that it was taken with, flags included.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/snapshot/snapshot.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/map.h"
#include "drivers/qcow2/tables/shadow.h"

static int damaged_tree(const struct qcow2_shadow *shadow, struct blk_error *err, const char *what,
                        uint64_t offset)
{
    return blk_fail_why(err, EIO, "the image is damaged (see check)",
                        "following the tables of '%s': %s at offset %#" PRIx64, shadow->node->name,
                        what, offset);
}

/* Whether the live structure has counts for the range; beyond, nothing can have been allocated. */
static bool is_countable(const struct qcow2_shadow *shadow, uint64_t offset, uint64_t bytes)
{
    return range_within(offset, bytes, shadow->clusters << qcow2_state(shadow->node)->cluster_bits);
}

/* Reads the L2 table of an L1 entry into buf. */
static int read_tree_l2(const struct qcow2_shadow *shadow, uint64_t l1_entry, uint8_t *buf,
                        struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    uint64_t offset = l1_entry & QCOW2_ENTRY_OFFSET;

    if (blk_cancelled())
        return blk_fail_why(err, ECANCELED, "stopped by a signal", "reading the tables of '%s'",
                            shadow->node->name);
    if (offset % s->cluster_bytes || !is_countable(shadow, offset, s->cluster_bytes))
        return damaged_tree(shadow, err, "an L2 table", offset);
    return blk_child_pread(qcow2_file(shadow->node), offset, s->cluster_bytes, buf, err);
}

/* The host range that an L2 entry holds a reference to; *bytes is 0 when there is none. */
static int entry_range(const struct qcow2_shadow *shadow, uint64_t entry, uint64_t *offset,
                       uint64_t *bytes, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);

    if (entry & QCOW2_ENTRY_COMPRESSED) {
        *offset = qcow2_compressed_offset(entry, s->cluster_bits);
        *bytes = qcow2_compressed_bytes(entry, s->cluster_bits);
    } else {
        *offset = entry & QCOW2_ENTRY_OFFSET;
        *bytes = *offset ? s->cluster_bytes : 0;
        if (*offset % s->cluster_bytes)
            return damaged_tree(shadow, err, "a data cluster", *offset);
    }
    if (!is_countable(shadow, *offset, *bytes))
        return damaged_tree(shadow, err, "a data cluster", *offset);
    return 0;
}

/* ---- counting ---- */

/*
 * How many entries from there on are like the first, but for the next cluster: then `*bytes` grows
 * to the host range of all.
 */
static uint32_t lengthen_range(const struct qcow2_shadow *shadow, const uint8_t *entries,
                               uint32_t most, uint64_t offset, uint64_t *bytes)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);

    if (s->extended || be64_get(entries) & QCOW2_ENTRY_COMPRESSED || !*bytes)
        return 1;
    uint64_t clusters = shadow->clusters - (offset >> s->cluster_bits);
    most = qcow2_entries_in_row(entries, (uint32_t)u64_min(most, clusters), s->cluster_bytes);
    *bytes = (uint64_t)most << s->cluster_bits;
    return most;
}

static int count_l2(struct qcow2_shadow *shadow, const uint8_t *l2, int delta,
                    struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    int ret = 0;

    for (uint32_t i = 0, length; i < s->l2_entries && ret == 0; i += length) {
        const uint8_t *at = l2 + (uint64_t)i * s->l2_entry_bytes;
        uint64_t entry = be64_get(at), offset, bytes;
        length = 1;
        if (!entry)
            continue;
        ret = entry_range(shadow, entry, &offset, &bytes, err);
        if (ret < 0 || !bytes)
            continue;
        length = lengthen_range(shadow, at, s->l2_entries - i, offset, &bytes);
        ret = qcow2_shadow_add(shadow, offset, bytes, delta, err);
    }
    return ret;
}

int qcow2_tree_count(struct qcow2_shadow *shadow, const uint64_t *l1, uint64_t entries, int delta,
                     struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    BLK_AUTOFREE uint8_t *l2 = blk_buffer_alloc(s->cluster_bytes);
    if (!l2)
        return blk_fail(err, ENOMEM, "reading the tables of '%s'", shadow->node->name);

    for (uint64_t i = 0; i < entries; i++) {
        uint64_t offset = l1[i] & QCOW2_ENTRY_OFFSET;
        if (!offset)
            continue;
        int ret = read_tree_l2(shadow, l1[i], l2, err);
        if (ret == 0)
            ret = count_l2(shadow, l2, delta, err);
        if (ret == 0)
            ret = qcow2_shadow_add(shadow, offset, s->cluster_bytes, delta, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- flags ---- */

static uint64_t entry_with_copied(uint64_t entry, bool copied)
{
    return copied ? entry | QCOW2_ENTRY_COPIED : entry & ~QCOW2_ENTRY_COPIED;
}

/* Corrects the flags of an L2 table in memory; returns whether one was wrong. */
static bool correct_l2(const struct qcow2_shadow *shadow, uint8_t *l2)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    bool changed = false;

    for (uint32_t i = 0; i < s->l2_entries; i++) {
        uint8_t *p = l2 + (uint64_t)i * s->l2_entry_bytes;
        uint64_t entry = be64_get(p), offset = entry & QCOW2_ENTRY_OFFSET;
        if (!entry)
            continue;
        bool copied = !(entry & QCOW2_ENTRY_COMPRESSED) && offset &&
                      qcow2_shadow_get(shadow, offset >> s->cluster_bits) == 1;
        uint64_t correct = entry_with_copied(entry, copied);
        if (correct == entry)
            continue;
        be64_put(p, correct);
        changed = true;
    }
    return changed;
}

/* Puts the L2 table into a new place, which *l1_entry then names. */
static int move_l2(struct qcow2_shadow *shadow, uint64_t *l1_entry, const uint8_t *l2,
                   struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    uint64_t offset;

    int ret = qcow2_shadow_alloc(shadow, s->cluster_bytes, &offset, err);
    if (ret < 0)
        return ret;
    ret = blk_child_pwrite(qcow2_file(shadow->node), offset, s->cluster_bytes, l2, 0, err);
    if (ret < 0)
        return ret;
    ret = qcow2_shadow_add(shadow, *l1_entry & QCOW2_ENTRY_OFFSET, s->cluster_bytes, -1, err);
    if (ret < 0)
        return ret;
    *l1_entry = offset | QCOW2_ENTRY_COPIED;
    return 0;
}

int qcow2_tree_set_copied(struct qcow2_shadow *shadow, uint64_t *l1, uint64_t entries,
                          bool *changed, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(shadow->node);
    BLK_AUTOFREE uint8_t *l2 = blk_buffer_alloc(s->cluster_bytes);
    if (!l2)
        return blk_fail(err, ENOMEM, "reading the tables of '%s'", shadow->node->name);

    *changed = false;
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t offset = l1[i] & QCOW2_ENTRY_OFFSET, before = l1[i];
        if (!offset)
            continue;
        int ret = read_tree_l2(shadow, l1[i], l2, err);
        if (ret == 0 && correct_l2(shadow, l2)) {
            ret = move_l2(shadow, &l1[i], l2, err);
        } else if (ret == 0) {
            bool once = qcow2_shadow_get(shadow, offset >> s->cluster_bits) == 1;
            l1[i] = entry_with_copied(l1[i], once);
        }
        if (ret < 0)
            return ret;
        *changed |= l1[i] != before;
    }
    return 0;
}

int qcow2_tree_write_l1(struct qcow2_shadow *shadow, const uint64_t *l1, uint64_t entries,
                        uint64_t *offset, struct blk_error *err)
{
    uint64_t bytes = round_up(entries * 8, BLK_SECTOR_BYTES);
    *offset = 0;
    if (!entries)
        return 0;
    BLK_AUTOFREE uint8_t *buf = blk_buffer_alloc(bytes);
    if (!buf)
        return blk_fail(err, ENOMEM, "writing the L1 table of '%s'", shadow->node->name);
    memset(buf, 0, bytes);
    for (uint64_t i = 0; i < entries; i++)
        be64_put(buf + i * 8, l1[i]);
    int ret = qcow2_shadow_alloc(shadow, bytes, offset, err);
    return ret < 0 ? ret : blk_child_pwrite(qcow2_file(shadow->node), *offset, bytes, buf, 0, err);
}
