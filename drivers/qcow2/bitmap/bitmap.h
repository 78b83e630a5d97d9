/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps in a qcow2 image.
 *
 *   directory.c   the directory: parsing with every check, encoding
 *   load.c        the node's set of bitmaps from the directory; bits from their tables
 *   in_use.c      in_use before the first recorded write (C5), and room for the store
 *   store.c       storing the set by one switch of the header (C4)
 *   reopen.c      which bitmaps a node has, of those in memory and in the image, when it becomes
 *                 writable
 *   apply.c       what changes when an internal snapshot is applied
 *
 * The extension in the header names the directory; it counts only while autoclear bit 0 is set. A
 * bitmap that is in_use on the medium when it is opened may have missed writes: inconsistent.
 */
#ifndef DRIVERS_QCOW2_BITMAP_BITMAP_H
#define DRIVERS_QCOW2_BITMAP_BITMAP_H

#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/graph/info.h"
#include "blockcore/graph/types.h"
#include "drivers/qcow2/medium.h"
#include "drivers/qcow2/state.h"

#define QCOW2_BITMAP_IN_USE UINT32_C(1)
#define QCOW2_BITMAP_AUTO UINT32_C(2) /* enabled */
#define QCOW2_BITMAP_EXTRA_COMPATIBLE UINT32_C(4)
#define QCOW2_BITMAP_FLAGS_KNOWN UINT32_C(7)
#define QCOW2_BITMAP_TYPE_DIRTY 1

/* A bitmap's table: data offsets, and for offset 0 whether the piece is all ones. */
#define QCOW2_BITMAP_TABLE_OFFSET UINT64_C(0x00fffffffffffe00)
#define QCOW2_BITMAP_TABLE_ALL_ONES UINT64_C(1)
#define QCOW2_BITMAP_TABLE_RESERVED UINT64_C(0xff000000000001fe)
#define QCOW2_MAX_BITMAP_TABLE_ENTRIES (UINT32_C(1) << 27)

extern const struct qcow2_table_kind qcow2_bitmap_table_kind;

/* The longest entry without extra data. */
#define QCOW2_BITMAP_ENTRY_MAX_BYTES 1048

/* One entry of the directory as it is stored. */
struct qcow2_bitmap_entry {
    uint64_t table_offset;
    uint32_t table_entries;
    uint32_t flags;
    uint8_t type, granularity_bits;
    char *name;
    uint8_t *extra; /* kept as it is */
    uint32_t extra_bytes;
    const char *problem; /* for a check: why the bitmap is invalid; a constant, or NULL */
};

struct qcow2_bitmap_directory {
    struct qcow2_bitmap_entry *entries;
    size_t count;
    uint64_t offset, bytes; /* where it lies; 0, 0: none */
    uint32_t reserved;      /* of the header extension; must be 0 */
};

/* ---- directory.c ---- */

/*
 * Reads the directory that the header names; empty when there is none or it does not count. Checks
 * every size, offset and name; reads no tables. In a check an entry with impossible numbers is not
 * a failure: its `problem` is set. The caller frees the directory, also after a failure.
 */
int qcow2_bitmap_directory_read(struct blk_node *node, struct qcow2_bitmap_directory *directory,
                                struct blk_error *err);
/*
 * Removes from a valid entry what keeps QEMU from opening the image and carries no information
 * about the disk: extra data that may be ignored, and the part of a table past the disk's end.
 * Returns whether there was any.
 */
bool qcow2_bitmap_trim(const struct qcow2_state *s, struct qcow2_bitmap_entry *entry);
void qcow2_bitmap_directory_free(struct qcow2_bitmap_directory *directory);

/*
 * The stored form, padded to whole sectors; malloc()ed. *bytes is the length without the padding.
 */
int qcow2_bitmap_directory_encode(const struct qcow2_bitmap_directory *directory, uint8_t **buf,
                                  uint64_t *bytes, struct blk_error *err);

/* ---- load.c ---- */

/* At open: gives the node its set of bitmaps with names and flags; no bits are read. */
int qcow2_bitmaps_open(struct blk_node *node, struct blk_error *err);
/* A bitmap as the entry describes it, without bits. The caller owns it. */
struct blk_dirty_bitmap *qcow2_bitmap_from_entry(const struct blk_node *node,
                                                 const struct qcow2_bitmap_entry *entry);
/* The driver's bitmaps->release: frees the driver's part of a bitmap. */
void qcow2_bitmap_release(struct blk_dirty_bitmap *bitmap);
/* The driver's bitmaps->can_add. */
int qcow2_bitmaps_can_add(struct blk_node *node, struct blk_error *err);
/* The driver's bitmaps->load. */
int qcow2_bitmap_load(struct blk_node *node, struct blk_dirty_bitmap *bitmap,
                      struct blk_error *err);
/* Adds the list for info, if there are any: flags, name, granularity. */
void qcow2_bitmaps_info(const struct blk_node *node, struct blk_value *to);

/* ---- in_use.c ---- */

/*
 * The driver's bitmaps->track: reserves room for the store and sets in_use on all enabled bitmaps;
 * both are stable when it returns. After a failure the image's bitmaps are what they were, or the
 * error says that they may not be.
 */
int qcow2_bitmaps_track(struct blk_node *node, struct blk_error *err);

/*
 * Before the size of the disk, and so of all bitmaps, changes to `size`: loads every bitmap, makes
 * sure that it can be resized, and sets in_use on it, enabled or not. The next store clears that.
 */
int qcow2_bitmaps_suspend(struct blk_node *node, uint64_t size, struct blk_error *err);

/* ---- store.c ---- */

/*
 * Stores what changed: data and tables, then a new directory with in_use clear, then the switch;
 * then it frees the old ones. Does nothing when nothing changed. After a failure before the switch
 * the image's directory is what it was. `report` (may be NULL) gets an entry for each bitmap.
 */
int qcow2_bitmaps_store(struct blk_node *node, struct blk_close_report *report,
                        struct blk_error *err);

/* ---- reopen.c ---- */

/*
 * Before a node becomes writable: others may have changed the image while it was only read. Brings
 * the set in memory in step with the directory as it is now. -ESTALE when more than the bitmaps has
 * changed.
 */
int qcow2_bitmaps_reopen(struct blk_node *node, struct blk_error *err);

/* ---- apply.c ---- */

/*
 * Around the switch to the L1 table of a disk of `size` bytes. _begin_apply finds what differs from
 * the active L1 and sets in_use; _end_apply marks the difference in all enabled bitmaps, which then
 * have the new size. *changed is NULL where there is nothing to record; the caller frees it.
 */
int qcow2_bitmaps_begin_apply(struct blk_node *node, const uint64_t *l1, uint32_t l1_entries,
                              uint64_t size, struct blk_dirty_bitmap **changed,
                              struct blk_error *err);
int qcow2_bitmaps_end_apply(struct blk_node *node, uint64_t size,
                            const struct blk_dirty_bitmap *changed, struct blk_error *err);

#endif
