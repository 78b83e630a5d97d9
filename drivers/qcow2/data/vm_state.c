/* SPDX-License-Identifier: MIT */
/*
 * The state of a machine, in the same tables as the disk: it begins at the first L1 entry that the
 * disk does not need, and internal snapshots keep it with the disk. Only a snapshot says how long
 * it is. No backing file shows through here.
 */
#include <errno.h>

#include "blockcore/base/units.h"
#include "blockcore/graph/events.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/l1.h"
#include "drivers/qcow2/tables/new_l1.h"

/* Where in the guest's address space the range is. */
static int locate_vm_state(const struct blk_node *node, uint64_t offset, uint64_t bytes,
                           uint64_t *at, struct blk_error *err)
{
    uint64_t start = qcow2_vm_state_offset(node);
    if (!range_within(offset, bytes, BLK_MAX_BYTES - start))
        return blk_fail_why(err, EFBIG, "no image reaches that far", "machine state of '%s'",
                            node->name);
    *at = start + offset;
    return 0;
}

static int qcow2_vm_state_read(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                               struct blk_error *err)
{
    ASSERT_ALONE();
    uint64_t at = 0;
    int ret = locate_vm_state(node, offset, bytes, &at, err);
    if (ret < 0)
        return ret;
    blk_event(qcow2_file(node), BLK_EVENT_VMSTATE_LOAD);
    return qcow2_pread(node, at, bytes, buf, err);
}

static int qcow2_vm_state_write(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                const void *buf, struct blk_error *err)
{
    ASSERT_ALONE();
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t at = 0, entries;
    int ret = locate_vm_state(node, offset, bytes, &at, err);
    if (ret < 0)
        return ret;

    blk_event(qcow2_file(node), BLK_EVENT_VMSTATE_SAVE);
    /* By whole clusters of the table: what is saved grows piece by piece. */
    entries = qcow2_l1_entries_for(at + bytes, s->cluster_bits, s->extended);
    if (entries > s->header.l1_entries)
        ret = qcow2_grow_l1(node, round_up(entries, s->cluster_bytes / 8), err);
    return ret < 0 ? ret : qcow2_pwrite(node, at, bytes, buf, 0, err);
}

const struct blk_vm_state_ops qcow2_vm_state_ops = {
    .read = qcow2_vm_state_read,
    .write = qcow2_vm_state_write,
};
