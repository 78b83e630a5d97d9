/* SPDX-License-Identifier: MIT */
/*
 * The table of internal snapshots: a list of entries of different lengths.
 *
 * A legal table has up to 65536 entries in 64 MiB, and listing them needs little of each. So it is
 * read through a window that holds at least one entry; only a change of the table has it in memory
 * as a whole. Entries that are kept are copied as they are stored, with whatever a later version of
 * the format put into them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/snapshot/snapshot.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/shadow.h"

/* Extra data; each field is there if the extra data are long enough. */
enum extra_field { EXTRA_VM_STATE_BYTES = 0, EXTRA_DISK_BYTES = 8, EXTRA_ICOUNT = 16 };
#define EXTRA_KNOWN_BYTES 24

#define MAX_ENTRY_BYTES (QCOW2_SNAPSHOT_AT_EXTRA + QCOW2_MAX_SNAPSHOT_EXTRA + 2 * UINT16_MAX)
#define WINDOW_BYTES (256 * KIB)
_Static_assert(WINDOW_BYTES >= MAX_ENTRY_BYTES, "an entry fits into the window");

/* ---- reading ---- */

/* The part of the table that is in memory. Offsets are relative to the table's beginning. */
struct table_window {
    struct blk_node *node;
    uint8_t *buf;
    uint8_t *cut;        /* for a check: an entry whose extra data are cut down */
    uint64_t start, end; /* of what buf holds */
    uint64_t limit;      /* where the table must end: the file, or the limit on its size */
};

static int damaged_table(const struct blk_node *node, int code, struct blk_error *err,
                         const char *why)
{
    return blk_fail_why(err, code, why, "reading the snapshot table of '%s'", node->name);
}

/* Brings [at, at + bytes) into the window; *data points to it. */
static int bring_into_window(struct table_window *window, uint64_t at, uint64_t bytes,
                             const uint8_t **data, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(window->node);
    if (!range_within(at, bytes, window->limit))
        return at + bytes > QCOW2_MAX_SNAPSHOTS_BYTES && !window->cut
                   ? damaged_table(window->node, EFBIG, err, "it is larger than 64 MiB")
                   : damaged_table(window->node, EINVAL, err, "the file is too short for it");

    if (at < window->start || at + bytes > window->end) {
        uint64_t length = u64_min(WINDOW_BYTES, window->limit - at);
        int ret = blk_child_pread(qcow2_file(window->node), s->header.snapshots_offset + at, length,
                                  window->buf, err);
        if (ret < 0)
            return ret;
        window->start = at;
        window->end = at + length;
    }
    *data = window->buf + (at - window->start);
    return 0;
}

static void decode(const struct qcow2_state *s, const uint8_t *p, struct qcow2_snapshot *snapshot)
{
    const uint8_t *extra = p + QCOW2_SNAPSHOT_AT_EXTRA;
    uint32_t extra_bytes = be32_get(p + QCOW2_SNAPSHOT_AT_EXTRA_BYTES);
    uint16_t id_bytes = be16_get(p + QCOW2_SNAPSHOT_AT_ID_BYTES),
             name_bytes = be16_get(p + QCOW2_SNAPSHOT_AT_NAME_BYTES);

    *snapshot = (struct qcow2_snapshot){
        .l1_offset = be64_get(p + QCOW2_SNAPSHOT_AT_L1_OFFSET),
        .l1_entries = be32_get(p + QCOW2_SNAPSHOT_AT_L1_ENTRIES),
        .id = blk_xstrndup((const char *)extra + extra_bytes, id_bytes),
        .name = blk_xstrndup((const char *)extra + extra_bytes + id_bytes, name_bytes),
        .date_seconds = be32_get(p + QCOW2_SNAPSHOT_AT_SECONDS),
        .date_nanoseconds = be32_get(p + QCOW2_SNAPSHOT_AT_NANOSECONDS),
        .vm_clock_ns = be64_get(p + QCOW2_SNAPSHOT_AT_VM_CLOCK),
        .vm_state_bytes = be32_get(p + QCOW2_SNAPSHOT_AT_VM_STATE_BYTES),
        .disk_bytes = s->header.size,
        .icount = UINT64_MAX,
        .extra_bytes = extra_bytes,
        .raw = p,
        .raw_bytes = QCOW2_SNAPSHOT_AT_EXTRA + extra_bytes + id_bytes + name_bytes,
        .stored_bytes = QCOW2_SNAPSHOT_AT_EXTRA + (uint64_t)extra_bytes + id_bytes + name_bytes,
    };
    if (extra_bytes >= EXTRA_VM_STATE_BYTES + 8)
        snapshot->vm_state_bytes = be64_get(extra + EXTRA_VM_STATE_BYTES);
    if (extra_bytes >= EXTRA_DISK_BYTES + 8)
        snapshot->disk_bytes = be64_get(extra + EXTRA_DISK_BYTES);
    if (extra_bytes >= EXTRA_ICOUNT + 8)
        snapshot->icount = be64_get(extra + EXTRA_ICOUNT);
}

/* Reads an entry with more extra data than is allowed, as if it had that much. */
static int read_cut_entry(struct table_window *window, uint64_t at, struct qcow2_snapshot *snapshot,
                          struct blk_error *err)
{
    const uint64_t kept = QCOW2_SNAPSHOT_AT_EXTRA + QCOW2_MAX_SNAPSHOT_EXTRA;
    const uint8_t *p;

    int ret = bring_into_window(window, at, kept, &p, err);
    if (ret < 0)
        return ret;
    uint64_t extra_bytes = be32_get(p + QCOW2_SNAPSHOT_AT_EXTRA_BYTES);
    uint64_t names = (uint64_t)be16_get(p + QCOW2_SNAPSHOT_AT_ID_BYTES) +
                     be16_get(p + QCOW2_SNAPSHOT_AT_NAME_BYTES);
    memcpy(window->cut, p, kept);
    be32_put(window->cut + QCOW2_SNAPSHOT_AT_EXTRA_BYTES, QCOW2_MAX_SNAPSHOT_EXTRA);
    ret = bring_into_window(window, at + QCOW2_SNAPSHOT_AT_EXTRA + extra_bytes, names, &p, err);
    if (ret < 0)
        return ret;
    /* What has no names where they should be is damaged, and not only long. */
    if (!names || memchr(p, '\0', names))
        return damaged_table(window->node, EFBIG, err,
                             "an entry has more than 1 KiB of extra data");
    memcpy(window->cut + kept, p, names);
    decode(qcow2_state(window->node), window->cut, snapshot);
    snapshot->stored_bytes = QCOW2_SNAPSHOT_AT_EXTRA + extra_bytes + names;
    return 0;
}

/* Reads the entry at `at`. On success the caller frees id and name. */
static int read_entry(struct table_window *window, uint64_t at, struct qcow2_snapshot *snapshot,
                      struct blk_error *err)
{
    const uint8_t *p;
    int ret = bring_into_window(window, at, QCOW2_SNAPSHOT_AT_EXTRA, &p, err);
    if (ret < 0)
        return ret;
    uint32_t extra_bytes = be32_get(p + QCOW2_SNAPSHOT_AT_EXTRA_BYTES);
    if (extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA && window->cut)
        return read_cut_entry(window, at, snapshot, err);
    if (extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA)
        return damaged_table(window->node, EFBIG, err,
                             "an entry has more than 1 KiB of extra data");
    uint64_t bytes = QCOW2_SNAPSHOT_AT_EXTRA + (uint64_t)extra_bytes +
                     be16_get(p + QCOW2_SNAPSHOT_AT_ID_BYTES) +
                     be16_get(p + QCOW2_SNAPSHOT_AT_NAME_BYTES);
    ret = bring_into_window(window, at, bytes, &p, err);
    if (ret == 0)
        decode(qcow2_state(window->node), p, snapshot);
    return ret;
}

int qcow2_snapshot_table_walk(struct blk_node *node,
                              int (*visit)(void *opaque, const struct qcow2_snapshot *snapshot,
                                           struct blk_error *err),
                              void *opaque, uint64_t *table_bytes, struct blk_error *err)
{
    const struct qcow2_header *header = &qcow2_state(node)->header;
    uint64_t file_bytes = blk_size(qcow2_file(node)), at = 0, end = 0, kept = 0;
    bool in_check = node->flags & BLK_IN_CHECK;
    int ret = 0;

    if (table_bytes)
        *table_bytes = 0;
    if (!header->snapshot_count)
        return 0;
    if (header->snapshots_offset >= file_bytes)
        return damaged_table(node, EINVAL, err, "the file is too short for it");

    BLK_AUTOFREE uint8_t *buf = blk_buffer_alloc(WINDOW_BYTES);
    BLK_AUTOFREE uint8_t *cut = in_check ? malloc(MAX_ENTRY_BYTES) : NULL;
    if (!buf || (in_check && !cut))
        return damaged_table(node, ENOMEM, err, "there is not enough memory");
    struct table_window window = {
        .node = node,
        .buf = buf,
        .cut = cut,
        .limit = u64_min(file_bytes - header->snapshots_offset,
                         in_check ? UINT64_MAX : QCOW2_MAX_SNAPSHOTS_BYTES),
    };
    for (uint32_t i = 0; i < header->snapshot_count && ret == 0; i++) {
        struct qcow2_snapshot snapshot;
        at = round_up(end, 8);
        ret = read_entry(&window, at, &snapshot, err);
        if (ret < 0)
            return ret;
        end = at + snapshot.stored_bytes;
        kept = round_up(kept + snapshot.raw_bytes, 8);
        snapshot.is_excess = i >= QCOW2_MAX_SNAPSHOTS || kept > QCOW2_MAX_SNAPSHOTS_BYTES;
        ret = visit(opaque, &snapshot, err);
        free(snapshot.id);
        free(snapshot.name);
    }
    if (table_bytes)
        *table_bytes = end;
    return ret;
}

/* ---- writing ---- */

/* Room for `bytes` more, zeroed; or NULL. */
static uint8_t *extend(struct qcow2_snapshot_table *table, uint64_t bytes)
{
    if (table->bytes + bytes > table->room) {
        uint64_t room = u64_max(table->room * 2, table->bytes + bytes);
        uint8_t *data = realloc(table->data, room);
        if (!data)
            return NULL;
        table->data = data;
        table->room = room;
    }
    uint8_t *added = table->data + table->bytes;
    memset(added, 0, bytes);
    table->bytes += bytes;
    return added;
}

static void encode(const struct qcow2_snapshot *snapshot, uint8_t *p)
{
    size_t id_bytes = strlen(snapshot->id), name_bytes = strlen(snapshot->name);
    uint8_t *extra = p + QCOW2_SNAPSHOT_AT_EXTRA;

    be64_put(p + QCOW2_SNAPSHOT_AT_L1_OFFSET, snapshot->l1_offset);
    be32_put(p + QCOW2_SNAPSHOT_AT_L1_ENTRIES, snapshot->l1_entries);
    be16_put(p + QCOW2_SNAPSHOT_AT_ID_BYTES, (uint16_t)id_bytes);
    be16_put(p + QCOW2_SNAPSHOT_AT_NAME_BYTES, (uint16_t)name_bytes);
    be32_put(p + QCOW2_SNAPSHOT_AT_SECONDS, snapshot->date_seconds);
    be32_put(p + QCOW2_SNAPSHOT_AT_NANOSECONDS, snapshot->date_nanoseconds);
    be64_put(p + QCOW2_SNAPSHOT_AT_VM_CLOCK, snapshot->vm_clock_ns);
    be32_put(p + QCOW2_SNAPSHOT_AT_VM_STATE_BYTES,
             (uint32_t)u64_min(snapshot->vm_state_bytes, UINT32_MAX));
    be32_put(p + QCOW2_SNAPSHOT_AT_EXTRA_BYTES, EXTRA_KNOWN_BYTES);
    be64_put(extra + EXTRA_VM_STATE_BYTES, snapshot->vm_state_bytes);
    be64_put(extra + EXTRA_DISK_BYTES, snapshot->disk_bytes);
    be64_put(extra + EXTRA_ICOUNT, snapshot->icount);
    memcpy(extra + EXTRA_KNOWN_BYTES, snapshot->id, id_bytes);
    memcpy(extra + EXTRA_KNOWN_BYTES + id_bytes, snapshot->name, name_bytes);
}

int qcow2_snapshot_table_add(struct qcow2_snapshot_table *table,
                             const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    uint64_t bytes = snapshot->raw ? snapshot->raw_bytes
                                   : QCOW2_SNAPSHOT_AT_EXTRA + EXTRA_KNOWN_BYTES +
                                         strlen(snapshot->id) + strlen(snapshot->name);
    bytes = round_up(bytes, 8);
    if (table->count >= QCOW2_MAX_SNAPSHOTS || table->bytes + bytes > QCOW2_MAX_SNAPSHOTS_BYTES)
        return blk_fail_why(err, EFBIG, "an image has at most 65536 snapshots in a table of 64 MiB",
                            "adding to the snapshot table");
    uint8_t *p = extend(table, bytes);
    if (!p)
        return blk_fail(err, ENOMEM, "putting a snapshot table together");

    table->count++;
    if (!snapshot->raw) {
        encode(snapshot, p);
        return 0;
    }
    memcpy(p, snapshot->raw, snapshot->raw_bytes);
    /* A change of entries changes where their tables are; the rest is kept as it is stored. */
    be64_put(p + QCOW2_SNAPSHOT_AT_L1_OFFSET, snapshot->l1_offset);
    be32_put(p + QCOW2_SNAPSHOT_AT_L1_ENTRIES, snapshot->l1_entries);
    return 0;
}

int qcow2_snapshot_table_replace(struct qcow2_shadow *shadow,
                                 const struct qcow2_snapshot_table *table, uint64_t old_bytes,
                                 struct qcow2_header *next, struct blk_error *err)
{
    struct blk_node *node = shadow->node;
    uint64_t bytes = round_up(table->bytes, BLK_SECTOR_BYTES), offset = 0;
    int ret = 0;

    if (old_bytes)
        ret = qcow2_shadow_add(shadow, qcow2_state(node)->header.snapshots_offset, old_bytes, -1,
                               err);
    if (ret == 0 && table->count) {
        BLK_AUTOFREE uint8_t *buf = blk_buffer_alloc(bytes);
        if (!buf)
            return blk_fail(err, ENOMEM, "writing the snapshot table of '%s'", node->name);
        memcpy(buf, table->data, table->bytes);
        memset(buf + table->bytes, 0, bytes - table->bytes);
        ret = qcow2_shadow_alloc(shadow, bytes, &offset, err);
        if (ret == 0)
            ret = blk_child_pwrite(qcow2_file(node), offset, bytes, buf, 0, err);
    }
    next->snapshot_count = table->count;
    next->snapshots_offset = offset;
    return ret;
}
