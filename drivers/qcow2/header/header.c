/* SPDX-License-Identifier: MIT */
/*
 * Reading cluster 0: the header, its extensions and the backing name, with every check that keeps
 * the rest of the driver from allocating, indexing or looping by a number that nobody looked at.
 *
 * Nothing here writes; switch.c does.
 */
#include "drivers/qcow2/header/header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"

BLK_PRINTF(4, 5)
static int refuse(const struct blk_node *node, struct blk_error *err, int code, const char *why,
                  ...)
{
    char text[512];
    va_list args;
    va_start(args, why);
    vsnprintf(text, sizeof(text), why, args);
    va_end(args);
    return blk_fail_why(err, code, text, "Could not open '%s'", node->name);
}

uint64_t qcow2_l1_entries_for(uint64_t size, unsigned cluster_bits, bool extended)
{
    unsigned l2_bits = cluster_bits - (extended ? 4 : 3);
    uint64_t clusters = div_round_up(size, UINT64_C(1) << cluster_bits);
    return div_round_up(clusters, UINT64_C(1) << l2_bits);
}

/* ---- the tail ---- */

void qcow2_tail_free(struct qcow2_tail *tail)
{
    for (size_t i = 0; i < tail->count; i++)
        free(tail->extensions[i].data);
    free(tail->extensions);
    free(tail->backing_name);
    free(tail->unknown);
    *tail = (struct qcow2_tail){ .count = 0 };
}

static void add_extension(struct qcow2_tail *tail, uint32_t type, const void *data, uint32_t bytes)
{
    tail->extensions = blk_xgrow(tail->extensions, tail->count, sizeof(*tail->extensions));
    struct qcow2_extension *extension = &tail->extensions[tail->count++];
    extension->type = type;
    extension->bytes = bytes;
    extension->data = blk_xcalloc(1, bytes);
    memcpy(extension->data, data, bytes);
}

void qcow2_tail_copy(struct qcow2_tail *to, const struct qcow2_tail *from)
{
    *to = (struct qcow2_tail){
        .layout_bytes = from->layout_bytes,
        .unknown_bytes = from->unknown_bytes,
        .backing_name = blk_xstrdup(from->backing_name),
    };
    if (from->unknown) {
        to->unknown = blk_xcalloc(1, from->unknown_bytes);
        memcpy(to->unknown, from->unknown, from->unknown_bytes);
    }
    for (size_t i = 0; i < from->count; i++)
        add_extension(to, from->extensions[i].type, from->extensions[i].data,
                      from->extensions[i].bytes);
}

const struct qcow2_extension *qcow2_tail_find(const struct qcow2_tail *tail, uint32_t type)
{
    for (size_t i = tail->count; i-- > 0;)
        if (tail->extensions[i].type == type)
            return &tail->extensions[i];
    return NULL;
}

void qcow2_note_bitmap_directory(struct qcow2_state *s)
{
    const struct qcow2_extension *bitmaps = qcow2_tail_find(&s->tail, QCOW2_EXT_BITMAPS);
    uint64_t start = 0, bytes = 0;

    if (bitmaps && bitmaps->bytes == QCOW2_BITMAPS_EXT_BYTES &&
        s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) {
        bytes = be64_get(bitmaps->data + 8);
        start = be64_get(bitmaps->data + 16);
    }
    if (!range_within(start, bytes, QCOW2_MAX_HOST_OFFSET))
        start = bytes = 0;
    atomic_store(&s->bitmaps_start, start);
    atomic_store(&s->bitmaps_end, start + bytes);
}

void qcow2_tail_set(struct qcow2_tail *tail, uint32_t type, const void *data, uint32_t bytes)
{
    for (size_t i = tail->count; i-- > 0;) {
        struct qcow2_extension *extension = &tail->extensions[i];
        if (extension->type != type)
            continue;
        uint8_t *copy = blk_xcalloc(1, bytes);
        memcpy(copy, data, bytes);
        free(extension->data);
        extension->data = copy;
        extension->bytes = bytes;
        return;
    }
    add_extension(tail, type, data, bytes);
}

void qcow2_tail_remove(struct qcow2_tail *tail, uint32_t type)
{
    size_t kept = 0;
    for (size_t i = 0; i < tail->count; i++) {
        if (tail->extensions[i].type == type)
            free(tail->extensions[i].data);
        else
            tail->extensions[kept++] = tail->extensions[i];
    }
    tail->count = kept;
}

void qcow2_tail_set_backing(struct qcow2_tail *tail, const char *name)
{
    char *copy = blk_xstrdup(name);
    free(tail->backing_name);
    tail->backing_name = copy;
}

void qcow2_tail_add_feature_names(struct qcow2_tail *tail)
{
    static const struct {
        uint8_t kind, bit;
        const char *name;
    } features[] = {
        { 0, 0, "dirty bit" },
        { 0, 1, "corrupt bit" },
        { 0, 2, "external data file" },
        { 0, 3, "compression type" },
        { 0, 4, "extended L2 entries" },
        { 1, 0, "lazy refcounts" },
        { 2, 0, "bitmaps" },
        { 2, 1, "raw external data" },
    };
    const size_t count = sizeof(features) / sizeof(features[0]);
    uint8_t table[sizeof(features) / sizeof(features[0]) * QCOW2_FEATURE_NAME_BYTES] = { 0 };

    for (size_t i = 0; i < count; i++) {
        uint8_t *entry = table + i * QCOW2_FEATURE_NAME_BYTES;
        entry[0] = features[i].kind;
        entry[1] = features[i].bit;
        memcpy(entry + 2, features[i].name, strlen(features[i].name));
    }
    qcow2_tail_set(tail, QCOW2_EXT_FEATURE_NAMES, table, sizeof(table));
}

/* ---- parsing ---- */

static void decode_fields(const uint8_t *buf, struct qcow2_header *header)
{
    *header = (struct qcow2_header){
        .version = be32_get(buf + QCOW2_AT_VERSION),
        .backing_offset = be64_get(buf + QCOW2_AT_BACKING_OFFSET),
        .backing_bytes = be32_get(buf + QCOW2_AT_BACKING_BYTES),
        .cluster_bits = be32_get(buf + QCOW2_AT_CLUSTER_BITS),
        .size = be64_get(buf + QCOW2_AT_SIZE),
        .crypt = be32_get(buf + QCOW2_AT_CRYPT),
        .l1_entries = be32_get(buf + QCOW2_AT_L1_ENTRIES),
        .l1_offset = be64_get(buf + QCOW2_AT_L1_OFFSET),
        .reftable_offset = be64_get(buf + QCOW2_AT_REFTABLE_OFFSET),
        .reftable_clusters = be32_get(buf + QCOW2_AT_REFTABLE_CLUSTERS),
        .snapshot_count = be32_get(buf + QCOW2_AT_SNAPSHOT_COUNT),
        .snapshots_offset = be64_get(buf + QCOW2_AT_SNAPSHOTS_OFFSET),
        .refcount_order = 4,
        .header_bytes = QCOW2_HEADER_V2_BYTES,
    };
    if (header->version < 3)
        return;
    header->incompatible = be64_get(buf + QCOW2_AT_INCOMPATIBLE);
    header->compatible = be64_get(buf + QCOW2_AT_COMPATIBLE);
    header->autoclear = be64_get(buf + QCOW2_AT_AUTOCLEAR);
    header->refcount_order = be32_get(buf + QCOW2_AT_REFCOUNT_ORDER);
    header->header_bytes = be32_get(buf + QCOW2_AT_HEADER_BYTES);
    if (header->header_bytes > QCOW2_AT_COMPRESSION)
        header->compression = buf[QCOW2_AT_COMPRESSION];
}

/* What must hold before cluster 0 can be read as a whole. */
static int check_basics(const struct blk_node *node, const struct qcow2_header *header,
                        struct blk_error *err)
{
    if (header->version != 2 && header->version != 3)
        return refuse(node, err, ENOTSUP, "qcow version %u is not supported", header->version);
    if (header->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
        header->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return refuse(node, err, EINVAL,
                      "its cluster size of 2^%u bytes is not between 512 and 2 MiB",
                      header->cluster_bits);
    uint32_t cluster_bytes = UINT32_C(1) << header->cluster_bits;
    if (header->version == 3 &&
        (header->header_bytes < QCOW2_HEADER_V3_BYTES || header->header_bytes % 8 != 0 ||
         header->header_bytes > cluster_bytes))
        return refuse(node, err, EINVAL, "its header length of %u bytes is invalid",
                      header->header_bytes);
    if (header->refcount_order > 6)
        return refuse(node, err, EINVAL, "its refcount width of 2^%u bits is above 64",
                      header->refcount_order);
    if (header->backing_offset &&
        (header->backing_offset < header->header_bytes ||
         header->backing_bytes > QCOW2_MAX_BACKING_NAME ||
         !range_within(header->backing_offset, header->backing_bytes, cluster_bytes)))
        return refuse(node, err, EINVAL,
                      "its backing file name does not lie inside the header cluster");
    return 0;
}

/* Reads the extensions in buf[header_bytes .. end); *used is where they end. */
/* From `start` up to `end` at most; tail->layout_bytes is where they end. */
static int parse_extensions(const struct blk_node *node, const uint8_t *buf, uint64_t start,
                            uint64_t end, struct qcow2_tail *tail, struct blk_error *err)
{
    uint64_t at = start;
    while (end - at >= 8) {
        uint32_t type = be32_get(buf + at);
        uint32_t bytes = be32_get(buf + at + 4);
        at += 8;
        if (bytes > end - at)
            return refuse(node, err, EINVAL,
                          "header extension 0x%08x is %u bytes long, which is more than there is "
                          "room for",
                          type, bytes);
        if (type == QCOW2_EXT_END)
            break;
        add_extension(tail, type, buf + at, bytes);
        at = u64_min(at + round_up(bytes, 8), end);
    }
    tail->layout_bytes = (uint32_t)at;
    return 0;
}

static int parse_tail(const struct blk_node *node, const uint8_t *buf,
                      const struct qcow2_header *header, struct qcow2_tail *tail,
                      struct blk_error *err)
{
    uint64_t end =
        header->backing_offset ? header->backing_offset : UINT64_C(1) << header->cluster_bits;
    int ret = parse_extensions(node, buf, header->header_bytes, end, tail, err);
    if (ret < 0)
        return ret;

    if (header->backing_offset && header->backing_bytes) {
        const char *name = (const char *)buf + header->backing_offset;
        if (memchr(name, '\0', header->backing_bytes))
            return refuse(node, err, EINVAL, "its backing file name contains a zero byte");
        tail->backing_name = blk_xstrndup(name, header->backing_bytes);
        tail->layout_bytes =
            (uint32_t)u64_max(tail->layout_bytes, header->backing_offset + header->backing_bytes);
    }

    if (header->header_bytes > QCOW2_HEADER_CURRENT_BYTES) {
        tail->unknown_bytes = header->header_bytes - QCOW2_HEADER_CURRENT_BYTES;
        tail->unknown = blk_xcalloc(1, tail->unknown_bytes);
        memcpy(tail->unknown, buf + QCOW2_HEADER_CURRENT_BYTES, tail->unknown_bytes);
    }
    return 0;
}

/* The image's own name for an incompatible feature; 46 bytes from a file nobody vouches for. */
static void feature_name(const struct qcow2_tail *tail, unsigned bit, char out[64])
{
    const struct qcow2_extension *names = qcow2_tail_find(tail, QCOW2_EXT_FEATURE_NAMES);

    snprintf(out, 64, "unknown feature bit %u", bit);
    for (uint32_t at = 0; names && names->bytes - at >= QCOW2_FEATURE_NAME_BYTES;
         at += QCOW2_FEATURE_NAME_BYTES) {
        const uint8_t *entry = names->data + at;
        if (entry[0] != 0 || entry[1] != bit || !entry[2])
            continue;
        size_t length = strnlen((const char *)entry + 2, QCOW2_FEATURE_NAME_BYTES - 2);
        for (size_t i = 0; i < length; i++)
            out[i] = entry[2 + i] >= ' ' && entry[2 + i] < 0x7f ? (char)entry[2 + i] : '?';
        out[length] = '\0';
        return;
    }
}

static int check_features(const struct blk_node *node, const struct qcow2_header *header,
                          const struct qcow2_tail *tail, struct blk_error *err)
{
    uint64_t unknown = header->incompatible & ~QCOW2_INCOMPAT_KNOWN;
    char list[384] = "";
    size_t length = 0;

    for (unsigned bit = 0; bit < 64 && unknown; bit++) {
        char name[64];
        if (!(unknown >> bit & 1))
            continue;
        feature_name(tail, bit, name);
        int added =
            snprintf(list + length, sizeof(list) - length, "%s%s", length ? ", " : "", name);
        length = u64_min(length + (size_t)added, sizeof(list) - 1);
    }
    if (unknown)
        return refuse(node, err, ENOTSUP, "Unsupported qcow2 feature(s): %s", list);

    bool bit = header->incompatible & QCOW2_INCOMPAT_COMPRESSION;
    if (bit != (header->compression != QCOW2_DEFLATE))
        return refuse(node, err, EINVAL,
                      "its compression type %u and its compression feature bit "
                      "contradict each other",
                      header->compression);
    if (header->compression > QCOW2_ZSTD)
        return refuse(node, err, ENOTSUP, "its compression type %u is not supported",
                      header->compression);
    if (header->incompatible & QCOW2_INCOMPAT_EXTENDED_L2 &&
        header->cluster_bits < QCOW2_MIN_EXTENDED_CLUSTER_BITS)
        return refuse(node, err, EINVAL, "extended L2 entries need clusters of 16 KiB or more");
    return 0;
}

/* Its length is not in the header. */
static const struct qcow2_table_kind snapshot_table_kind = { .name = "snapshot table" };

/* A table's place: aligned, and ending where host offsets end. */
static int check_table(const struct blk_node *node, const struct qcow2_header *header,
                       const struct qcow2_table_kind *kind, uint64_t offset, uint64_t bytes,
                       struct blk_error *err)
{
    uint64_t cluster_bytes = UINT64_C(1) << header->cluster_bits;
    if (bytes > kind->max_bytes)
        return refuse(node, err, EFBIG, "its %s is too large", kind->name);
    if (offset % cluster_bytes || !range_within(offset, bytes, QCOW2_MAX_HOST_OFFSET))
        return refuse(node, err, EINVAL, "its %s has the invalid offset %" PRIu64, kind->name,
                      offset);
    return 0;
}

/*
 * The tables that every access relies on must not lie in each other; a check shows more than a
 * refusal.
 */
static int check_overlaps(const struct blk_node *node, const struct qcow2_header *header,
                          struct blk_error *err)
{
    uint64_t cluster_bytes = UINT64_C(1) << header->cluster_bits;
    uint64_t l1_bytes = (uint64_t)header->l1_entries * 8;
    uint64_t reftable_bytes = header->reftable_clusters * cluster_bytes;

    if (ranges_overlap(header->l1_offset, l1_bytes, 0, cluster_bytes))
        return refuse(node, err, EINVAL, "its L1 table overlaps the header");
    if (ranges_overlap(header->reftable_offset, reftable_bytes, 0, cluster_bytes))
        return refuse(node, err, EINVAL, "its refcount table overlaps the header");
    if (ranges_overlap(header->reftable_offset, reftable_bytes, header->l1_offset, l1_bytes))
        return refuse(node, err, EINVAL, "its refcount table overlaps the L1 table");
    if (header->snapshot_count && header->snapshots_offset < cluster_bytes)
        return refuse(node, err, EINVAL, "its snapshot table overlaps the header");
    return 0;
}

static int check_tables(const struct blk_node *node, const struct qcow2_header *header,
                        struct blk_error *err)
{
    uint64_t cluster_bytes = UINT64_C(1) << header->cluster_bits;
    bool in_check = node->flags & BLK_IN_CHECK;
    int ret;

    if (header->size > BLK_MAX_BYTES)
        return refuse(node, err, EFBIG, "its size of %" PRIu64 " bytes is too large", header->size);
    if (header->crypt > QCOW2_CRYPT_LUKS)
        return refuse(node, err, EINVAL, "its encryption method %u is unknown", header->crypt);

    ret = check_table(node, header, &qcow2_l1_kind, header->l1_offset,
                      (uint64_t)header->l1_entries * 8, err);
    if (ret == 0)
        ret = check_table(node, header, &snapshot_table_kind,
                          header->snapshot_count ? header->snapshots_offset : 0, 0, err);
    /* A check counts by itself, and a repair makes a new refcount table. */
    if (ret == 0 && !in_check)
        ret = check_table(node, header, &qcow2_reftable_kind, header->reftable_offset,
                          header->reftable_clusters * cluster_bytes, err);
    if (ret < 0)
        return ret;
    if (header->snapshot_count > QCOW2_MAX_SNAPSHOTS && !in_check)
        return refuse(node, err, EFBIG, "it claims to have %u snapshots", header->snapshot_count);

    uint64_t needed = qcow2_l1_entries_for(header->size, header->cluster_bits,
                                           header->incompatible & QCOW2_INCOMPAT_EXTENDED_L2);
    if (header->l1_entries < needed)
        return refuse(node, err, needed * 8 > QCOW2_MAX_L1_BYTES ? EFBIG : EINVAL,
                      "its L1 table is too small for its size");
    if (!header->reftable_clusters && !in_check)
        return refuse(node, err, EINVAL, "it has no refcount table");
    return in_check ? 0 : check_overlaps(node, header, err);
}

int qcow2_header_read(struct blk_node *node, struct qcow2_header *header, struct qcow2_tail *tail,
                      struct blk_error *err)
{
    struct blk_node *file = qcow2_file(node);
    uint8_t head[BLK_SECTOR_BYTES] = { 0 };

    *tail = (struct qcow2_tail){ .count = 0 };
    uint64_t size = blk_size(file);
    if (size < QCOW2_HEADER_V2_BYTES)
        return refuse(node, err, EINVAL, "the file is too short for a header");
    int ret = blk_child_pread(file, 0, u64_min(size, sizeof(head)), head, err);
    if (ret < 0)
        return ret;
    if (be32_get(head) != QCOW2_MAGIC)
        return refuse(node, err, EINVAL, "Image is not in qcow2 format");
    decode_fields(head, header);
    ret = check_basics(node, header, err);
    if (ret < 0)
        return ret;

    uint64_t cluster_bytes = UINT64_C(1) << header->cluster_bits;
    BLK_AUTOFREE uint8_t *cluster = blk_calloc(1, cluster_bytes);
    if (!cluster)
        return blk_fail(err, ENOMEM, "reading the header of '%s'", node->name);
    ret = blk_child_pread(file, 0, u64_min(size, cluster_bytes), cluster, err);
    if (ret < 0)
        return ret;
    ret = parse_tail(node, cluster, header, tail, err);
    if (ret < 0)
        return ret;
    ret = check_features(node, header, tail, err);
    if (ret < 0)
        return ret;
    return check_tables(node, header, err);
}
