/* SPDX-License-Identifier: MIT */
/*
 * From memory to the image: storing the set.
 *
 * Everything is written next to the old: data and tables, then a directory, made stable together,
 * then one write of the header's sector switches to them (C4), then the old clusters are freed. A
 * failure before the switch leaves the image's bitmaps what they were: in use where they had begun
 * to record, untouched where not.
 *
 * A signal stops the store only where that costs nothing: where the image does not say of any
 * bitmap in memory that it is in use.
 */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/identity.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/frees.h"

#define COPY_BYTES (256 * KIB) /* bits are written in pieces of about this size */

/* ---- new places ---- */

struct place {
    uint64_t offset, bytes;
};

/* What one store has allocated: given back if it fails before the switch. */
struct places {
    struct place *list;
    size_t count;
    struct place reserve; /* what is left of the clusters that were set aside when tracking began */
    bool can_stop;        /* the bitmaps in the image are valid without this store */
};

static int allocate_place(struct blk_node *node, struct places *places, uint64_t bytes,
                          uint64_t *offset, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t whole = round_up(bytes, s->cluster_bytes);

    if (whole <= places->reserve.bytes) {
        *offset = places->reserve.offset;
        places->reserve.offset += whole;
        places->reserve.bytes -= whole;
        return 0;
    }
    qcow2_lock(s);
    int ret = qcow2_alloc(node, bytes, offset, err);
    qcow2_unlock(s);
    if (ret < 0)
        return ret;
    places->list = blk_xgrow(places->list, places->count, sizeof(*places->list));
    places->list[places->count++] = (struct place){ *offset, bytes };
    return 0;
}

/*
 * Nothing on the medium points to them. A failure here only leaks clusters of an image that has
 * already failed. What was set aside stays so: the store may be tried again.
 */
static void give_back_places(struct blk_node *node, struct places *places)
{
    for (size_t i = 0; i < places->count; i++)
        if (qcow2_unalloc(node, places->list[i].offset, places->list[i].bytes, NULL) < 0)
            break;
}

/* After the switch: what was set aside and not needed. */
static int give_back_reserve(struct blk_node *node, const struct places *places,
                             struct blk_error *err)
{
    qcow2_state(node)->bitmap_reserve_bytes = 0;
    return qcow2_unalloc(node, places->reserve.offset, places->reserve.bytes, err);
}

/* ---- data and tables ---- */

static uint64_t piece_count(const struct blk_node *node, const struct blk_dirty_bitmap *bitmap)
{
    return div_round_up(blk_dirty_bitmap_stored_bytes(bitmap), qcow2_state(node)->cluster_bytes);
}

static int check_stop(const struct places *places, struct blk_error *err)
{
    if (!places->can_stop || !blk_cancelled())
        return 0;
    return blk_fail_why(err, ECANCELED, "stopped by a signal", "writing");
}

/* What stands in the table for a piece without data. */
#define PIECE_HAS_DATA UINT64_MAX

/*
 * Fills the table: what stands for a piece that is all zeroes or all ones, PIECE_HAS_DATA for any
 * other. Counts those.
 */
static int look_at_pieces(const struct blk_node *node, const struct blk_dirty_bitmap *bitmap,
                          const struct places *places, uint8_t *table, uint64_t *with_data,
                          struct blk_error *err)
{
    uint32_t bytes = qcow2_state(node)->cluster_bytes;
    uint64_t pieces = piece_count(node, bitmap);
    int ret = 0;

    *with_data = 0;
    for (uint64_t i = 0; i < pieces && ret == 0; i++) {
        uint64_t entry = PIECE_HAS_DATA;
        if (blk_dirty_bitmap_piece_is(bitmap, i * bytes, bytes, false))
            entry = 0;
        else if (blk_dirty_bitmap_piece_is(bitmap, i * bytes, bytes, true))
            entry = QCOW2_BITMAP_TABLE_ALL_ONES;
        else
            ++*with_data;
        be64_put(table + i * 8, entry);
        ret = check_stop(places, err);
    }
    return ret;
}

/*
 * Writes the pieces that have data one after the other from `data` on, and fills in where they are.
 */
static int write_pieces(struct blk_node *node, const struct blk_dirty_bitmap *bitmap,
                        const struct places *places, uint64_t data, uint8_t *table,
                        struct blk_error *err)
{
    uint64_t cluster = qcow2_state(node)->cluster_bytes;
    uint64_t pieces = piece_count(node, bitmap);
    uint64_t room = u64_max(round_down(COPY_BYTES, cluster), cluster);
    BLK_AUTOFREE uint8_t *buf = blk_buffer_alloc(room);
    uint64_t filled = 0;
    int ret = 0;

    if (!buf) {
        room = cluster;
        buf = blk_buffer_alloc(room);
    }
    if (!buf)
        return blk_fail(err, ENOMEM, "storing bitmap '%s'", bitmap->name);
    for (uint64_t i = 0; i < pieces && ret == 0; i++) {
        if (be64_get(table + i * 8) != PIECE_HAS_DATA)
            continue;
        be64_put(table + i * 8, data + filled);
        blk_dirty_bitmap_export(bitmap, i * cluster, cluster, buf + filled);
        filled += cluster;
        if (filled == room) {
            ret = check_stop(places, err);
            if (ret == 0)
                ret = blk_child_pwrite(qcow2_file(node), data, filled, buf, 0, err);
            data += filled;
            filled = 0;
        }
    }
    if (ret == 0 && filled)
        ret = blk_child_pwrite(qcow2_file(node), data, filled, buf, 0, err);
    return ret;
}

/* Writes bits and table to new places; fills where and how long the table is. */
static int write_bits(struct blk_node *node, const struct blk_dirty_bitmap *bitmap,
                      struct places *places, struct qcow2_bitmap_entry *entry,
                      struct blk_error *err)
{
    uint64_t cluster = qcow2_state(node)->cluster_bytes;
    uint64_t pieces = piece_count(node, bitmap);
    uint64_t table_bytes = round_up(u64_max(pieces * 8, 1), BLK_SECTOR_BYTES);
    uint64_t with_data = 0, data = 0;

    if (pieces > QCOW2_MAX_BITMAP_TABLE_ENTRIES)
        return blk_fail_why(err, EFBIG, "it has too many bits for this cluster size", "bitmap '%s'",
                            bitmap->name);
    BLK_AUTOFREE uint8_t *table = blk_calloc(1, table_bytes);
    if (!table)
        return blk_fail(err, ENOMEM, "storing bitmap '%s'", bitmap->name);
    entry->table_entries = (uint32_t)pieces;
    int ret = look_at_pieces(node, bitmap, places, table, &with_data, err);
    if (ret < 0)
        return ret;
    if (with_data)
        ret = allocate_place(node, places, with_data * cluster, &data, err);
    if (ret < 0)
        return ret;
    ret = allocate_place(node, places, table_bytes, &entry->table_offset, err);
    if (ret < 0)
        return ret;
    ret = write_pieces(node, bitmap, places, data, table, err);
    if (ret < 0)
        return ret;
    return blk_child_pwrite(qcow2_file(node), entry->table_offset, table_bytes, table, 0, err);
}

/* ---- the new directory ---- */

static uint32_t flags_to_store(const struct blk_dirty_bitmap *bitmap)
{
    const struct qcow2_bitmap_entry *stored = bitmap->state;
    uint32_t flags = stored ? stored->flags & ~(QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO) : 0;

    return flags | (bitmap->inconsistent ? QCOW2_BITMAP_IN_USE : 0) |
           (bitmap->enabled ? QCOW2_BITMAP_AUTO : 0);
}

/* Whether the bits have to be written: new, or changed since they were loaded. */
static bool bits_changed(const struct blk_dirty_bitmap *bitmap)
{
    return !bitmap->inconsistent && !bitmap->unusable &&
           (!bitmap->state || atomic_load(&bitmap->changed));
}

/* One entry, its bits written where they changed. The name is the bitmap's own. */
static int make_entry(struct blk_node *node, struct blk_dirty_bitmap *bitmap, struct places *places,
                      struct qcow2_bitmap_entry *entry, struct blk_error *err)
{
    const struct qcow2_bitmap_entry *stored = bitmap->state;

    if (stored)
        *entry = *stored;
    else
        *entry = (struct qcow2_bitmap_entry){ .type = QCOW2_BITMAP_TYPE_DIRTY };
    entry->name = bitmap->name;
    entry->granularity_bits = (uint8_t)bitmap->granularity_bits;
    entry->flags = flags_to_store(bitmap);
    if (!bits_changed(bitmap))
        return 0;

    int ret = write_bits(node, bitmap, places, entry, err);
    if (ret < 0)
        blk_context(err, "storing bitmap '%s' of '%s'", bitmap->name, node->name);
    return ret;
}

static size_t count_persistent(const struct blk_node *node)
{
    size_t count = 0;
    for (const struct blk_dirty_bitmap *b = node->bitmaps->first; b; b = b->next)
        count += b->persistent;
    return count;
}

/*
 * Fills `directory` with the entries of all persistent bitmaps; their names and extra data stay the
 * bitmaps' own.
 */
static int make_entries(struct blk_node *node, struct places *places,
                        struct qcow2_bitmap_directory *directory, struct blk_error *err)
{
    int ret = 0;

    directory->entries = blk_xcalloc(count_persistent(node), sizeof(*directory->entries));
    for (struct blk_dirty_bitmap *b = node->bitmaps->first; b && ret == 0; b = b->next)
        if (b->persistent)
            ret = make_entry(node, b, places, &directory->entries[directory->count++], err);
    return ret;
}

static int write_new_directory(struct blk_node *node, struct places *places,
                               struct qcow2_bitmap_directory *directory, struct blk_error *err)
{
    BLK_AUTOFREE uint8_t *buf = NULL;

    if (!directory->count)
        return 0;
    int ret = qcow2_bitmap_directory_encode(directory, &buf, &directory->bytes, err);
    if (ret == 0)
        ret = allocate_place(node, places, directory->bytes, &directory->offset, err);
    if (ret == 0)
        ret = blk_child_pwrite(qcow2_file(node), directory->offset,
                               round_up(directory->bytes, BLK_SECTOR_BYTES), buf, 0, err);
    return ret;
}

/* ---- the switch ---- */

static int switch_directory(struct blk_node *node, const struct qcow2_bitmap_directory *directory,
                            struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_header next = s->header;
    struct qcow2_tail tail;

    qcow2_tail_copy(&tail, &s->tail);
    if (directory->count) {
        uint8_t extension[QCOW2_BITMAPS_EXT_BYTES] = { 0 };
        be32_put(extension, (uint32_t)directory->count);
        be64_put(extension + 8, directory->bytes);
        be64_put(extension + 16, directory->offset);
        qcow2_tail_set(&tail, QCOW2_EXT_BITMAPS, extension, sizeof(extension));
        next.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    } else {
        qcow2_tail_remove(&tail, QCOW2_EXT_BITMAPS);
        next.autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
    }
    qcow2_identity_apply(node, &tail);
    int ret = qcow2_header_relayout(node, &next, &tail, err);
    qcow2_tail_free(&tail);
    return ret;
}

/* The bitmaps now are what the new directory says. */
static void adopt(struct blk_node *node, const struct qcow2_bitmap_directory *directory)
{
    size_t i = 0;

    for (struct blk_dirty_bitmap *b = node->bitmaps->first; b; b = b->next) {
        if (!b->persistent)
            continue;
        if (!b->state)
            b->state = blk_xcalloc(1, sizeof(struct qcow2_bitmap_entry));
        *(struct qcow2_bitmap_entry *)b->state = directory->entries[i++];
        atomic_store(&b->changed, false);
    }
    node->bitmaps->changed = false;
    blk_bitmaps_untrack(node->bitmaps);
    qcow2_identity_note(node);
}

static int compare_offsets(const void *a, const void *b)
{
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;
    return (first > second) - (first < second);
}

/* Where the directory's tables are, sorted: an image may have very many. NULL: no memory. */
static uint64_t *sorted_tables(const struct qcow2_bitmap_directory *directory)
{
    uint64_t *offsets = blk_calloc(directory->count + 1, sizeof(*offsets));

    for (size_t i = 0; offsets && i < directory->count; i++)
        offsets[i] = directory->entries[i].table_offset;
    if (offsets)
        qsort(offsets, directory->count, sizeof(*offsets), compare_offsets);
    return offsets;
}

/* Frees table and data of an entry that is no more. */
static int free_entry(struct blk_node *node, const struct qcow2_bitmap_entry *entry,
                      struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    BLK_AUTOFREE uint64_t *table = NULL;

    int ret = qcow2_read_table(node, &qcow2_bitmap_table_kind, entry->table_offset,
                               entry->table_entries, &table, err);
    if (ret < 0)
        return ret;
    QCOW2_LOCK_SCOPE(s);
    for (uint32_t i = 0; i < entry->table_entries; i++) {
        uint64_t offset = table[i] & QCOW2_BITMAP_TABLE_OFFSET;
        if (offset && offset % s->cluster_bytes == 0)
            qcow2_free_later(node, offset, s->cluster_bytes, QCOW2_FREE_OTHER);
    }
    if (entry->table_offset)
        qcow2_free_later(node, entry->table_offset, u64_max(entry->table_entries * UINT64_C(8), 1),
                         QCOW2_FREE_OTHER);
    return 0;
}

static int free_old(struct blk_node *node, const struct qcow2_bitmap_directory *old,
                    const struct qcow2_bitmap_directory *directory, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    BLK_AUTOFREE uint64_t *kept = sorted_tables(directory);
    int ret = kept ? 0 : blk_fail(err, ENOMEM, "freeing the old bitmaps");

    for (size_t i = 0; i < old->count && ret == 0; i++)
        if (!bsearch(&old->entries[i].table_offset, kept, directory->count, sizeof(*kept),
                     compare_offsets))
            ret = free_entry(node, &old->entries[i], err);
    if (ret < 0) {
        blk_left_behind(err, "the bitmaps are stored; clusters of the old ones leak");
        return ret;
    }
    if (old->bytes) {
        QCOW2_LOCK_SCOPE(s);
        qcow2_free_later(node, old->offset, old->bytes, QCOW2_FREE_OTHER);
    }
    return qcow2_commit_all(node, err);
}

/* ---- the whole ---- */

/* Whether the image, whose directory is `old`, would lose a bitmap without this store. */
static bool has_in_use(const struct blk_node *node, const struct qcow2_bitmap_directory *old)
{
    size_t in_use = 0;

    for (size_t i = 0; i < old->count; i++)
        in_use += old->entries[i].flags & QCOW2_BITMAP_IN_USE ? 1 : 0;
    for (const struct blk_dirty_bitmap *b = node->bitmaps->first; b && in_use; b = b->next)
        if (!b->inconsistent && b->state)
            return true;
    return false;
}

/* All steps up to and including the switch, and the unused reserve. */
static int store_and_switch(struct blk_node *node, const struct qcow2_bitmap_directory *old,
                            struct qcow2_bitmap_directory *directory, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    struct places places = {
        .reserve = { s->bitmap_reserve, s->bitmap_reserve_bytes },
        .can_stop = !node->abandoned && !node->bitmaps->must_store && !has_in_use(node, old),
    };

    int ret = make_entries(node, &places, directory, err);
    if (ret == 0)
        ret = write_new_directory(node, &places, directory, err);
    if (ret == 0)
        ret = qcow2_commit_all(node, err);
    if (ret == 0)
        ret = switch_directory(node, directory, err);
    if (ret == 0) {
        adopt(node, directory);
        ret = give_back_reserve(node, &places, err);
    } else if (qcow2_check_poison(node, NULL) == 0) {
        give_back_places(node, &places);
    }
    free(places.list);
    return ret;
}

static void report_each(struct blk_node *node, struct blk_close_report *report, int ret,
                        const struct blk_error *err)
{
    struct blk_dirty_bitmap *first = node->bitmaps ? node->bitmaps->first : NULL;

    for (struct blk_dirty_bitmap *b = first; b && report; b = b->next)
        if (b->persistent)
            blk_close_report_add(report, node, BLK_STEP_STORE, b->name,
                                 b->inconsistent ? BLK_OUTCOME_SKIPPED
                                 : ret < 0       ? BLK_OUTCOME_FAILED
                                                 : BLK_OUTCOME_OK,
                                 err);
}

int qcow2_bitmaps_store(struct blk_node *node, struct blk_close_report *report,
                        struct blk_error *err)
{
    struct qcow2_bitmap_directory old, directory = { .count = 0 };
    struct blk_error own = BLK_ERROR_INIT;

    if (!blk_bitmaps_unsaved(node)) {
        report_each(node, report, 0, NULL);
        return 0;
    }
    int ret = qcow2_bitmap_directory_read(node, &old, &own);
    if (ret == 0)
        ret = store_and_switch(node, &old, &directory, &own);
    if (ret == 0)
        ret = free_old(node, &old, &directory, &own);
    if (ret < 0) {
        blk_fail_if_unset(&own, -ret, "writing");
        blk_bitmaps_name(node, "storing", &own);
        if (err)
            *err = own;
    }
    report_each(node, report, ret, &own);
    free(directory.entries);
    qcow2_bitmap_directory_free(&old);
    return ret;
}
