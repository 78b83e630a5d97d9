/* SPDX-License-Identifier: MIT */
/*
 * Writing cluster 0.
 *
 * What changes in a header lies in its first sector, and that sector is written in one piece: so
 * each change is there wholly or not at all (C4). Behind the first sector lie only the feature
 * names, which explain and decide nothing, and the backing name. A new layout puts them into
 * bytes that the old one does not use, or that hold the same; those are written and stable before
 * the sector that points to them.
 */
#include "blockcore/graph/flush.h"
#include "drivers/qcow2/header/switch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/state.h"

static void encode_fields(const struct qcow2_header *header, uint8_t *buf)
{
    be32_put(buf + QCOW2_AT_MAGIC, QCOW2_MAGIC);
    be32_put(buf + QCOW2_AT_VERSION, header->version);
    be64_put(buf + QCOW2_AT_BACKING_OFFSET, header->backing_offset);
    be32_put(buf + QCOW2_AT_BACKING_BYTES, header->backing_bytes);
    be32_put(buf + QCOW2_AT_CLUSTER_BITS, header->cluster_bits);
    be64_put(buf + QCOW2_AT_SIZE, header->size);
    be32_put(buf + QCOW2_AT_CRYPT, header->crypt);
    be32_put(buf + QCOW2_AT_L1_ENTRIES, header->l1_entries);
    be64_put(buf + QCOW2_AT_L1_OFFSET, header->l1_offset);
    be64_put(buf + QCOW2_AT_REFTABLE_OFFSET, header->reftable_offset);
    be32_put(buf + QCOW2_AT_REFTABLE_CLUSTERS, header->reftable_clusters);
    be32_put(buf + QCOW2_AT_SNAPSHOT_COUNT, header->snapshot_count);
    be64_put(buf + QCOW2_AT_SNAPSHOTS_OFFSET, header->snapshots_offset);
    if (header->version < 3)
        return;
    be64_put(buf + QCOW2_AT_INCOMPATIBLE, header->incompatible);
    be64_put(buf + QCOW2_AT_COMPATIBLE, header->compatible);
    be64_put(buf + QCOW2_AT_AUTOCLEAR, header->autoclear);
    be32_put(buf + QCOW2_AT_REFCOUNT_ORDER, header->refcount_order);
    be32_put(buf + QCOW2_AT_HEADER_BYTES, header->header_bytes);
    if (header->header_bytes > QCOW2_AT_COMPRESSION)
        buf[QCOW2_AT_COMPRESSION] = header->compression;
}

/* ---- layout ---- */

/* What one way of laying out needs to know and finds out. */
struct layout {
    uint8_t *buf; /* the whole cluster, zeroes at first */
    uint8_t *old; /* to be switched from: the cluster as it was, or NULL */
    uint64_t cluster_bytes;
    bool keep_names;
    uint64_t used;           /* end of what is in use */
    uint64_t extensions_end; /* behind the end mark */
};

static int put_extension(struct layout *layout, uint32_t type, const void *data, uint32_t bytes)
{
    uint64_t length = 8 + round_up(bytes, 8);
    if (length > layout->cluster_bytes - layout->used)
        return -ENOSPC;
    be32_put(layout->buf + layout->used, type);
    be32_put(layout->buf + layout->used + 4, bytes);
    if (bytes)
        memcpy(layout->buf + layout->used + 8, data, bytes);
    layout->used += length;
    return 0;
}

/*
 * All extensions but the feature names; then these, if wanted; then the end mark. The end of what
 * decides something must be within the first sector: without names that includes the end mark.
 */
static int put_extensions(struct layout *layout, const struct qcow2_tail *tail)
{
    const struct qcow2_extension *names = NULL;
    int ret = 0;

    for (size_t i = 0; i < tail->count && ret == 0; i++) {
        const struct qcow2_extension *extension = &tail->extensions[i];
        if (extension->type == QCOW2_EXT_FEATURE_NAMES)
            names = extension;
        else
            ret = put_extension(layout, extension->type, extension->data, extension->bytes);
    }
    /* The eight bytes of the next mark, too. */
    if (ret == 0 && layout->used + 8 > BLK_SECTOR_BYTES)
        return -ENOSPC;
    if (ret == 0 && names && layout->keep_names)
        ret = put_extension(layout, names->type, names->data, names->bytes);
    if (ret == 0)
        ret = put_extension(layout, QCOW2_EXT_END, NULL, 0);
    return ret;
}

/*
 * Lays header and tail out with the backing name at `name_at`, or right behind the extensions if
 * that is 0. Fills the header's fields for it.
 */
static int lay_out(struct layout *layout, struct qcow2_header *header,
                   const struct qcow2_tail *tail, uint64_t name_at)
{
    layout->used = QCOW2_HEADER_V2_BYTES;
    if (header->version == 3) {
        if (tail->unknown)
            memcpy(layout->buf + QCOW2_HEADER_CURRENT_BYTES, tail->unknown, tail->unknown_bytes);
        layout->used = QCOW2_HEADER_CURRENT_BYTES + round_up(tail->unknown_bytes, 8);
    }
    header->header_bytes = (uint32_t)layout->used;

    int ret = put_extensions(layout, tail);
    if (ret < 0)
        return ret;

    layout->extensions_end = layout->used;
    header->backing_offset = 0;
    header->backing_bytes = 0;
    if (tail->backing_name) {
        size_t length = strlen(tail->backing_name);
        uint64_t at = u64_max(name_at, layout->used);
        if (length > QCOW2_MAX_BACKING_NAME || !range_within(at, length, layout->cluster_bytes))
            return -ENOSPC;
        memcpy(layout->buf + at, tail->backing_name, length);
        header->backing_offset = at;
        header->backing_bytes = (uint32_t)length;
        layout->used = at + length;
    }
    encode_fields(header, layout->buf);
    return 0;
}

int qcow2_header_encode(struct qcow2_header *header, const struct qcow2_tail *tail, uint8_t *buf,
                        struct blk_error *err)
{
    uint64_t cluster_bytes = UINT64_C(1) << header->cluster_bits;
    for (int keep_names = 1; keep_names >= 0; keep_names--) {
        struct layout layout = {
            .buf = buf,
            .cluster_bytes = cluster_bytes,
            .keep_names = keep_names,
        };
        memset(buf, 0, cluster_bytes);
        if (lay_out(&layout, header, tail, 0) == 0)
            return 0;
    }
    return blk_fail_why(err, EFBIG, "it does not fit into the header cluster",
                        "writing a qcow2 header with its extensions and backing file name");
}

/* ---- writing ---- */

/* The medium's header is unknown from here on. */
static int poison(struct blk_node *node, int ret, struct blk_error *err)
{
    qcow2_poison(qcow2_state(node), -ret);
    blk_context(err, "writing the header of '%s'", node->name);
    return ret;
}

/*
 * Writes sector 0 (or, for a file of larger blocks, the block it is in, by the file's own doing)
 * and flushes.
 */
static int write_sector(struct blk_node *node, const uint8_t *sector, struct blk_error *err)
{
    int ret = blk_child_pwrite(qcow2_file(node), 0, BLK_SECTOR_BYTES, sector, 0, err);
    if (ret == 0)
        ret = qcow2_barrier(node, err);
    return ret < 0 ? poison(node, ret, err) : 0;
}

/*
 * Sector 0 with the fields of *next, which gets those that a switch does not change. header_mutex
 * is held.
 */
static void encode_sector(const struct qcow2_state *s, struct qcow2_header *next,
                          uint8_t sector[BLK_SECTOR_BYTES])
{
    ASSERT_LOCKED(&s->header_mutex);
    next->backing_offset = s->header.backing_offset;
    next->backing_bytes = s->header.backing_bytes;
    next->header_bytes = s->header.header_bytes;
    next->cluster_bits = s->header.cluster_bits;
    memcpy(sector, s->sector0, BLK_SECTOR_BYTES);
    encode_fields(next, sector);
}

/* Writes the header with the fields of *next into sector 0. header_mutex is held. */
static int switch_held(struct blk_node *node, struct qcow2_header *next, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint8_t sector[BLK_SECTOR_BYTES];

    ASSERT_LOCKED(&s->header_mutex);
    int ret = qcow2_check_poison(node, err);
    if (ret < 0)
        return ret;
    encode_sector(s, next, sector);
    ret = write_sector(node, sector, err);
    if (ret == 0)
        memcpy(s->sector0, sector, sizeof(sector));
    return ret;
}

int qcow2_header_switch(struct blk_node *node, const struct qcow2_header *next,
                        struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_header header = *next;

    LOCK_SCOPE(&s->header_mutex);
    int ret = switch_held(node, &header, err);
    if (ret == 0) {
        s->header = header;
        qcow2_note_bitmap_directory(s);
    }
    return ret;
}

int qcow2_header_patch(struct blk_node *node, uint64_t offset, const void *data, size_t bytes,
                       struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);

    LOCK_SCOPE(&s->header_mutex);
    int ret = qcow2_check_poison(node, err);
    if (ret == 0) {
        ret = blk_child_pwrite(qcow2_file(node), offset, bytes, data, 0, err);
        if (ret == 0)
            ret = qcow2_barrier(node, err);
        if (ret < 0)
            ret = poison(node, ret, err);
    }
    if (ret == 0 && offset < BLK_SECTOR_BYTES)
        memcpy(s->sector0 + offset, data, u64_min(bytes, BLK_SECTOR_BYTES - offset));
    return ret;
}

int qcow2_header_switch_reftable(struct blk_node *node, uint64_t offset, uint32_t clusters,
                                 struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);

    LOCK_SCOPE(&s->header_mutex);
    struct qcow2_header next = s->header;
    next.reftable_offset = offset;
    next.reftable_clusters = clusters;
    int ret = switch_held(node, &next, err);
    if (ret == 0) {
        /* Requests are in flight and read other fields: only these two may be touched. */
        s->header.reftable_offset = offset;
        s->header.reftable_clusters = clusters;
    }
    return ret;
}

void qcow2_header_mark_corrupt(struct blk_node *node)
{
    struct qcow2_state *s = qcow2_state(node);

    LOCK_SCOPE(&s->header_mutex);
    struct qcow2_header next = s->header;
    next.incompatible |= QCOW2_INCOMPAT_CORRUPT;
    if (next.version >= 3 && next.incompatible != s->header.incompatible) {
        uint8_t sector[BLK_SECTOR_BYTES];
        encode_sector(s, &next, sector);
        s->header.incompatible = next.incompatible;
        memcpy(s->sector0, sector, sizeof(sector));
        if (blk_child_pwrite(qcow2_file(node), 0, sizeof(sector), sector, 0, NULL) == 0)
            blk_child_flush(qcow2_file(node), NULL);
    }
}

/*
 * Whether the layout leaves alone what the old one uses behind the first sector, or puts the same
 * bytes there.
 */
static bool is_compatible(const struct layout *layout, uint64_t old_used)
{
    uint64_t both = u64_min(layout->used, old_used);
    return both <= BLK_SECTOR_BYTES ||
           memcmp(layout->buf + BLK_SECTOR_BYTES, layout->old + BLK_SECTOR_BYTES,
                  both - BLK_SECTOR_BYTES) == 0;
}

/* Finds a layout that can be switched to by the first sector alone. */
static int find_layout(struct layout *layout, struct qcow2_header *header,
                       const struct qcow2_tail *tail, uint64_t old_used)
{
    /*
     * With the feature names or without, the backing name behind them or behind all that is in use.
     */
    static const struct {
        bool keep_names, name_behind;
    } ways[] = {
        { true, false },
        { true, true },
        { false, false },
        { false, true },
    };
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        layout->keep_names = ways[i].keep_names;
        memset(layout->buf, 0, layout->cluster_bytes);
        uint64_t name_at = ways[i].name_behind ? u64_max(old_used, BLK_SECTOR_BYTES) : 0;
        if (lay_out(layout, header, tail, name_at) < 0)
            continue;
        /*
         * Between extensions and a name further behind is what the old layout has: left as it is.
         */
        if (name_at && header->backing_offset >= name_at) {
            uint64_t end = header->backing_offset;
            struct layout front = *layout;
            front.used = layout->extensions_end;
            if (!is_compatible(&front, old_used))
                continue;
            for (uint64_t at = u64_max(front.used, BLK_SECTOR_BYTES); at < end; at++)
                layout->buf[at] = layout->old[at];
            return 0;
        }
        if (is_compatible(layout, old_used))
            return 0;
    }
    return -ENOSPC;
}

/* For a switch; the caller checks and frees both buffers. */
static struct layout new_layout(const struct qcow2_state *s)
{
    return (struct layout){
        .buf = blk_malloc(s->cluster_bytes),
        .old = blk_calloc(1, s->cluster_bytes),
        .cluster_bytes = s->cluster_bytes,
    };
}

/*
 * Lays `layout` out for *header and `tail`; layout->old gets what cluster 0 has now. header_mutex
 * is held.
 */
static int plan_held(struct blk_node *node, struct layout *layout, struct qcow2_header *header,
                     const struct qcow2_tail *tail, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct blk_node *file = qcow2_file(node);

    ASSERT_LOCKED(&s->header_mutex);
    int ret = blk_child_pread(file, 0, u64_min(blk_size(file), s->cluster_bytes), layout->old, err);
    if (ret < 0)
        return ret;
    header->cluster_bits = s->header.cluster_bits;
    if (find_layout(layout, header, tail, s->tail.layout_bytes) < 0)
        return blk_fail_why(err, ENOSPC, "the first sector has no room for it",
                            "changing the header of '%s'", node->name);
    return 0;
}

/* *began: there is a layout, and writing it has begun. header_mutex is held. */
static int relayout_held(struct blk_node *node, struct layout *layout,
                         const struct qcow2_header *next, const struct qcow2_tail *tail,
                         bool *began, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct blk_node *file = qcow2_file(node);
    struct qcow2_header header = *next;
    uint8_t *buf = layout->buf;

    ASSERT_LOCKED(&s->header_mutex);
    *began = false;
    int ret = plan_held(node, layout, &header, tail, err);
    if (ret < 0)
        return ret;

    *began = true;
    if (layout->used > BLK_SECTOR_BYTES) {
        uint64_t bytes = round_up(layout->used, BLK_SECTOR_BYTES) - BLK_SECTOR_BYTES;
        /* Whole sectors: what the last one has behind the layout stays. */
        memcpy(buf + layout->used, layout->old + layout->used,
               BLK_SECTOR_BYTES + bytes - layout->used);
        ret = blk_child_pwrite(file, BLK_SECTOR_BYTES, bytes, buf + BLK_SECTOR_BYTES, 0, err);
        if (ret == 0)
            ret = qcow2_barrier(node, err);
        if (ret < 0)
            return ret;
    }
    ret = write_sector(node, buf, err);
    if (ret < 0)
        return ret;

    s->header = header;
    memcpy(s->sector0, buf, BLK_SECTOR_BYTES);
    struct qcow2_tail copy;
    qcow2_tail_copy(&copy, tail);
    copy.layout_bytes = (uint32_t)layout->used;
    if (!layout->keep_names)
        qcow2_tail_remove(&copy, QCOW2_EXT_FEATURE_NAMES);
    qcow2_tail_free(&s->tail);
    s->tail = copy;
    qcow2_note_bitmap_directory(s);
    return 0;
}

/*
 * Feature names that were in the way and have been dropped may fit behind the rest, now that this
 * lies elsewhere.
 */
static int restore_names(struct blk_node *node, struct layout *layout,
                         const struct qcow2_header *next, const struct qcow2_tail *tail,
                         struct blk_error *err)
{
    bool began;
    if (!qcow2_tail_find(tail, QCOW2_EXT_FEATURE_NAMES) ||
        qcow2_tail_find(&qcow2_state(node)->tail, QCOW2_EXT_FEATURE_NAMES))
        return 0;
    int ret = relayout_held(node, layout, next, tail, &began, err);
    if (ret < 0 && !began && ret == -ENOSPC) {
        blk_error_clear(err);
        return 0;
    }
    /* The first switch is on the medium: a failure now must not look like none at all. */
    return ret < 0 ? poison(node, ret, err) : 0;
}

int qcow2_header_relayout(struct blk_node *node, const struct qcow2_header *next,
                          const struct qcow2_tail *tail, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    bool began;
    int ret = qcow2_check_poison(node, err);
    if (ret < 0)
        return ret;

    struct layout layout = new_layout(s);
    if (!layout.buf || !layout.old) {
        ret = blk_fail(err, ENOMEM, "changing the header of '%s'", node->name);
    } else {
        LOCK_SCOPE(&s->header_mutex);
        ret = relayout_held(node, &layout, next, tail, &began, err);
        if (ret == 0)
            ret = restore_names(node, &layout, next, tail, err);
    }
    free(layout.buf);
    free(layout.old);
    return ret;
}

int qcow2_header_can_relayout(struct blk_node *node, const struct qcow2_tail *tail,
                              struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_header header = s->header;
    struct layout layout = new_layout(s);
    int ret;

    if (!layout.buf || !layout.old) {
        ret = blk_fail(err, ENOMEM, "planning the header of '%s'", node->name);
    } else {
        LOCK_SCOPE(&s->header_mutex);
        ret = plan_held(node, &layout, &header, tail, err);
    }
    free(layout.buf);
    free(layout.old);
    return ret;
}
