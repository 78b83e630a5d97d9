/*
 * Every structure of the image is walked once for each way that leads to it, and each host cluster that it touches
 * gets one reference more; exactly what the refcounts on the medium should say.
 */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/memory.h"
#include "drivers/qcow2/bitmap.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/snapshot.h"

static enum qcow2_use use_get(const struct qcow2_check *check, uint64_t cluster)
{
    return (enum qcow2_use)(check->uses[cluster / 4] >> (cluster % 4 * 2) & 3);
}

static void use_put(struct qcow2_check *check, uint64_t cluster, enum qcow2_use use)
{
    uint8_t *byte = &check->uses[cluster / 4];
    unsigned shift = cluster % 4 * 2;
    *byte = (uint8_t)((*byte & ~(3u << shift)) | (unsigned)use << shift);
}

static void add_one(struct qcow2_check *check, uint64_t cluster, enum qcow2_use use,
                    const char *what)
{
    enum qcow2_use before = use_get(check, cluster);
    if (before != QCOW2_USE_NONE && (before != use || use == QCOW2_USE_OTHER))
        qcow2_check_corruption(check, "%s overlaps another structure at offset 0x%llx", what,
                               (unsigned long long)cluster * qcow2_state(check->node)->cluster_bytes);
    if (use > before)
        use_put(check, cluster, use);

    uint64_t refs = qcow2_count_get(check->refs, check->order, cluster);
    if (refs == qcow2_count_max(check->order)) {
        if (!check->overflow)
            qcow2_check_corruption(check, "the refcount width is too small for the references to "
                                   "the cluster at offset 0x%llx",
                                   (unsigned long long)cluster *
                                       qcow2_state(check->node)->cluster_bytes);
        check->overflow = true;
        return;
    }
    qcow2_count_put(check->refs, check->order, cluster, refs + 1);
}

/*
 * Counts a reference to all clusters that the range touches. Past the end of the file is corruption; a
 * compressed piece, which is counted in sectors, may run on past it within its last cluster.
 */
static void add_refs(struct qcow2_check *check, uint64_t offset, uint64_t bytes, enum qcow2_use use,
                     const char *what)
{
    uint64_t cluster_bytes = qcow2_state(check->node)->cluster_bytes;
    if (!bytes)
        return;
    uint64_t first = offset / cluster_bytes;
    uint64_t last = (offset + bytes - 1) / cluster_bytes;

    if (last >= check->clusters) {
        qcow2_check_corruption(check, "%s at offset 0x%llx lies past the end of the file", what,
                               (unsigned long long)offset);
        if (first >= check->clusters)
            return;
        last = check->clusters - 1;
    }
    for (uint64_t cluster = first; cluster <= last; cluster++)
        add_one(check, cluster, use, what);
}

/* ---- L2 tables ---- */

/* Where the clusters of the active table follow each other, and where not. */
struct contiguity {
    bool active;
    uint64_t next;
};

static void count_allocation(struct qcow2_check *check, struct contiguity *run, uint64_t offset)
{
    if (!run->active)
        return;
    check->result->allocated_clusters++;
    if (run->next && offset != run->next)
        check->result->fragmented_clusters++;
    run->next = offset + qcow2_state(check->node)->cluster_bytes;
}

static void collect_compressed(struct qcow2_check *check, uint64_t entry, struct contiguity *run)
{
    unsigned bits = qcow2_state(check->node)->cluster_bits;

    add_refs(check, qcow2_compressed_offset(entry, bits), qcow2_compressed_bytes(entry, bits),
             QCOW2_USE_DATA, "compressed data");
    if (run->active) {
        /* Pieces of odd length never follow each other in whole clusters. */
        check->result->allocated_clusters++;
        check->result->compressed_clusters++;
        check->result->fragmented_clusters++;
    }
}

static void collect_entry(struct qcow2_check *check, uint64_t entry, struct contiguity *run)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;

    if (entry & QCOW2_ENTRY_COMPRESSED) {
        collect_compressed(check, entry, run);
        return;
    }
    if (s->data_file) {
        if (offset || entry & QCOW2_ENTRY_COPIED)
            count_allocation(check, run, offset);
        return;
    }
    if (!offset)
        return;
    count_allocation(check, run, offset);
    if (offset % s->cluster_bytes)
        qcow2_check_corruption(check, "a data cluster has the unaligned offset 0x%llx",
                               (unsigned long long)offset);
    else
        add_refs(check, offset, s->cluster_bytes, QCOW2_USE_DATA, "a data cluster");
}

static int collect_l2(struct qcow2_check *check, uint64_t offset, uint8_t *buf, bool active,
                      struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    struct contiguity run = { .active = active };

    int ret = blk_child_pread(qcow2_file(check->node), offset, s->cluster_bytes, buf, err);
    if (ret < 0)
        return ret;
    for (uint32_t at = 0; at < s->cluster_bytes; at += s->l2_entry_bytes)
        collect_entry(check, be64_get(buf + at), &run);
    return 0;
}

/* ---- L1 tables ---- */

static int collect_l1(struct qcow2_check *check, uint64_t l1_offset, uint64_t entries, bool active,
                      struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    BLK_AUTOFREE uint64_t *l1 = NULL;
    BLK_AUTOFREE uint8_t *buf = malloc(s->cluster_bytes);
    if (!buf)
        return blk_fail(err, ENOMEM, "checking '%s'", check->node->name);

    add_refs(check, l1_offset, entries * 8, QCOW2_USE_OTHER, "an L1 table");
    int ret = qcow2_read_table(check->node, l1_offset, entries, QCOW2_MAX_L1_BYTES, &l1, "L1 table",
                               err);
    if (ret == -EINVAL || ret == -EFBIG) {
        qcow2_check_corruption(check, "an L1 table has the invalid offset 0x%llx",
                               (unsigned long long)l1_offset);
        blk_error_clear(err);
        return 0;
    }
    for (uint64_t i = 0; i < entries && ret == 0; i++) {
        uint64_t l2 = l1[i] & QCOW2_ENTRY_OFFSET;
        if (!l2)
            continue;
        if (l2 % s->cluster_bytes || l2 / s->cluster_bytes >= check->clusters) {
            qcow2_check_corruption(check, "an L1 entry has the invalid offset 0x%llx",
                                   (unsigned long long)l2);
            continue;
        }
        add_refs(check, l2, s->cluster_bytes, QCOW2_USE_L2, "an L2 table");
        ret = collect_l2(check, l2, buf, active, err);
    }
    return ret;
}

/* ---- the rest ---- */

static int collect_snapshot(void *opaque, const struct qcow2_snapshot *snapshot,
                            struct blk_error *err)
{
    return collect_l1(opaque, snapshot->l1_offset, snapshot->l1_entries, false, err);
}

static int collect_snapshots(struct qcow2_check *check, struct blk_error *err)
{
    const struct qcow2_header *header = &qcow2_state(check->node)->header;
    uint64_t table_bytes = 0;

    if (!header->snapshot_count)
        return 0;
    int ret = qcow2_snapshot_table_walk(check->node, collect_snapshot, check, &table_bytes, err);
    if (ret == -EINVAL || ret == -EFBIG) {
        qcow2_check_corruption(check, "the snapshot table is damaged: %s", err ? err->why : "");
        blk_error_clear(err);
        return 0;
    }
    add_refs(check, header->snapshots_offset, table_bytes, QCOW2_USE_OTHER, "the snapshot table");
    return ret;
}

static int collect_bitmap(struct qcow2_check *check, const struct qcow2_bitmap_entry *entry,
                          struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    BLK_AUTOFREE uint64_t *table = NULL;

    int ret = qcow2_read_table(check->node, entry->table_offset, entry->table_entries,
                               QCOW2_MAX_BITMAP_TABLE_ENTRIES * UINT64_C(8), &table,
                               "bitmap table", err);
    if (ret == -EINVAL || ret == -EFBIG) {
        qcow2_check_corruption(check, "the table of bitmap '%s' has an invalid place",
                               entry->name);
        blk_error_clear(err);
        return 0;
    }
    if (ret < 0)
        return ret;
    add_refs(check, entry->table_offset, entry->table_entries * UINT64_C(8), QCOW2_USE_OTHER,
             "a bitmap table");
    for (uint32_t i = 0; i < entry->table_entries; i++) {
        uint64_t offset = table[i] & QCOW2_BITMAP_TABLE_OFFSET;
        bool ones = table[i] & QCOW2_BITMAP_TABLE_ALL_ONES;
        if (table[i] & QCOW2_BITMAP_TABLE_RESERVED || offset % s->cluster_bytes || (offset && ones))
            qcow2_check_corruption(check, "bitmap '%s' has the invalid table entry 0x%llx",
                                   entry->name, (unsigned long long)table[i]);
        else if (offset)
            add_refs(check, offset, s->cluster_bytes, QCOW2_USE_OTHER, "bitmap data");
    }
    return 0;
}

static int collect_bitmaps(struct qcow2_check *check, struct blk_error *err)
{
    struct qcow2_bitmap_directory directory;

    int ret = qcow2_bitmap_directory_read(check->node, &directory, err);
    if (ret == -EINVAL) {
        qcow2_check_corruption(check, "the bitmap directory is damaged: %s", err ? err->why : "");
        blk_error_clear(err);
        ret = 0;
    } else if (ret == 0) {
        add_refs(check, directory.offset, directory.bytes, QCOW2_USE_OTHER,
                 "the bitmap directory");
        for (size_t i = 0; i < directory.count && ret == 0; i++)
            ret = collect_bitmap(check, &directory.entries[i], err);
    }
    qcow2_bitmap_directory_free(&directory);
    return ret;
}

static void collect_encryption_header(struct qcow2_check *check)
{
    const struct qcow2_extension *luks =
        qcow2_tail_find(&qcow2_state(check->node)->tail, QCOW2_EXT_LUKS);
    if (luks && luks->bytes == 16)
        add_refs(check, be64_get(luks->data), be64_get(luks->data + 8), QCOW2_USE_OTHER,
                 "the encryption header");
}

static int collect_refcount_structure(struct qcow2_check *check, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t bytes = (uint64_t)s->header.reftable_clusters * s->cluster_bytes;
    BLK_AUTOFREE uint64_t *table = NULL;

    add_refs(check, s->header.reftable_offset, bytes, QCOW2_USE_OTHER, "the refcount table");
    int ret = qcow2_read_table(check->node, s->header.reftable_offset, bytes / 8,
                               QCOW2_MAX_REFTABLE_BYTES, &table, "refcount table", err);
    if (ret == -EINVAL || ret == -EFBIG) {
        qcow2_check_corruption(check, "the refcount table has an invalid place");
        check->broken_counts = true;
        blk_error_clear(err);
        return 0;
    }
    for (uint64_t i = 0; i < bytes / 8 && ret == 0; i++) {
        uint64_t offset = table[i] & QCOW2_REFTABLE_OFFSET;
        if (table[i] & QCOW2_REFTABLE_RESERVED || offset % s->cluster_bytes ||
            offset / s->cluster_bytes >= check->clusters) {
            qcow2_check_corruption(check, "refcount block %llu has the invalid offset 0x%llx",
                                   (unsigned long long)i, (unsigned long long)table[i]);
            check->broken_counts = true;
        } else if (offset) {
            if (use_get(check, offset / s->cluster_bytes) != QCOW2_USE_NONE)
                check->broken_counts = true;
            add_refs(check, offset, s->cluster_bytes, QCOW2_USE_OTHER, "a refcount block");
        }
    }
    return ret;
}

int qcow2_check_collect(struct qcow2_check *check, bool refcount_structure, struct blk_error *err)
{
    const struct qcow2_header *header = &qcow2_state(check->node)->header;

    add_refs(check, 0, qcow2_state(check->node)->cluster_bytes, QCOW2_USE_OTHER, "the header");
    int ret = collect_l1(check, header->l1_offset, header->l1_entries, true, err);
    if (ret == 0)
        ret = collect_snapshots(check, err);
    if (ret == 0)
        ret = collect_bitmaps(check, err);
    collect_encryption_header(check);
    if (ret == 0 && refcount_structure)
        ret = collect_refcount_structure(check, err);
    return ret;
}
