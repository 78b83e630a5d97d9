/* SPDX-License-Identifier: MIT */
/*
 * The active L1 table in memory. It is read as a whole when it is first needed; what changes in it
 * is noted in units that an epoch writes.
 */
#include "drivers/qcow2/tables/l1.h"

#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/refcount.h"

static int load_l1(struct blk_node *node, uint64_t offset, uint32_t entries, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    uint64_t *table;
    int ret = qcow2_read_table(node, &qcow2_l1_kind, offset, entries, &table, err);
    if (ret < 0)
        return ret;
    uint8_t *dirty = blk_calloc(div_round_up((uint64_t)entries * 8, s->l1_unit) + 1, 1);
    if (!dirty) {
        free(table);
        return blk_fail(err, ENOMEM, "reading the L1 table of '%s'", node->name);
    }
    free(s->l1);
    free(s->l1_dirty);
    s->l1 = table;
    s->l1_dirty = dirty;
    s->l1_entries = entries;
    s->l1_offset = offset;
    return 0;
}

/*
 * A new image may end before an L1 table of zeroes that nobody wrote. A file that was cut short
 * looks the same but for its refcounts: they count what the table led to.
 */
static bool was_never_filled(struct blk_node *node)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t structure = 1 + s->header.reftable_clusters +
                         div_round_up((uint64_t)s->header.l1_entries * 8, s->cluster_bytes);
    uint64_t in_use = 0, blocks = 0;

    if (s->header.snapshot_count || s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS ||
        qcow2_reftable_load(node, NULL) < 0)
        return false;
    for (uint64_t i = 0; i < s->reftable_entries; i++) {
        blocks += s->reftable[i] != 0;
        for (uint64_t j = 0; s->reftable[i] && j < s->refblock_entries; j++) {
            uint64_t count;
            if (qcow2_refcount(node, i * s->refblock_entries + j, &count, NULL) < 0)
                return false;
            in_use += count != 0;
            if (in_use > structure + blocks)
                return false;
        }
        if (blocks > 16)
            return false; /* this many mean data */
    }
    return blocks > 0;
}

/* [locked] An L1 table of nothing. */
static int make_empty_l1(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    uint64_t bytes = (uint64_t)s->header.l1_entries * 8;

    s->l1 = calloc(1, u64_max(bytes, 8));
    s->l1_dirty = calloc(div_round_up(bytes, s->l1_unit) + 1, 1);
    if (s->l1 && s->l1_dirty)
        return 0;
    free(s->l1);
    free(s->l1_dirty);
    s->l1 = NULL;
    s->l1_dirty = NULL;
    return blk_fail(err, ENOMEM, "reading the L1 table of '%s'", node->name);
}

int qcow2_l1_load(struct blk_node *node, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);

    if (s->l1)
        return 0;
    if (!blk_is_writable(node) && s->header.l1_offset >= blk_size(qcow2_file(node)) &&
        was_never_filled(node))
        return make_empty_l1(node, err);
    return load_l1(node, s->header.l1_offset, s->header.l1_entries, err);
}

int qcow2_l1_fetch(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    QCOW2_LOCK_SCOPE(s);
    return qcow2_l1_load(node, err);
}

int qcow2_use_l1(struct blk_node *node, uint64_t offset, uint32_t entries, uint64_t size,
                 struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t needed = qcow2_l1_entries_for(size, s->cluster_bits, s->extended);
    if (entries < needed)
        return blk_fail_why(err, EIO, "its L1 table is too small for its size",
                            "reading a snapshot of '%s'", node->name);
    qcow2_lock(s);
    int ret = load_l1(node, offset, entries, err);
    qcow2_unlock(s);
    if (ret == 0)
        blk_node_set_size(node, size);
    return ret;
}

void qcow2_l1_set(struct blk_node *node, uint32_t index, uint64_t entry)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    s->l1[index] = entry;
    s->l1_dirty[(uint64_t)index * 8 / s->l1_unit] = 1;
    s->l1_any_dirty = true;
}

uint64_t qcow2_vm_state_offset(const struct blk_node *node)
{
    const struct qcow2_state *s = qcow2_state(node);
    return qcow2_l1_entries_for(blk_size(node), s->cluster_bits, s->extended) * s->l2_entries *
           s->cluster_bytes;
}
