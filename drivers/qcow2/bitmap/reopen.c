/* SPDX-License-Identifier: MIT */
/*
 * What becomes of each bitmap when a node that was only read becomes writable.
 *
 * While it was only read nothing was recorded here, so the image is the newer of the two, whatever
 * others have done to it meanwhile. The table below has every combination of a bitmap in memory and
 * one of that name in the image. None makes a bitmap valid that may have missed writes: what the
 * image calls in use stays so, and what is no longer in the image is not put back.
 */
#include <errno.h>
#include <string.h>

#include "blockcore/base/assert.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/state.h"

/* ---- the header ---- */

/* Whether nothing but the bitmaps, and their mark, differs. */
static bool is_same_image(const struct qcow2_header *a, const struct qcow2_header *b)
{
    return a->version == b->version && a->cluster_bits == b->cluster_bits && a->size == b->size &&
           a->l1_offset == b->l1_offset && a->l1_entries == b->l1_entries &&
           a->reftable_offset == b->reftable_offset &&
           a->reftable_clusters == b->reftable_clusters &&
           a->snapshots_offset == b->snapshots_offset && a->snapshot_count == b->snapshot_count &&
           a->incompatible == b->incompatible && a->refcount_order == b->refcount_order &&
           a->backing_bytes == b->backing_bytes;
}

static bool is_same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* Reads the header again: it names the directory. */
static int read_header_again(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_header header;
    struct qcow2_tail tail;
    uint8_t sector[BLK_SECTOR_BYTES] = { 0 };

    int ret = qcow2_header_read(node, &header, &tail, err);
    if (ret == 0)
        ret = blk_child_pread(qcow2_file(node), 0, sizeof(sector), sector, err);
    if (ret == 0 && (!is_same_image(&header, &s->header) ||
                     !is_same_text(tail.backing_name, s->tail.backing_name)))
        ret = blk_fail_why(err, ESTALE, "another program changed it while it was open read-only",
                           "reopening '%s' for writing", node->name);
    if (ret < 0) {
        qcow2_tail_free(&tail);
        return ret;
    }
    s->header = header;
    memcpy(s->sector0, sector, sizeof(sector));
    qcow2_tail_free(&s->tail);
    s->tail = tail;
    qcow2_note_bitmap_directory(s);
    return 0;
}

/* ---- the combinations ---- */

enum combination {
    BOTH_EQUAL,
    IMAGE_IN_USE,
    ONLY_IN_IMAGE,
    ONLY_IN_MEMORY,
    DIFFERENT,
};

/*
 * Each gets the bitmap in memory (or NULL) and the entry (or NULL), and returns what the set is to
 * have; NULL: none.
 */
typedef struct blk_dirty_bitmap *outcome_fn(struct blk_node *node, struct blk_dirty_bitmap *bitmap,
                                            const struct qcow2_bitmap_entry *entry);

static void discard(struct blk_dirty_bitmap *bitmap)
{
    if (bitmap)
        qcow2_bitmap_release(bitmap);
    blk_dirty_bitmap_free(bitmap);
}

/* Its bits, if they are in memory, are those of the image. */
static struct blk_dirty_bitmap *keep_bitmap(struct blk_node *node, struct blk_dirty_bitmap *bitmap,
                                            const struct qcow2_bitmap_entry *entry)
{
    (void)node, (void)entry;
    return bitmap;
}

/* Loaded when it is needed; inconsistent if the image calls it in use. */
static struct blk_dirty_bitmap *take_from_image(struct blk_node *node,
                                                struct blk_dirty_bitmap *bitmap,
                                                const struct qcow2_bitmap_entry *entry)
{
    discard(bitmap);
    return qcow2_bitmap_from_entry(node, entry);
}

/* One that the image never had goes on; one that somebody removed is gone. */
static struct blk_dirty_bitmap *keep_own(struct blk_node *node, struct blk_dirty_bitmap *bitmap,
                                         const struct qcow2_bitmap_entry *entry)
{
    (void)node, (void)entry;
    if (!bitmap->persistent || !bitmap->state)
        return bitmap;
    discard(bitmap);
    return NULL;
}

static outcome_fn *const outcomes[] = {
    [BOTH_EQUAL] = keep_bitmap,
    [IMAGE_IN_USE] = take_from_image,  /* somebody recorded into it, and may not have finished */
    [ONLY_IN_IMAGE] = take_from_image, /* somebody made it */
    [ONLY_IN_MEMORY] = keep_own,
    [DIFFERENT] = take_from_image, /* granularity, flags or place: another store */
};

static bool is_equal(const struct blk_dirty_bitmap *bitmap, const struct qcow2_bitmap_entry *entry)
{
    const struct qcow2_bitmap_entry *stored = bitmap->state;
    return stored && stored->table_offset == entry->table_offset &&
           stored->table_entries == entry->table_entries && stored->flags == entry->flags &&
           stored->granularity_bits == entry->granularity_bits && stored->type == entry->type &&
           stored->extra_bytes == entry->extra_bytes;
}

static enum combination combination_of(const struct blk_dirty_bitmap *bitmap,
                                       const struct qcow2_bitmap_entry *entry)
{
    if (!entry)
        return ONLY_IN_MEMORY;
    if (!bitmap)
        return ONLY_IN_IMAGE;
    if (entry->flags & QCOW2_BITMAP_IN_USE)
        return IMAGE_IN_USE;
    return is_equal(bitmap, entry) ? BOTH_EQUAL : DIFFERENT;
}

/* ---- the set ---- */

/* Takes the bitmap of that name out of a list; NULL if there is none. */
static struct blk_dirty_bitmap *take_from_list(struct blk_dirty_bitmap **list, const char *name)
{
    while (*list && strcmp((*list)->name, name) != 0)
        list = &(*list)->next;
    struct blk_dirty_bitmap *found = *list;
    if (found)
        *list = found->next;
    return found;
}

/* Appends an outcome, NULL being none. Returns the new end. */
static struct blk_dirty_bitmap **append(struct blk_dirty_bitmap **end,
                                        struct blk_dirty_bitmap *bitmap)
{
    if (!bitmap)
        return end;
    *end = bitmap;
    bitmap->next = NULL;
    return &bitmap->next;
}

/* The new set: what the image has, in its order, then what only memory has. */
static void rebuild(struct blk_node *node, const struct qcow2_bitmap_directory *directory)
{
    struct blk_dirty_bitmap *old = node->bitmaps->first, *set = NULL, **end = &set;

    for (size_t i = 0; i < directory->count; i++) {
        const struct qcow2_bitmap_entry *entry = &directory->entries[i];
        struct blk_dirty_bitmap *bitmap = take_from_list(&old, entry->name);
        end = append(end, outcomes[combination_of(bitmap, entry)](node, bitmap, entry));
    }
    while (old) {
        struct blk_dirty_bitmap *bitmap = old;
        old = bitmap->next;
        end = append(end, outcomes[ONLY_IN_MEMORY](node, bitmap, NULL));
    }
    node->bitmaps->first = set;
    ASSERT(!atomic_load(&node->bitmaps->tracked));
}

int qcow2_bitmaps_reopen(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_bitmap_directory directory;
    int ret = read_header_again(node, err);
    if (ret < 0)
        return ret;
    ret = qcow2_bitmap_directory_read(node, &directory, err);
    if (ret == 0 && (node->bitmaps || directory.count)) {
        blk_bitmaps_of(node);
        rebuild(node, &directory);
    }
    qcow2_bitmap_directory_free(&directory);
    return ret;
}
