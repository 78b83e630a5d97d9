/* SPDX-License-Identifier: MIT */
/*
 * Reads the L2 tables of an image for a check. Small tables often lie one after the other: the longer
 * such a row is, the more is read at once, so that no more is read for nothing than was of use.
 */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/state.h"

#define MOST_BYTES (128 * KIB)

int qcow2_check_tables_begin(struct qcow2_check *check, struct qcow2_check_tables *tables,
                             struct blk_error *err)
{
    uint64_t room = u64_max(qcow2_state(check->node)->cluster_bytes, MOST_BYTES);

    *tables = (struct qcow2_check_tables){
        .check = check,
        .buf = blk_buffer_alloc(room),
        .room = room,
    };
    return tables->buf ? 0 : blk_fail(err, ENOMEM, "checking '%s'", check->node->name);
}

void qcow2_check_tables_end(struct qcow2_check_tables *tables)
{
    free(tables->buf);
    tables->buf = NULL;
}

/* Reads the table at `offset`, and of what follows as much as has come in this row so far. */
static int read_row(struct qcow2_check_tables *tables, uint64_t offset, struct blk_error *err)
{
    struct blk_node *file = qcow2_file(tables->check->node);
    uint64_t cluster_bytes = qcow2_state(tables->check->node)->cluster_bytes;
    uint64_t bytes = u64_min(u64_max(tables->row, cluster_bytes), tables->room);

    bytes =
        u64_min(bytes, u64_max(blk_size(file) - u64_min(offset, blk_size(file)), cluster_bytes));
    bytes = round_down(bytes, cluster_bytes);
    tables->offset = offset;
    tables->bytes = 0;
    int ret = blk_child_pread(file, offset, bytes, tables->buf, NULL);
    /* What follows may be damaged where this table is not, and only what is needed is reported. */
    if (ret < 0) {
        bytes = cluster_bytes;
        ret = blk_child_pread(file, offset, bytes, tables->buf, err);
    }
    if (ret == 0)
        tables->bytes = bytes;
    return ret;
}

int qcow2_check_tables_get(struct qcow2_check_tables *tables, uint64_t offset, uint8_t **table,
                           struct blk_error *err)
{
    uint64_t cluster_bytes = qcow2_state(tables->check->node)->cluster_bytes;
    uint64_t end = tables->offset + tables->bytes;
    int ret = 0;

    if (offset < tables->offset || offset >= end) {
        tables->row = offset == end ? tables->row : 0;
        ret = read_row(tables, offset, err);
    }
    tables->row += cluster_bytes;
    *table = tables->buf + (offset - tables->offset);
    return ret;
}
