/* SPDX-License-Identifier: MIT */
/*
 * Another active L1 table. It is written next to the old one, with nothing pending the header is
 * switched to it (C4), and then the old one is freed.
 */
#include "drivers/qcow2/tables/new_l1.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/frees.h"
#include "drivers/qcow2/tables/l1.h"
#include "drivers/qcow2/tables/metadata.h"

int qcow2_l1_write(struct blk_node *node, const uint64_t *table, uint32_t count, uint32_t entries,
                   uint64_t *offset, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t bytes = round_up(u64_max((uint64_t)entries * 8, 8), s->cluster_bytes);

    blk_event(qcow2_file(node), BLK_EVENT_L1_GROW_ALLOC_TABLE);
    uint8_t *buf = blk_buffer_alloc(bytes);
    if (!buf)
        return blk_fail(err, ENOMEM, "writing an L1 table of '%s'", node->name);
    memset(buf, 0, bytes);
    for (uint32_t i = 0; i < count; i++)
        be64_put(buf + (size_t)i * 8, table[i]);

    qcow2_lock(s);
    int ret = qcow2_metadata_load(node, err);
    if (ret == 0)
        ret = qcow2_alloc(node, bytes, offset, err);
    qcow2_unlock(s);
    if (ret == 0) {
        blk_event(qcow2_file(node), BLK_EVENT_L1_GROW_WRITE_TABLE);
        ret = blk_child_pwrite(qcow2_file(node), *offset, bytes, buf, 0, err);
    }
    free(buf);
    return ret;
}

int qcow2_l1_activate(struct blk_node *node, uint64_t offset, uint64_t *table, uint32_t entries,
                      enum qcow2_free_why why, struct blk_error *err)
{
    ASSERT_ALONE();
    struct qcow2_state *s = qcow2_state(node);
    uint8_t *dirty = calloc(div_round_up((uint64_t)entries * 8, s->l1_unit) + 1, 1);
    if (!dirty)
        return blk_fail(err, ENOMEM, "changing the L1 table of '%s'", node->name);

    int ret = qcow2_commit_all(node, err);
    if (ret == 0) {
        struct qcow2_header next = s->header;
        next.l1_offset = offset;
        next.l1_entries = entries;
        blk_event(qcow2_file(node), BLK_EVENT_L1_GROW_ACTIVATE_TABLE);
        ret = qcow2_header_switch(node, &next, err);
    }
    if (ret < 0) {
        free(dirty);
        return ret;
    }
    QCOW2_LOCK_SCOPE(s);
    qcow2_free_later(node, s->l1_offset, (uint64_t)s->l1_entries * 8, why);
    free(s->l1);
    free(s->l1_dirty);
    s->l1 = table;
    s->l1_dirty = dirty;
    s->l1_any_dirty = false;
    s->l1_entries = entries;
    s->l1_offset = offset;
    return 0;
}

int qcow2_grow_l1(struct blk_node *node, uint64_t entries, struct blk_error *err)
{
    ASSERT_ALONE();
    struct qcow2_state *s = qcow2_state(node);
    int ret = qcow2_l1_fetch(node, err);
    if (ret < 0 || entries <= s->l1_entries)
        return ret;
    if (entries > QCOW2_MAX_L1_BYTES / 8)
        return blk_fail_why(err, EFBIG, "its L1 table would become too large", "resizing '%s'",
                            node->name);
    /* The table is copied as it is: it must not change between here and the switch. */
    ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;
    uint64_t *table = calloc(entries, sizeof(*table));
    if (!table)
        return blk_fail(err, ENOMEM, "resizing '%s'", node->name);
    memcpy(table, s->l1, (size_t)s->l1_entries * 8);

    uint64_t offset;
    ret = qcow2_l1_write(node, table, s->l1_entries, (uint32_t)entries, &offset, err);
    if (ret == 0)
        ret = qcow2_l1_activate(node, offset, table, (uint32_t)entries, QCOW2_FREE_OTHER, err);
    if (ret < 0)
        free(table);
    return ret;
}
