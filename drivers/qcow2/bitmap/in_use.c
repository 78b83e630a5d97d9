/* SPDX-License-Identifier: MIT */
/*
 * in_use: what the image says of a bitmap that it cannot vouch for (C5).
 *
 * It is set in the live directory, in place: each flag lies in one sector, and a directory of which
 * only some entries are in use yet is merely pessimistic. It is cleared only by a store
 * (store.c), whose new directory replaces this one.
 *
 * Before it is set, the room that the store will need is set aside: clusters with a count that
 * nothing points to, which the file really has. So a disk that becomes full while writes are
 * recorded does not cost a bitmap. A run that is killed leaves them leaked.
 */
#include <errno.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/frees.h"

/* More than this is not set aside: the bitmaps of 8 TiB at the common granularity of 64 KiB. */
#define MAX_RESERVE_BYTES (16 * MIB)

/* ---- room for the store ---- */

/*
 * What storing the set takes at most: bits, tables and directory, whole clusters. Of the enabled
 * bitmaps, or of `all`, for a disk of `size` bytes.
 */
static uint64_t store_bytes(const struct blk_node *node, bool all, uint64_t size)
{
    uint64_t cluster = qcow2_state(node)->cluster_bytes;
    uint64_t bytes = 0, directory = 0;

    for (const struct blk_dirty_bitmap *b = node->bitmaps->first; b; b = b->next) {
        if (!b->persistent)
            continue;
        directory += QCOW2_BITMAP_ENTRY_MAX_BYTES;
        if (!(b->enabled || all) || b->inconsistent || b->unusable)
            continue;
        uint64_t bits = div_round_up(size, UINT64_C(1) << b->granularity_bits);
        uint64_t pieces = div_round_up(div_round_up(bits, 8), cluster);
        bytes += pieces * cluster + round_up(u64_max(pieces * 8, 1), cluster);
    }
    return bytes + round_up(directory, cluster);
}

/* Gives the clusters a count and a place in the file, both stable. */
static int reserve_for_store(struct blk_node *node, bool all, uint64_t size, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t bytes = u64_min(store_bytes(node, all, size), MAX_RESERVE_BYTES);
    uint64_t offset;

    if (s->bitmap_reserve_bytes)
        return 0;
    qcow2_lock(s);
    int ret = qcow2_alloc(node, bytes, &offset, err);
    qcow2_unlock(s);
    if (ret < 0)
        return ret;
    ret = blk_child_write_zeroes(qcow2_file(node), offset, bytes, 0, err);
    if (ret == 0)
        ret = qcow2_commit_all(node, err);
    if (ret < 0) {
        qcow2_unalloc(node, offset, bytes, NULL);
        return ret;
    }
    s->bitmap_reserve = offset;
    s->bitmap_reserve_bytes = bytes;
    return 0;
}

static int release_reserve(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t bytes = s->bitmap_reserve_bytes;

    s->bitmap_reserve_bytes = 0;
    return qcow2_unalloc(node, s->bitmap_reserve, bytes, err);
}

/* ---- the flag ---- */

/*
 * Sets in_use on what records or did until this run, or on everything. A bitmap that we cannot use
 * misses what is written from now on. Returns whether anything changed.
 */
static bool set_in_use(const struct blk_node *node, struct qcow2_bitmap_directory *directory,
                       bool all)
{
    struct blk_dirty_bitmap *expected = node->bitmaps->first; /* in the directory's order */
    bool any = false;

    for (size_t i = 0; i < directory->count; i++) {
        struct qcow2_bitmap_entry *entry = &directory->entries[i];
        struct blk_dirty_bitmap *bitmap = expected;
        if (!bitmap || strcmp(bitmap->name, entry->name) != 0)
            bitmap = blk_bitmaps_find(node, entry->name);
        expected = bitmap ? bitmap->next : expected;
        bool records = entry->flags & QCOW2_BITMAP_AUTO || (bitmap && bitmap->enabled);
        if (!(records || all) || entry->flags & QCOW2_BITMAP_IN_USE)
            continue;
        entry->flags |= QCOW2_BITMAP_IN_USE;
        if (bitmap && bitmap->unusable)
            bitmap->inconsistent = true;
        any = true;
    }
    return any;
}

/* Writes the directory over itself; only flags differ. */
static int rewrite_directory(struct blk_node *node, const struct qcow2_bitmap_directory *directory,
                             struct blk_error *err)
{
    BLK_AUTOFREE uint8_t *buf = NULL;
    uint64_t bytes;

    int ret = qcow2_bitmap_directory_encode(directory, &buf, &bytes, err);
    if (ret == 0)
        ret = blk_child_pwrite(qcow2_file(node), directory->offset,
                               round_up(bytes, BLK_SECTOR_BYTES), buf, 0, err);
    return ret < 0 ? ret : blk_child_flush(qcow2_file(node), err);
}

/* Nothing was recorded yet: what the failed write may have left is taken back. */
static void roll_back(struct blk_node *node, const struct qcow2_bitmap_directory *directory,
                      struct blk_error *err)
{
    if (rewrite_directory(node, directory, NULL) < 0)
        blk_left_behind(err, "its bitmaps may be marked as in use");
}

static int put_in_use(struct blk_node *node, bool all, struct blk_error *err)
{
    struct qcow2_bitmap_directory before, after;

    int ret = qcow2_bitmap_directory_read(node, &before, err);
    if (ret == 0)
        ret = qcow2_bitmap_directory_read(node, &after, err);
    else
        after = (struct qcow2_bitmap_directory){ .count = 0 };
    if (ret == 0 && set_in_use(node, &after, all)) {
        ret = rewrite_directory(node, &after, err);
        if (ret < 0)
            roll_back(node, &before, err);
    }
    qcow2_bitmap_directory_free(&before);
    qcow2_bitmap_directory_free(&after);
    return ret;
}

static int begin_use(struct blk_node *node, bool all, uint64_t size, struct blk_error *err)
{
    bool had_room = qcow2_state(node)->bitmap_reserve_bytes;
    int ret = qcow2_check_poison(node, err);
    if (ret == 0)
        ret = reserve_for_store(node, all, size, err);
    if (ret == 0)
        ret = put_in_use(node, all, err);
    /* A disk that shrinks: there is room, and the end of the file will be cut. */
    if (ret == 0 && size < blk_size(node) && !had_room)
        ret = release_reserve(node, err);
    if (ret < 0)
        blk_bitmaps_name(node, "marking as in use", err);
    return ret;
}

int qcow2_bitmaps_track(struct blk_node *node, struct blk_error *err)
{
    return begin_use(node, false, blk_size(node), err);
}

/* Sees that every bitmap can follow to that size, and will have the memory. */
static int prepare_resize(const struct blk_node *node, uint64_t size, struct blk_error *err)
{
    for (struct blk_dirty_bitmap *b = node->bitmaps->first; b; b = b->next) {
        if (b->inconsistent)
            continue;
        if (b->unusable)
            return blk_fail_why(err, ENOTSUP,
                                "it has properties that this version does not know, and cannot "
                                "follow to another size",
                                "bitmap '%s' of '%s'", b->name, node->name);
        int ret = b->size == size ? 0 : blk_dirty_bitmap_prepare_resize(b, size, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int qcow2_bitmaps_suspend(struct blk_node *node, uint64_t size, struct blk_error *err)
{
    if (!node->bitmaps || !node->bitmaps->first)
        return 0;
    int ret = blk_bitmaps_load(node, err);
    if (ret < 0)
        return ret;
    ret = prepare_resize(node, size, err);
    if (ret < 0)
        return ret;
    ret = begin_use(node, true, size, err);
    if (ret < 0)
        return ret;
    node->bitmaps->changed = true;
    return 0;
}
