/* SPDX-License-Identifier: MIT */
/* From the image to memory: the set of bitmaps at open, their bits when they are first needed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/info.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"

/* ---- the set ---- */

/* A bitmap of the directory that we can use, as opposed to one that is only carried along. */
static bool is_known_entry(const struct qcow2_bitmap_entry *entry)
{
    return entry->type == QCOW2_BITMAP_TYPE_DIRTY && !entry->extra_bytes &&
           !(entry->flags & ~QCOW2_BITMAP_FLAGS_KNOWN);
}

struct blk_dirty_bitmap *qcow2_bitmap_from_entry(const struct blk_node *node,
                                                 const struct qcow2_bitmap_entry *entry)
{
    struct blk_dirty_bitmap *bitmap;

    /* The directory was checked: name and granularity are possible. */
    if (blk_dirty_bitmap_describe(entry->name, blk_size(node), entry->granularity_bits, &bitmap,
                                  NULL) < 0)
        abort();
    bitmap->persistent = true;
    bitmap->enabled = entry->flags & QCOW2_BITMAP_AUTO;
    bitmap->inconsistent = entry->flags & QCOW2_BITMAP_IN_USE;
    bitmap->unusable = !is_known_entry(entry);
    bitmap->read_only = !blk_is_writable(node);

    struct qcow2_bitmap_entry *stored = blk_xcalloc(1, sizeof(*stored));
    *stored = *entry;
    stored->name = bitmap->name;
    stored->extra = NULL;
    if (entry->extra_bytes) {
        stored->extra = blk_xcalloc(1, entry->extra_bytes);
        memcpy(stored->extra, entry->extra, entry->extra_bytes);
    }
    bitmap->state = stored;
    return bitmap;
}

int qcow2_bitmaps_open(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_bitmap_directory directory;

    /* A check looks at the directory by itself, and may remove what is in it. */
    if (node->flags & BLK_IN_CHECK && !(node->flags & BLK_NO_IO))
        return 0;
    int ret = qcow2_bitmap_directory_read(node, &directory, err);

    /* A caller that only asks how the image was closed takes it as it is. */
    if (ret < 0 && node->flags & BLK_IN_CHECK) {
        qcow2_bitmap_directory_free(&directory);
        blk_error_clear(err);
        return 0;
    }
    if (ret == 0 && directory.count) {
        struct blk_dirty_bitmap **end = &blk_bitmaps_of(node)->first;
        for (size_t i = 0; i < directory.count; i++) {
            *end = qcow2_bitmap_from_entry(node, &directory.entries[i]);
            end = &(*end)->next;
        }
    }
    qcow2_bitmap_directory_free(&directory);
    return ret;
}

void qcow2_bitmap_release(struct blk_dirty_bitmap *bitmap)
{
    struct qcow2_bitmap_entry *stored = bitmap->state;

    if (stored)
        free(stored->extra);
    free(stored);
    bitmap->state = NULL;
}

int qcow2_bitmaps_can_add(struct blk_node *node, struct blk_error *err)
{
    if (qcow2_state(node)->header.version < 3)
        return blk_fail_why(err, ENOTSUP, "images of version 2 (compat=0.10) have no bitmaps",
                            "'%s'", node->name);
    /* It would have no table, and QEMU opens no image with such a bitmap. */
    if (blk_size(node) < BLK_SECTOR_BYTES)
        return blk_fail_why(err, ENOTSUP, "a disk without a sector has no bitmaps", "'%s'",
                            node->name);
    return 0;
}

void qcow2_bitmaps_info(const struct blk_node *node, struct blk_value *to)
{
    if (!node->bitmaps || !node->bitmaps->first)
        return;

    struct blk_value *list = blk_value_add_list(to, "bitmaps");
    for (const struct blk_dirty_bitmap *b = node->bitmaps->first; b; b = b->next) {
        struct blk_value *one = blk_value_add_object(list, NULL);
        struct blk_value *flags = blk_value_add_list(one, "flags");
        if (b->inconsistent)
            blk_value_add_text(flags, NULL, "in-use");
        if (b->enabled)
            blk_value_add_text(flags, NULL, "auto");
        blk_value_add_text(one, "name", b->name);
        blk_value_add_number(one, "granularity", UINT64_C(1) << b->granularity_bits);
    }
}

/* ---- bits ---- */

static int damaged_bits(struct blk_node *node, const struct blk_dirty_bitmap *bitmap,
                        const char *why, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, why, "loading bitmap '%s' of '%s'", bitmap->name, node->name);
}

/* Reads one piece of the bits; a piece is a cluster, the last may cover less. */
static int load_piece(struct blk_node *node, struct blk_dirty_bitmap *bitmap, uint64_t table_entry,
                      uint64_t stored_offset, uint8_t *buf, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t offset = table_entry & QCOW2_BITMAP_TABLE_OFFSET;
    uint64_t bytes =
        u64_min(s->cluster_bytes, blk_dirty_bitmap_stored_bytes(bitmap) - stored_offset);
    uint64_t granule_bits = bitmap->granularity_bits;

    if (table_entry & QCOW2_BITMAP_TABLE_RESERVED || offset % s->cluster_bytes)
        return damaged_bits(node, bitmap, "its table has an invalid entry", err);
    if (!offset) {
        if (table_entry & QCOW2_BITMAP_TABLE_ALL_ONES)
            blk_dirty_bitmap_set(bitmap, stored_offset * 8 << granule_bits,
                                 bytes * 8 << granule_bits);
        return 0;
    }
    if (table_entry & QCOW2_BITMAP_TABLE_ALL_ONES)
        return damaged_bits(node, bitmap, "its table has an invalid entry", err);
    if (!range_within(offset, bytes, blk_size(qcow2_file(node))))
        return damaged_bits(node, bitmap, "its data lies past the end of the file", err);

    int ret = blk_child_pread(qcow2_file(node), offset, bytes, buf, err);
    return ret < 0 ? ret : blk_dirty_bitmap_import(bitmap, stored_offset, bytes, buf, err);
}

static int load_bits(struct blk_node *node, struct blk_dirty_bitmap *bitmap, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    const struct qcow2_bitmap_entry *stored = bitmap->state;
    uint64_t pieces = div_round_up(blk_dirty_bitmap_stored_bytes(bitmap), s->cluster_bytes);

    if (stored->table_entries != pieces)
        return damaged_bits(node, bitmap, "its table does not fit the size of the disk", err);
    if (!range_within(stored->table_offset, pieces * 8, blk_size(qcow2_file(node))))
        return damaged_bits(node, bitmap, "its table lies past the end of the file", err);
    int ret = blk_dirty_bitmap_allocate(bitmap, err);
    if (ret < 0)
        return ret;

    BLK_AUTOFREE uint64_t *table = NULL;
    BLK_AUTOFREE uint8_t *buf = blk_malloc(s->cluster_bytes);
    if (!buf)
        return blk_fail(err, ENOMEM, "loading bitmap '%s' of '%s'", bitmap->name, node->name);
    ret =
        qcow2_read_table(node, &qcow2_bitmap_table_kind, stored->table_offset, pieces, &table, err);
    for (uint64_t i = 0; i < pieces && ret == 0; i++) {
        ret = load_piece(node, bitmap, table[i], i * s->cluster_bytes, buf, err);
        if (ret == 0 && blk_cancelled())
            ret = blk_fail_why(err, ECANCELED, "stopped by a signal", "loading bitmap '%s' of '%s'",
                               bitmap->name, node->name);
    }
    atomic_store(&bitmap->changed, false);
    return ret;
}

int qcow2_bitmap_load(struct blk_node *node, struct blk_dirty_bitmap *bitmap, struct blk_error *err)
{
    int ret = load_bits(node, bitmap, err);
    if (ret < 0)
        blk_dirty_bitmap_forget(bitmap);
    if (ret != -EINVAL && ret != -EFBIG)
        return ret;
    /* It must not keep the image from being written: it is carried along as in use. */
    bitmap->inconsistent = true;
    node->bitmaps->changed = true;
    blk_error_clear(err);
    return 0;
}
