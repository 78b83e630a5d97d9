/* SPDX-License-Identifier: MIT */
/*
 * All structures of an image that refer to host clusters, in the order in which they are counted.
 */
#include <errno.h>
#include <inttypes.h>

#include "blockcore/base/memory.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"

static void collect_encryption_header(struct qcow2_check *check)
{
    const struct qcow2_extension *luks =
        qcow2_tail_find(&qcow2_state(check->node)->tail, QCOW2_EXT_LUKS);
    if (luks && luks->bytes == 16)
        qcow2_check_add_table(check, be64_get(luks->data), be64_get(luks->data + 8),
                              "the encryption header");
}

/*
 * A refcount table that cannot be where the header says is not counted: other structures may be
 * there.
 */
static bool can_have_refcount_table(struct qcow2_check *check, uint64_t bytes)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = s->header.reftable_offset;

    if (!bytes)
        qcow2_check_corruption(check, "there is no refcount table");
    else if (bytes > QCOW2_MAX_REFTABLE_BYTES)
        qcow2_check_corruption(check, "the refcount table is larger than 8 MiB");
    else if (offset % s->cluster_bytes || !range_within(offset, bytes, QCOW2_MAX_HOST_OFFSET))
        qcow2_check_corruption(check, "the refcount table has the invalid offset 0x%" PRIx64,
                               offset);
    else if (range_within(offset, bytes, blk_size(qcow2_file(check->node))))
        return true;
    else
        qcow2_check_past_end(check, offset, "the refcount table");
    return false;
}

static int collect_refcount_structure(struct qcow2_check *check, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t bytes = (uint64_t)s->header.reftable_clusters * s->cluster_bytes;
    BLK_AUTOFREE uint64_t *table = NULL;

    if (!can_have_refcount_table(check, bytes) ||
        !qcow2_check_add_refs(check, s->header.reftable_offset, bytes, QCOW2_USE_OTHER, 1,
                              "the refcount table")) {
        check->broken_counts = true;
        return 0;
    }
    int ret = qcow2_read_table(check->node, &qcow2_reftable_kind, s->header.reftable_offset,
                               bytes / 8, &table, err);
    for (uint64_t i = 0; i < bytes / 8 && ret == 0; i++) {
        uint64_t offset = table[i] & QCOW2_REFTABLE_OFFSET;
        if (table[i] & QCOW2_REFTABLE_RESERVED || offset % s->cluster_bytes ||
            offset / s->cluster_bytes >= check->clusters) {
            qcow2_check_corruption(
                check, "refcount block %" PRIu64 " has the invalid offset 0x%" PRIx64, i, table[i]);
            check->broken_counts = true;
        } else if (offset &&
                   !range_within(offset, s->cluster_bytes, blk_size(qcow2_file(check->node)))) {
            qcow2_check_past_end(check, offset, "a refcount block");
            check->broken_counts = true;
        } else if (offset && !qcow2_check_add_refs(check, offset, s->cluster_bytes, QCOW2_USE_OTHER,
                                                   1, "a refcount block")) {
            check->broken_counts = true;
        }
    }
    return ret;
}

int qcow2_check_collect(struct qcow2_check *check, bool refcount_structure, struct blk_error *err)
{
    qcow2_check_add_refs(check, 0, qcow2_state(check->node)->cluster_bytes, QCOW2_USE_OTHER, 1,
                         "the header");
    int ret = qcow2_check_l1_tables(check, err);
    if (ret == 0)
        ret = qcow2_check_bitmaps(check, err);
    collect_encryption_header(check);
    if (ret == 0 && refcount_structure)
        ret = collect_refcount_structure(check, err);
    if (ret == 0 && check->no_memory)
        ret = blk_fail(err, ENOMEM, "checking '%s'", check->node->name);
    return ret;
}
