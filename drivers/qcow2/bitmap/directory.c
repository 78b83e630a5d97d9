/* SPDX-License-Identifier: MIT */
/*
 * The bitmap directory: a list of entries of different lengths, each naming a table.
 *
 * An entry: table offset u64, table entries u32, flags u32, type u8, granularity bits u8, name
 * length u16, extra length u32, extra, name, zeroes up to a multiple of 8.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/state.h"

const struct qcow2_table_kind qcow2_bitmap_table_kind = {
    "bitmap table", UINT64_C(8) * QCOW2_MAX_BITMAP_TABLE_ENTRIES
};

#define ENTRY_FIXED_BYTES 24
#define MAX_EXTRA_BYTES 1024
#define MAX_LISTED_BITMAPS 16384
#define MAX_LISTED_DIRECTORY_BYTES (2 * MIB)

static int damaged_directory(struct blk_node *node, struct blk_error *err, const char *why)
{
    return blk_fail_why(err, EINVAL, why, "reading the bitmap directory of '%s'", node->name);
}

static uint64_t entry_bytes(uint64_t name_bytes, uint64_t extra_bytes)
{
    return round_up(ENTRY_FIXED_BYTES + name_bytes + extra_bytes, 8);
}

void qcow2_bitmap_directory_free(struct qcow2_bitmap_directory *directory)
{
    for (size_t i = 0; i < directory->count; i++) {
        free(directory->entries[i].name);
        free(directory->entries[i].extra);
    }
    free(directory->entries);
    *directory = (struct qcow2_bitmap_directory){ .count = 0 };
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorted, as an image may have very many. */
static int check_names(struct blk_node *node, const struct qcow2_bitmap_directory *directory,
                       struct blk_error *err)
{
    size_t count = directory->count;
    BLK_AUTOFREE const char **names = blk_xcalloc(count, sizeof(*names));

    for (size_t i = 0; i < count; i++)
        names[i] = directory->entries[i].name;
    qsort(names, count, sizeof(*names), compare_names);
    for (size_t i = 1; i < count; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return damaged_directory(node, err, "two bitmaps have the same name");
    return 0;
}

/* Why nobody can use such a bitmap, or NULL. */
static const char *find_problem(const struct qcow2_state *s, const struct qcow2_bitmap_entry *entry)
{
    if (entry->granularity_bits < BLK_BITMAP_MIN_GRANULARITY_BITS ||
        entry->granularity_bits > BLK_BITMAP_MAX_GRANULARITY_BITS)
        return "a granularity is out of range";
    if (entry->table_entries > QCOW2_MAX_BITMAP_TABLE_ENTRIES ||
        (entry->table_entries && !entry->table_offset) || entry->table_offset % s->cluster_bytes ||
        !range_within(entry->table_offset, entry->table_entries * UINT64_C(8),
                      QCOW2_MAX_HOST_OFFSET))
        return "a table has an invalid offset or length";
    return NULL;
}

/* The same for what does no harm here, but keeps QEMU from opening the image. */
static const char *find_unknown(const struct qcow2_state *s, const struct qcow2_bitmap_entry *entry)
{
    uint64_t covered = (uint64_t)s->cluster_bytes * 8 << entry->granularity_bits;

    if (entry->type != QCOW2_BITMAP_TYPE_DIRTY)
        return "its type is unknown";
    if (entry->flags & ~QCOW2_BITMAP_FLAGS_KNOWN)
        return "it has unknown flags";
    if (!entry->table_entries)
        return "it has no table";
    if (!(entry->flags & QCOW2_BITMAP_IN_USE) && s->header.size < BLK_SECTOR_BYTES)
        return "the disk is smaller than a sector, so it covers nothing";
    if (!(entry->flags & QCOW2_BITMAP_IN_USE) &&
        entry->table_entries < div_round_up(s->header.size, covered))
        return "its table is too short for the disk";
    if (entry->extra_bytes && !(entry->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE))
        return "it has unknown extra data";
    return NULL;
}

bool qcow2_bitmap_trim(const struct qcow2_state *s, struct qcow2_bitmap_entry *entry)
{
    uint64_t covered = (uint64_t)s->cluster_bytes * 8 << entry->granularity_bits;
    uint64_t needed = u64_max(div_round_up(s->header.size, covered), 1);
    bool is_longer = !(entry->flags & QCOW2_BITMAP_IN_USE) && entry->table_entries > needed;

    if (!is_longer && !entry->extra_bytes && !(entry->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE))
        return false;
    if (is_longer)
        entry->table_entries = (uint32_t)needed;
    entry->flags &= ~QCOW2_BITMAP_EXTRA_COMPATIBLE;
    entry->extra_bytes = 0;
    return true;
}

/* Decodes the entry at buf, of which `left` bytes are there, and adds it; *bytes is its length. */
static int parse_entry(struct blk_node *node, const uint8_t *buf, uint64_t left,
                       struct qcow2_bitmap_directory *directory, uint64_t *bytes,
                       struct blk_error *err)
{
    if (left < ENTRY_FIXED_BYTES)
        return damaged_directory(node, err, "it ends inside an entry");
    struct qcow2_bitmap_entry entry = {
        .table_offset = be64_get(buf),
        .table_entries = be32_get(buf + 8),
        .flags = be32_get(buf + 12),
        .type = buf[16],
        .granularity_bits = buf[17],
        .extra_bytes = be32_get(buf + 20),
    };
    uint16_t name_bytes = be16_get(buf + 18);

    if (entry.extra_bytes > MAX_EXTRA_BYTES)
        return damaged_directory(node, err, "an entry has too much extra data");
    *bytes = entry_bytes(name_bytes, entry.extra_bytes);
    if (*bytes > left)
        return damaged_directory(node, err, "it ends inside an entry");
    if (!name_bytes || name_bytes > BLK_BITMAP_MAX_NAME_BYTES)
        return damaged_directory(node, err, "a name is empty or too long");
    const char *name = (const char *)buf + ENTRY_FIXED_BYTES + entry.extra_bytes;
    if (memchr(name, '\0', name_bytes))
        return damaged_directory(node, err, "a name contains a zero byte");
    bool in_check = node->flags & BLK_IN_CHECK && !(node->flags & BLK_NO_IO);
    entry.problem = find_problem(qcow2_state(node), &entry);
    if (entry.problem && !in_check)
        return damaged_directory(node, err, entry.problem);
    if (!entry.problem && in_check)
        entry.problem = find_unknown(qcow2_state(node), &entry);

    entry.name = blk_xstrndup(name, name_bytes);
    if (entry.extra_bytes) {
        entry.extra = blk_xcalloc(1, entry.extra_bytes);
        memcpy(entry.extra, buf + ENTRY_FIXED_BYTES, entry.extra_bytes);
    }
    directory->entries[directory->count++] = entry;
    return 0;
}

/* Looking at headers must need little memory, whatever the file says; a check sees all. */
static bool is_header_only(const struct blk_node *node)
{
    return (node->flags & (BLK_NO_IO | BLK_IN_CHECK)) == BLK_NO_IO;
}

/* Where the directory is, by the header's extension; *count 0 when there is none. */
static int locate_directory(struct blk_node *node, struct qcow2_bitmap_directory *directory,
                            uint32_t *count, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    const struct qcow2_extension *extension = qcow2_tail_find(&s->tail, QCOW2_EXT_BITMAPS);

    *count = 0;
    if (!extension || !(s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    if (extension->bytes != QCOW2_BITMAPS_EXT_BYTES)
        return damaged_directory(node, err, "its header extension has an unknown length");
    *count = be32_get(extension->data);
    directory->reserved = be32_get(extension->data + 4);
    directory->bytes = be64_get(extension->data + 8);
    directory->offset = be64_get(extension->data + 16);
    if (*count > QCOW2_MAX_BITMAPS || !*count)
        return damaged_directory(node, err, "the header names no bitmap, or more than 65535");
    if (directory->bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES ||
        directory->bytes < (uint64_t)*count * entry_bytes(1, 0))
        return damaged_directory(node, err, "its length does not fit the number of bitmaps");
    if (!directory->offset || directory->offset % s->cluster_bytes ||
        !range_within(directory->offset, directory->bytes, blk_size(qcow2_file(node))))
        return damaged_directory(node, err, "it extends past the end of the file");
    if (is_header_only(node) &&
        (*count > MAX_LISTED_BITMAPS || directory->bytes > MAX_LISTED_DIRECTORY_BYTES))
        return blk_fail_why(err, EFBIG, "it has more bitmaps than can be listed with little memory",
                            "reading the bitmap directory of '%s'", node->name);
    return 0;
}

int qcow2_bitmap_directory_read(struct blk_node *node, struct qcow2_bitmap_directory *directory,
                                struct blk_error *err)
{
    uint32_t count;

    *directory = (struct qcow2_bitmap_directory){ .count = 0 };
    int ret = locate_directory(node, directory, &count, err);
    if (ret < 0 || !count)
        return ret;

    BLK_AUTOFREE uint8_t *buf = blk_malloc(directory->bytes);
    directory->entries = blk_calloc(count, sizeof(*directory->entries));
    if (!buf || !directory->entries)
        return blk_fail(err, ENOMEM, "reading the bitmap directory of '%s'", node->name);
    ret = blk_child_pread(qcow2_file(node), directory->offset, directory->bytes, buf, err);

    uint64_t at = 0;
    while (ret == 0 && directory->count < count) {
        uint64_t bytes = 0;
        ret = parse_entry(node, buf + at, directory->bytes - at, directory, &bytes, err);
        at += ret == 0 ? bytes : 0;
    }
    if (ret == 0 && at != directory->bytes)
        ret = damaged_directory(node, err, "it is longer than its entries");
    return ret == 0 ? check_names(node, directory, err) : ret;
}

static uint8_t *encode_entry(uint8_t *to, const struct qcow2_bitmap_entry *entry)
{
    size_t name_bytes = strlen(entry->name);

    be64_put(to, entry->table_offset);
    be32_put(to + 8, entry->table_entries);
    be32_put(to + 12, entry->flags);
    to[16] = entry->type;
    to[17] = entry->granularity_bits;
    be16_put(to + 18, (uint16_t)name_bytes);
    be32_put(to + 20, entry->extra_bytes);
    if (entry->extra_bytes)
        memcpy(to + ENTRY_FIXED_BYTES, entry->extra, entry->extra_bytes);
    memcpy(to + ENTRY_FIXED_BYTES + entry->extra_bytes, entry->name, name_bytes);
    return to + entry_bytes(name_bytes, entry->extra_bytes);
}

int qcow2_bitmap_directory_encode(const struct qcow2_bitmap_directory *directory, uint8_t **buf,
                                  uint64_t *bytes, struct blk_error *err)
{
    *buf = NULL;
    *bytes = 0;
    for (size_t i = 0; i < directory->count; i++)
        *bytes +=
            entry_bytes(strlen(directory->entries[i].name), directory->entries[i].extra_bytes);
    if (directory->count > QCOW2_MAX_BITMAPS || *bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES)
        return blk_fail_why(err, EFBIG, "an image cannot have that many bitmaps",
                            "writing the bitmap directory");
    *buf = blk_calloc(1, round_up(*bytes, BLK_SECTOR_BYTES));
    if (!*buf)
        return blk_fail(err, ENOMEM, "writing the bitmap directory");

    uint8_t *to = *buf;
    for (size_t i = 0; i < directory->count; i++)
        to = encode_entry(to, &directory->entries[i]);
    return 0;
}
