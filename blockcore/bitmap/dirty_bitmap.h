/* SPDX-License-Identifier: MIT */
/*
 * A dirty bitmap: which granules of a node were written. There is one bit for each granule of 1 <<
 * granularity_bits bytes; bit n covers [n << granularity_bits, (n + 1) << granularity_bits).
 *
 * Any number of threads may set, clear and read bits without a lock. Long clean and long dirty
 * stretches cost no memory (sparse_bits.h). Resizing, renaming and the flags are for the one thread
 * that owns the graph, with the node drained.
 */
#ifndef BLOCKCORE_BITMAP_DIRTY_BITMAP_H
#define BLOCKCORE_BITMAP_DIRTY_BITMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/bitmap/sparse_bits.h"

/* Limits of the qcow2 format and of QEMU. */
#define BLK_BITMAP_MIN_GRANULARITY_BITS 9
#define BLK_BITMAP_MAX_GRANULARITY_BITS 31
#define BLK_BITMAP_MAX_NAME_BYTES 1023

/*
 * QEMU's default granularity for an image: its cluster size (0: none), but 4 KiB at least and 64
 * KiB at most.
 */
unsigned blk_dirty_bitmap_default_granularity_bits(uint64_t cluster_bytes);

struct blk_dirty_bitmap {
    char *name;
    uint64_t size; /* bytes of the node that it covers */
    unsigned granularity_bits;
    uint64_t bit_count;

    bool enabled;        /* records writes */
    bool persistent;     /* the image keeps it */
    bool inconsistent;   /* found in use: may have missed writes; can be listed and removed only */
    bool unusable;       /* has flags or extra data unknown to us: stays in the image as it is */
    bool read_only;      /* the node is read-only: nothing is recorded */
    atomic_bool changed; /* differs from what the image holds */

    struct blk_sparse_bits bits;    /* see blk_dirty_bitmap_has_bits() */
    struct blk_sparse_bits resized; /* prepared for another size */
    void *state; /* the driver's: where the image keeps it; freed by the driver */
    struct blk_dirty_bitmap *next;
};

/*
 * A bitmap of clean granules over `size` bytes, enabled. Errors, with *bitmap NULL: -EINVAL for a
 * granularity out of range or a bad name, -EFBIG or -ENOMEM when it would be too large.
 */
int blk_dirty_bitmap_new(const char *name, uint64_t size, unsigned granularity_bits,
                         struct blk_dirty_bitmap **bitmap, struct blk_error *err);

/*
 * The same without memory for the bits, so their number has no limit. Until _allocate() it can only
 * be listed. For bitmaps of an image that are not loaded yet.
 */
int blk_dirty_bitmap_describe(const char *name, uint64_t size, unsigned granularity_bits,
                              struct blk_dirty_bitmap **bitmap, struct blk_error *err);
/*
 * Gives it clean bits, unless it has bits already. -ENOMEM; -EFBIG as for
 * blk_dirty_bitmap_check_size().
 */
int blk_dirty_bitmap_allocate(struct blk_dirty_bitmap *bitmap, struct blk_error *err);

/* False: it was not loaded yet, and can only be listed. */
bool blk_dirty_bitmap_has_bits(const struct blk_dirty_bitmap *bitmap);

/* 0, or -EFBIG when a bitmap of that granularity would have too many bits for `size` bytes. */
int blk_dirty_bitmap_check_size(const char *name, uint64_t size, unsigned granularity_bits,
                                struct blk_error *err);

/*
 * The finest granularity, not finer than `granularity_bits`, at which a bitmap of `size` bytes can
 * be made. For callers to whom a coarser one is merely less efficient.
 */
unsigned blk_dirty_bitmap_fit_granularity(uint64_t size, unsigned granularity_bits);

/* Frees the bits; the bitmap can still be listed, and loaded again. */
void blk_dirty_bitmap_forget(struct blk_dirty_bitmap *bitmap);

void blk_dirty_bitmap_free(struct blk_dirty_bitmap *bitmap);

/* Marks all granules that the range touches. Ranges past the end are cut. */
void blk_dirty_bitmap_set(struct blk_dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/*
 * Clears the granules that lie wholly in the range. For the last granule it is enough that the
 * range reaches the end of the node.
 */
void blk_dirty_bitmap_clear(struct blk_dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes);
void blk_dirty_bitmap_clear_all(struct blk_dirty_bitmap *bitmap);

bool blk_dirty_bitmap_get(const struct blk_dirty_bitmap *bitmap, uint64_t offset);

/*
 * Finds the first run of dirty bytes in [offset, end), cut to that range. False when there is none.
 */
bool blk_dirty_bitmap_next(const struct blk_dirty_bitmap *bitmap, uint64_t offset, uint64_t end,
                           uint64_t *start, uint64_t *bytes);

/*
 * The same for a run of at most `max_bytes` (at least 1). Bits beyond are not looked at, so a loop
 * that handles a long run piece by piece takes linear time.
 */
bool blk_dirty_bitmap_next_piece(const struct blk_dirty_bitmap *bitmap, uint64_t offset,
                                 uint64_t end, uint64_t max_bytes, uint64_t *start,
                                 uint64_t *bytes);

/*
 * For a walk whose steps do not follow the bitmap's runs: it remembers the last run found, so each
 * bit is looked at once, however short the steps are. The bits must not change during the walk.
 */
struct blk_dirty_cursor {
    const struct blk_dirty_bitmap *bitmap;
    uint64_t end;           /* of the walk, bytes; past the end of the bitmap all is clean */
    uint64_t start, behind; /* the last run found: [start, behind); initially 0 */
};

/*
 * Whether the byte at `offset` is dirty; *bytes is how far the same holds, at most up to the
 * cursor's end. `offset` lies before that end, and not before the offset of the previous call.
 */
bool blk_dirty_cursor_look(struct blk_dirty_cursor *cursor, uint64_t offset, uint64_t *bytes);

/* The number of dirty bytes; of the last granule only those within the node count. */
uint64_t blk_dirty_bitmap_count(const struct blk_dirty_bitmap *bitmap);

/*
 * Marks in `to` what is dirty in `from`. Granularities may differ; what lies past the end of `to`
 * is dropped.
 */
void blk_dirty_bitmap_merge(struct blk_dirty_bitmap *to, const struct blk_dirty_bitmap *from);

/* An independent copy of bits, name and granularity; enabled is false. -ENOMEM. */
int blk_dirty_bitmap_copy(const struct blk_dirty_bitmap *bitmap, struct blk_dirty_bitmap **copy,
                          struct blk_error *err);

/* Allocates what a resize to `size` needs, so that the resize cannot fail. -ENOMEM, -EFBIG. */
int blk_dirty_bitmap_prepare_resize(struct blk_dirty_bitmap *bitmap, uint64_t size,
                                    struct blk_error *err);

/*
 * Follows the node's size. New granules are clean; the last old one keeps its bit if the node now
 * covers more of it.
 */
int blk_dirty_bitmap_resize(struct blk_dirty_bitmap *bitmap, uint64_t size, struct blk_error *err);

/*
 * The stored form (qcow2: bit n of the data is bit n % 8 of byte n / 8), in pieces. Offsets are
 * bytes of that form, multiples of 8. A piece may extend past the last bit; the rest is zeroes.
 */
uint64_t blk_dirty_bitmap_stored_bytes(const struct blk_dirty_bitmap *bitmap);
void blk_dirty_bitmap_export(const struct blk_dirty_bitmap *bitmap, uint64_t stored_offset,
                             uint64_t bytes, uint8_t *buf);
/* Whether the piece is all zeroes (or, with `ones`, all ones as far as there are bits). */
bool blk_dirty_bitmap_piece_is(const struct blk_dirty_bitmap *bitmap, uint64_t stored_offset,
                               uint64_t bytes, bool ones);
/*
 * Marks what a stored piece marks. Bits past the last granule are ignored: QEMU writes them where
 * it had read a piece as all ones. -ENOMEM.
 */
int blk_dirty_bitmap_import(struct blk_dirty_bitmap *bitmap, uint64_t stored_offset, uint64_t bytes,
                            const uint8_t *buf, struct blk_error *err);

#endif
