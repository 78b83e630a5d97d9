/* SPDX-License-Identifier: MIT */
/*
 * Reading tables, and where the file ends.
 *
 * A file that was cut off reads as zeroes behind its end, which nobody wrote: so every read of a
 * table, and of guest data, first asks whether the file reaches that far. Where it ends inside a
 * cluster of data, that need not be whole, as long as nothing has shown that the file was longer
 * once. A table is always written whole, by every program.
 */
#include "drivers/qcow2/medium.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/state.h"

/* ---- the end of the file ---- */

bool qcow2_is_cut_off(const struct blk_node *node, const struct blk_node *file, uint64_t offset,
                      uint64_t bytes)
{
    const struct qcow2_state *s = qcow2_state(node);
    /* A check judges by itself. A file that others are writing may be longer than it was. */
    if (node->flags & (BLK_IN_CHECK | BLK_FORCE_SHARE))
        return false;
    /* The last cluster need not be whole, unless the file is known to have been longer. */
    bool exact = file == qcow2_file(node) && atomic_load(&s->saw_cut);
    uint64_t end = blk_size(file);
    return !range_within(offset, bytes, exact ? end : round_up(end, s->cluster_bytes));
}

int qcow2_fail_cut_short(const struct blk_node *file, uint64_t offset, const char *what,
                         struct blk_error *err)
{
    char why[96];
    snprintf(why, sizeof(why), "the file is cut short at %" PRIu64, blk_size(file));
    return blk_fail_why(err, EIO, why, "reading the %s at offset %" PRIu64 " of '%s'", what, offset,
                        file->name);
}

int qcow2_check_cut_off(const struct blk_node *node, const struct blk_node *file, uint64_t offset,
                        uint64_t bytes, const char *what, struct blk_error *err)
{
    if (!qcow2_is_cut_off(node, file, offset, bytes))
        return 0;
    atomic_store(&qcow2_state(node)->saw_damage, true);
    if (file == qcow2_file(node))
        atomic_store(&qcow2_state(node)->saw_cut, true);
    return qcow2_fail_cut_short(file, offset, what, err);
}

uint64_t qcow2_bytes_there(const struct blk_node *node, const struct blk_node *file,
                           uint64_t offset, uint64_t bytes)
{
    uint64_t end = blk_size(file);
    if (node->flags & BLK_FORCE_SHARE)
        return bytes;
    return offset < end ? u64_min(bytes, end - offset) : 0;
}

/* ---- tables ---- */

const struct qcow2_table_kind qcow2_l1_kind = { "L1 table", QCOW2_MAX_L1_BYTES };
const struct qcow2_table_kind qcow2_snapshot_l1_kind = {
    "L1 table of a snapshot",
    QCOW2_MAX_L1_BYTES,
};
const struct qcow2_table_kind qcow2_reftable_kind = { "refcount table", QCOW2_MAX_REFTABLE_BYTES };

/* A table is there to the byte, or has lost something. */
static int check_table_whole(const struct blk_node *node, uint64_t offset, uint64_t bytes,
                             const char *what, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    const struct blk_node *file = qcow2_file(node);

    if (node->flags & (BLK_IN_CHECK | BLK_FORCE_SHARE) ||
        range_within(offset, bytes, blk_size(file)))
        return 0;
    atomic_store(&s->saw_damage, true);
    atomic_store(&s->saw_cut, true);
    return qcow2_fail_cut_short(file, offset, what, err);
}

int qcow2_read_table(struct blk_node *node, const struct qcow2_table_kind *kind, uint64_t offset,
                     uint64_t entries, uint64_t **table, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    const char *what = kind->name;
    *table = NULL;
    if (entries > kind->max_bytes / 8)
        return blk_fail_why(err, EFBIG, "it is too large", "reading the %s of '%s'", what,
                            node->name);
    if (offset & (s->cluster_bytes - 1) ||
        !range_within(offset, entries * 8, QCOW2_MAX_HOST_OFFSET))
        return blk_fail_why(err, EIO, "its offset is invalid", "reading the %s of '%s'", what,
                            node->name);

    int ret = check_table_whole(node, offset, entries * 8, what, err);
    if (ret < 0)
        return ret;
    uint64_t *buf = blk_malloc(entries ? entries * 8 : 8);
    if (!buf)
        return blk_fail(err, ENOMEM, "reading the %s of '%s'", what, node->name);
    ret = blk_child_pread(qcow2_file(node), offset, entries * 8, buf, err);
    if (ret < 0) {
        free(buf);
        return ret;
    }
    for (uint64_t i = 0; i < entries; i++)
        buf[i] = be64_get(&buf[i]);
    *table = buf;
    return 0;
}

int qcow2_cache_get(struct blk_node *node, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_table **table, struct blk_error *err)
{
    *table = qcow2_cache_find(cache, offset);
    if (*table)
        return 0;

    ASSERT_LOCKED(cache->lock);
    int ret = check_table_whole(node, offset, cache->entry_bytes, "table", err);
    if (ret < 0)
        return ret;
    struct qcow2_table *loaded = qcow2_cache_insert(cache, offset);
    if (!loaded)
        return blk_fail(err, ENOMEM, "reading a table of '%s'", node->name);
    blk_event(qcow2_file(node), cache->load_event);
    ret = blk_child_pread(qcow2_file(node), offset, cache->entry_bytes, loaded->data, err);
    if (ret < 0) {
        qcow2_cache_drop(cache, offset, cache->entry_bytes);
        return ret;
    }
    *table = loaded;
    return 0;
}
