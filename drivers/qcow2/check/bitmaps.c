/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps in a check.
 *
 * QEMU refuses to open an image that has a bitmap it does not understand. Such a bitmap is useless,
 * so a repair removes it, and the next backup is a full one. The directory is rewritten in place
 * while the bit that makes the bitmaps count is clear: after a kill in between the image has no
 * bitmaps. The clusters of removed bitmaps are leaked; the repair then finds and frees them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/state.h"

/* ---- looking ---- */

/* One entry of a bitmap's table. Returns whether it is valid. */
static bool collect_table_entry(struct qcow2_check *check, const char *name, uint64_t entry)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = entry & QCOW2_BITMAP_TABLE_OFFSET;

    if (entry & QCOW2_BITMAP_TABLE_RESERVED || offset % s->cluster_bytes ||
        (offset && entry & QCOW2_BITMAP_TABLE_ALL_ONES)) {
        qcow2_check_corruption(check, "bitmap '%s' has the invalid table entry 0x%" PRIx64, name,
                               entry);
        return false;
    }
    if (offset)
        qcow2_check_add_refs(check, offset, s->cluster_bytes, QCOW2_USE_OTHER, 1, "bitmap data");
    return true;
}

/* Tables of bitmaps may be large: they are read in pieces. */
static int collect_table(struct qcow2_check *check, struct qcow2_bitmap_entry *entry,
                         struct blk_error *err)
{
    uint8_t buf[4 * KIB];
    uint64_t bytes = entry->table_entries * UINT64_C(8);

    if (!bytes || !qcow2_check_add_table(check, entry->table_offset, bytes, "a bitmap table"))
        return 0;
    for (uint64_t at = 0, length; at < bytes; at += length) {
        length = u64_min(sizeof(buf), bytes - at);
        int ret =
            blk_child_pread(qcow2_file(check->node), entry->table_offset + at, length, buf, err);
        if (ret < 0)
            return ret;
        for (uint64_t i = 0; i < length; i += 8)
            if (!collect_table_entry(check, entry->name, be64_get(buf + i)))
                entry->problem = "its table is damaged";
    }
    return 0;
}

static int collect_bitmap(struct qcow2_check *check, struct qcow2_bitmap_entry *entry,
                          struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t bytes = entry->table_entries * UINT64_C(8);

    if (entry->problem)
        qcow2_check_corruption(check, "bitmap '%s' cannot be used: %s", entry->name,
                               entry->problem);
    if (entry->table_offset && entry->table_offset % s->cluster_bytes == 0 &&
        range_within(entry->table_offset, bytes, check->clusters * s->cluster_bytes))
        return collect_table(check, entry, err);
    if (!entry->problem)
        qcow2_check_corruption(check, "bitmap '%s' has a table past the end of the file",
                               entry->name);
    if (!entry->problem)
        entry->problem = "its table lies past the end of the file";
    check->incomplete = true;
    return 0;
}

/* Reports what a repair can remove from a bitmap that remains usable. */
static void report_excess(struct qcow2_check *check, const struct qcow2_bitmap_entry *entry)
{
    struct qcow2_bitmap_entry trimmed = *entry;

    if (entry->problem || !qcow2_bitmap_trim(qcow2_state(check->node), &trimmed))
        return;
    qcow2_check_corruption(check, "bitmap '%s' has %s", entry->name,
                           trimmed.table_entries != entry->table_entries
                               ? "a table that is longer than the disk"
                               : "extra data, or the flag for it");
    check->mend_bitmaps = true;
}

int qcow2_check_bitmaps(struct qcow2_check *check, struct blk_error *err)
{
    struct qcow2_bitmap_directory directory;
    struct blk_error why = BLK_ERROR_INIT;

    int ret = qcow2_bitmap_directory_read(check->node, &directory, &why);
    if (ret == -EINVAL) {
        qcow2_check_corruption(check, "the bitmap directory is damaged: %s", why.why);
        check->incomplete = check->mend_bitmaps = true;
        blk_error_clear(&why);
        ret = 0;
    } else if (ret < 0) {
        if (err)
            *err = why;
    } else if (directory.count) {
        qcow2_check_add_table(check, directory.offset, directory.bytes, "the bitmap directory");
        for (size_t i = 0; i < directory.count && ret == 0; i++) {
            ret = collect_bitmap(check, &directory.entries[i], err);
            report_excess(check, &directory.entries[i]);
            check->mend_bitmaps |= directory.entries[i].problem != NULL;
        }
    }
    if (directory.count && directory.reserved) {
        qcow2_check_corruption(check, "the reserved field of the bitmaps extension is 0x%x",
                               directory.reserved);
        check->mend_bitmaps = true;
    }
    qcow2_bitmap_directory_free(&directory);
    return ret;
}

/* ---- mending ---- */

static int set_counting(struct blk_node *node, bool counting, const struct qcow2_tail *tail,
                        struct blk_error *err)
{
    struct qcow2_header next = qcow2_state(node)->header;

    next.autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
    if (counting)
        next.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    return tail ? qcow2_header_relayout(node, &next, tail, err)
                : qcow2_header_switch(node, &next, err);
}

static int remove_extension(struct qcow2_check *check, struct blk_error *err)
{
    struct qcow2_tail tail;

    qcow2_tail_copy(&tail, &qcow2_state(check->node)->tail);
    qcow2_tail_remove(&tail, QCOW2_EXT_BITMAPS);
    int ret = set_counting(check->node, false, &tail, err);
    qcow2_tail_free(&tail);
    return ret;
}

/* Checks the tables once more, to find what is wrong with each bitmap. */
static int judge(struct qcow2_check *check, struct qcow2_bitmap_directory *directory,
                 struct blk_error *err)
{
    struct blk_check ignored = { .leaks = 0 };
    struct qcow2_check again;

    int ret = qcow2_check_begin(&again, check->node, &ignored, err);
    for (size_t i = 0; ret == 0 && i < directory->count; i++)
        ret = collect_bitmap(&again, &directory->entries[i], err);
    qcow2_check_end(&again);
    return ret;
}

/* Takes the entries that have a problem out, and says so; the others are trimmed. */
static void remove_entries(struct qcow2_check *check, struct qcow2_bitmap_directory *directory)
{
    size_t kept = 0;

    for (size_t i = 0; i < directory->count; i++) {
        struct qcow2_bitmap_entry *entry = &directory->entries[i];
        if (!entry->problem) {
            qcow2_bitmap_trim(qcow2_state(check->node), entry);
            directory->entries[kept++] = *entry;
            continue;
        }
        qcow2_check_note(check, "Removing bitmap '%s': %s", entry->name, entry->problem);
        free(entry->name);
        free(entry->extra);
    }
    directory->count = kept;
}

/* Whether the directory's clusters hold nothing else, so that it can be written in place. */
static bool has_place_alone(const struct qcow2_check *check,
                            const struct qcow2_bitmap_directory *directory)
{
    uint64_t cluster_bytes = qcow2_state(check->node)->cluster_bytes;
    uint64_t end = div_round_up(directory->offset + directory->bytes, cluster_bytes);

    for (uint64_t i = directory->offset / cluster_bytes; i < end; i++)
        if (qcow2_check_refs(check, i) != 1)
            return false;
    return true;
}

/* The whole sectors that a directory of so many bytes takes. */
static uint64_t sectors_of(uint64_t bytes)
{
    return round_up(bytes, BLK_SECTOR_BYTES);
}

/* Puts the sectors of the directory there; the bitmaps do not count meanwhile. */
static int overwrite_directory(struct blk_node *node, uint64_t offset, uint64_t bytes,
                               const uint8_t *buf, struct blk_error *err)
{
    int ret = blk_child_pwrite(qcow2_file(node), offset, sectors_of(bytes), buf, 0, err);
    return ret < 0 ? ret : blk_child_flush(qcow2_file(node), err);
}

/* Names the directory's new length in the header, and has the bitmaps count again. */
static int name_directory(struct blk_node *node, const struct qcow2_bitmap_directory *directory,
                          uint64_t bytes, struct blk_error *err)
{
    uint8_t extension[QCOW2_BITMAPS_EXT_BYTES] = { 0 };
    struct qcow2_tail tail;

    be32_put(extension, (uint32_t)directory->count);
    be64_put(extension + 8, bytes);
    be64_put(extension + 16, directory->offset);
    qcow2_tail_copy(&tail, &qcow2_state(node)->tail);
    qcow2_tail_set(&tail, QCOW2_EXT_BITMAPS, extension, sizeof(extension));
    int ret = set_counting(node, true, &tail, err);
    qcow2_tail_free(&tail);
    return ret;
}

/* Writes the directory over the old one. After a failure the old one is back, or that is said. */
static int write_directory(struct qcow2_check *check,
                           const struct qcow2_bitmap_directory *directory, struct blk_error *err)
{
    struct blk_node *node = check->node;
    BLK_AUTOFREE uint8_t *old = blk_calloc(1, sectors_of(directory->bytes));
    BLK_AUTOFREE uint8_t *buf = NULL;
    uint64_t bytes;

    if (!old)
        return blk_fail(err, ENOMEM, "repairing the bitmaps of '%s'", node->name);
    int ret = blk_child_pread(qcow2_file(node), directory->offset, directory->bytes, old, err);
    if (ret == 0)
        ret = qcow2_bitmap_directory_encode(directory, &buf, &bytes, err);
    if (ret < 0)
        return ret;
    ret = set_counting(node, false, NULL, err);
    if (ret == 0)
        ret = overwrite_directory(node, directory->offset, bytes, buf, err);
    if (ret == 0)
        ret = name_directory(node, directory, bytes, err);
    if (ret < 0 && (overwrite_directory(node, directory->offset, directory->bytes, old, NULL) < 0 ||
                    set_counting(node, true, NULL, NULL) < 0))
        blk_left_behind(err, "'%s' may have no bitmaps any more", node->name);
    return ret;
}

static int remove_all(struct qcow2_check *check, struct blk_error *err)
{
    qcow2_check_note(check, "Removing all bitmaps: their directory cannot be used");
    return remove_extension(check, err);
}

/* Removes the bitmaps that have a problem; without any left there is no directory. */
static int mend_directory(struct qcow2_check *check, struct qcow2_bitmap_directory *directory,
                          struct blk_error *err)
{
    int ret = judge(check, directory, err);
    if (ret < 0)
        return ret;
    remove_entries(check, directory);
    return directory->count ? write_directory(check, directory, err) : remove_extension(check, err);
}

int qcow2_mend_bitmaps(struct qcow2_check *check, struct blk_error *err)
{
    struct qcow2_bitmap_directory directory;
    struct blk_error why = BLK_ERROR_INIT;

    int ret = qcow2_bitmap_directory_read(check->node, &directory, &why);
    if (ret < 0 && ret != -EINVAL) { /* the medium fails, which says nothing about the directory */
        if (err)
            *err = why;
    } else if (ret < 0 || !has_place_alone(check, &directory)) {
        blk_error_clear(&why);
        ret = remove_all(check, err);
    } else if (check->tangled || check->overflow) {
        qcow2_check_note(check, "The bitmaps are left as they are: structures overlap");
    } else {
        ret = mend_directory(check, &directory, err);
    }
    qcow2_bitmap_directory_free(&directory);
    return ret;
}
