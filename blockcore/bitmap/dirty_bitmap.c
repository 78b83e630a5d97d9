/* SPDX-License-Identifier: MIT */
/* One bitmap: bytes of a node and granules, in terms of the bits that sparse_bits.c keeps. */
#include "blockcore/bitmap/dirty_bitmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"

/* 512 MiB of bits is what QEMU takes. */
#define MAX_BITS (UINT64_C(512) * MIB * 8)

unsigned blk_dirty_bitmap_default_granularity_bits(uint64_t cluster_bytes)
{
    if (!cluster_bytes || cluster_bytes > 64 * KIB)
        return 16;
    return cluster_bytes < 4 * KIB ? 12 : (unsigned)__builtin_ctzll(cluster_bytes);
}

static uint64_t bits_for(uint64_t size, unsigned granularity_bits)
{
    return div_round_up(size, UINT64_C(1) << granularity_bits);
}

static int check_shape(const char *name, unsigned granularity_bits, struct blk_error *err)
{
    size_t length = strlen(name);

    if (length == 0 || length > BLK_BITMAP_MAX_NAME_BYTES)
        return blk_fail_why(err, EINVAL, "a name has 1 to 1023 bytes", "bitmap '%.64s'", name);
    if (granularity_bits < BLK_BITMAP_MIN_GRANULARITY_BITS ||
        granularity_bits > BLK_BITMAP_MAX_GRANULARITY_BITS)
        return blk_fail_why(err, EINVAL, "the granularity must be 512 bytes to 2 GiB",
                            "bitmap '%s'", name);
    return 0;
}

int blk_dirty_bitmap_check_size(const char *name, uint64_t size, unsigned granularity_bits,
                                struct blk_error *err)
{
    if (bits_for(size, granularity_bits) > MAX_BITS)
        return blk_fail_why(err, EFBIG, "the granularity is too fine for a disk of this size",
                            "bitmap '%s'", name);
    return 0;
}

unsigned blk_dirty_bitmap_fit_granularity(uint64_t size, unsigned granularity_bits)
{
    while (granularity_bits < BLK_BITMAP_MAX_GRANULARITY_BITS &&
           bits_for(size, granularity_bits) > MAX_BITS)
        granularity_bits++;
    return granularity_bits;
}

int blk_dirty_bitmap_describe(const char *name, uint64_t size, unsigned granularity_bits,
                              struct blk_dirty_bitmap **bitmap, struct blk_error *err)
{
    *bitmap = NULL;
    int ret = check_shape(name, granularity_bits, err);
    if (ret < 0)
        return ret;
    struct blk_dirty_bitmap *described = blk_xcalloc(1, sizeof(*described));
    described->name = blk_xstrdup(name);
    described->size = size;
    described->granularity_bits = granularity_bits;
    described->bit_count = bits_for(size, granularity_bits);
    described->enabled = true;
    *bitmap = described;
    return 0;
}

int blk_dirty_bitmap_allocate(struct blk_dirty_bitmap *bitmap, struct blk_error *err)
{
    int ret =
        blk_dirty_bitmap_check_size(bitmap->name, bitmap->size, bitmap->granularity_bits, err);
    if (ret < 0)
        return ret;
    if (blk_dirty_bitmap_has_bits(bitmap) ||
        blk_sparse_bits_allocate(&bitmap->bits, bitmap->bit_count))
        return 0;
    return blk_fail(err, ENOMEM, "bitmap '%s'", bitmap->name);
}

int blk_dirty_bitmap_new(const char *name, uint64_t size, unsigned granularity_bits,
                         struct blk_dirty_bitmap **bitmap, struct blk_error *err)
{
    int ret = blk_dirty_bitmap_describe(name, size, granularity_bits, bitmap, err);
    if (ret < 0)
        return ret;
    ret = blk_dirty_bitmap_allocate(*bitmap, err);
    if (ret < 0) {
        blk_dirty_bitmap_free(*bitmap);
        *bitmap = NULL;
    }
    return ret;
}

void blk_dirty_bitmap_free(struct blk_dirty_bitmap *bitmap)
{
    if (!bitmap)
        return;
    blk_sparse_bits_free(&bitmap->bits);
    blk_sparse_bits_free(&bitmap->resized);
    free(bitmap->name);
    free(bitmap);
}

/* ---- bits ---- */

bool blk_dirty_bitmap_has_bits(const struct blk_dirty_bitmap *bitmap)
{
    return bitmap->bits.leaves;
}

/* Sets or clears the bits [first, last]. */
static void change_bits(struct blk_dirty_bitmap *bitmap, uint64_t first, uint64_t last, bool set)
{
    if (blk_sparse_bits_change(&bitmap->bits, first, last, set))
        atomic_store_explicit(&bitmap->changed, true, memory_order_relaxed);
}

void blk_dirty_bitmap_set(struct blk_dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    if (offset >= bitmap->size || !bytes)
        return;
    uint64_t end = offset + u64_min(bytes, bitmap->size - offset);
    change_bits(bitmap, offset >> bitmap->granularity_bits, (end - 1) >> bitmap->granularity_bits,
                true);
}

void blk_dirty_bitmap_clear(struct blk_dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    if (offset >= bitmap->size || !bytes)
        return;
    uint64_t end = offset + u64_min(bytes, bitmap->size - offset);
    uint64_t granule = UINT64_C(1) << bitmap->granularity_bits;
    uint64_t first = div_round_up(offset, granule);
    uint64_t behind = end == bitmap->size ? bitmap->bit_count : end / granule;
    if (first < behind)
        change_bits(bitmap, first, behind - 1, false);
}

void blk_dirty_bitmap_clear_all(struct blk_dirty_bitmap *bitmap)
{
    if (bitmap->bit_count)
        change_bits(bitmap, 0, bitmap->bit_count - 1, false);
}

bool blk_dirty_bitmap_get(const struct blk_dirty_bitmap *bitmap, uint64_t offset)
{
    return offset < bitmap->size &&
           blk_sparse_bits_get(&bitmap->bits, offset >> bitmap->granularity_bits);
}

bool blk_dirty_bitmap_next(const struct blk_dirty_bitmap *bitmap, uint64_t offset, uint64_t end,
                           uint64_t *start, uint64_t *bytes)
{
    return blk_dirty_bitmap_next_piece(bitmap, offset, end, UINT64_MAX, start, bytes);
}

bool blk_dirty_bitmap_next_piece(const struct blk_dirty_bitmap *bitmap, uint64_t offset,
                                 uint64_t end, uint64_t max_bytes, uint64_t *start, uint64_t *bytes)
{
    unsigned shift = bitmap->granularity_bits;
    uint64_t granule = UINT64_C(1) << shift;

    end = u64_min(end, bitmap->size);
    if (offset >= end)
        return false;
    uint64_t end_bit = div_round_up(end, granule);
    uint64_t first = blk_sparse_bits_find(&bitmap->bits, offset >> shift, end_bit, true);
    if (first == end_bit)
        return false;
    *start = u64_max(first << shift, offset);
    end = *start + u64_min(end - *start, max_bytes);
    uint64_t behind = blk_sparse_bits_find(&bitmap->bits, first, div_round_up(end, granule), false);
    *bytes = u64_min(behind << shift, end) - *start;
    return true;
}

bool blk_dirty_cursor_look(struct blk_dirty_cursor *cursor, uint64_t offset, uint64_t *bytes)
{
    if (offset >= cursor->behind) {
        uint64_t start = cursor->end, length = 0;
        blk_dirty_bitmap_next(cursor->bitmap, offset, cursor->end, &start, &length);
        cursor->start = start;
        cursor->behind = start + length;
    }
    bool dirty = offset >= cursor->start;
    *bytes = (dirty ? cursor->behind : cursor->start) - offset;
    return dirty;
}

uint64_t blk_dirty_bitmap_count(const struct blk_dirty_bitmap *bitmap)
{
    if (!bitmap->bit_count)
        return 0;

    uint64_t total = blk_sparse_bits_count_set(&bitmap->bits) << bitmap->granularity_bits;
    if (blk_dirty_bitmap_get(bitmap, bitmap->size - 1))
        total -= (bitmap->bit_count << bitmap->granularity_bits) - bitmap->size;
    return total;
}

void blk_dirty_bitmap_merge(struct blk_dirty_bitmap *to, const struct blk_dirty_bitmap *from)
{
    uint64_t offset = 0, start, bytes;

    if (to->size == from->size && to->granularity_bits == from->granularity_bits) {
        if (blk_sparse_bits_merge(&to->bits, &from->bits))
            atomic_store_explicit(&to->changed, true, memory_order_relaxed);
        return;
    }

    while (blk_dirty_bitmap_next(from, offset, to->size, &start, &bytes)) {
        blk_dirty_bitmap_set(to, start, bytes);
        offset = start + bytes;
    }
}

int blk_dirty_bitmap_copy(const struct blk_dirty_bitmap *bitmap, struct blk_dirty_bitmap **copy,
                          struct blk_error *err)
{
    int ret = blk_dirty_bitmap_new(bitmap->name, bitmap->size, bitmap->granularity_bits, copy, err);
    if (ret < 0)
        return ret;
    (*copy)->enabled = false;
    blk_dirty_bitmap_merge(*copy, bitmap);
    return 0;
}

int blk_dirty_bitmap_prepare_resize(struct blk_dirty_bitmap *bitmap, uint64_t size,
                                    struct blk_error *err)
{
    uint64_t count = bits_for(size, bitmap->granularity_bits);

    if (bitmap->resized.leaves && bitmap->resized.count == count)
        return 0;
    blk_sparse_bits_free(&bitmap->resized);
    int ret = blk_dirty_bitmap_check_size(bitmap->name, size, bitmap->granularity_bits, err);
    if (ret < 0)
        return ret;
    if (blk_sparse_bits_prepare_resize(&bitmap->bits, count, &bitmap->resized))
        return 0;
    return blk_fail(err, ENOMEM, "bitmap '%s'", bitmap->name);
}

int blk_dirty_bitmap_resize(struct blk_dirty_bitmap *bitmap, uint64_t size, struct blk_error *err)
{
    int ret = blk_dirty_bitmap_prepare_resize(bitmap, size, err);
    if (ret < 0)
        return ret;
    blk_sparse_bits_resize(&bitmap->bits, &bitmap->resized);
    bitmap->size = size;
    bitmap->bit_count = bitmap->bits.count;
    atomic_store(&bitmap->changed, true);
    return 0;
}

void blk_dirty_bitmap_forget(struct blk_dirty_bitmap *bitmap)
{
    blk_sparse_bits_free(&bitmap->bits);
    atomic_store(&bitmap->changed, false);
}

/* ---- the stored form ---- */

uint64_t blk_dirty_bitmap_stored_bytes(const struct blk_dirty_bitmap *bitmap)
{
    return div_round_up(bitmap->bit_count, 8);
}

void blk_dirty_bitmap_export(const struct blk_dirty_bitmap *bitmap, uint64_t stored_offset,
                             uint64_t bytes, uint8_t *buf)
{
    blk_sparse_bits_export(&bitmap->bits, stored_offset, bytes, buf);
}

bool blk_dirty_bitmap_piece_is(const struct blk_dirty_bitmap *bitmap, uint64_t stored_offset,
                               uint64_t bytes, bool ones)
{
    uint64_t from = stored_offset * 8;
    uint64_t end = u64_min(from + bytes * 8, bitmap->bit_count);
    return blk_sparse_bits_find(&bitmap->bits, from, end, !ones) >= end;
}

int blk_dirty_bitmap_import(struct blk_dirty_bitmap *bitmap, uint64_t stored_offset, uint64_t bytes,
                            const uint8_t *buf, struct blk_error *err)
{
    if (blk_sparse_bits_import(&bitmap->bits, stored_offset, bytes, buf))
        return 0;
    return blk_fail(err, ENOMEM, "bitmap '%s'", bitmap->name);
}
