/* SPDX-License-Identifier: MIT */
/* One bitmap: words that threads change atomically, and searches that skip what is clean. */
#include "blockcore/bitmap/dirty_bitmap.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"

#define WORD_BITS 64
#define ALL_ONES UINT64_MAX
#define HUGE_PAGE_BYTES (2 * MIB)

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

/* ---- memory of the words ---- */

static size_t words_bytes(uint64_t bits)
{
    return (size_t)u64_max(div_round_up(bits, WORD_BITS), 1) * sizeof(atomic_uint_fast64_t);
}

/*
 * Words of zeroes: the system's zero page until they are touched. Large arrays are aligned so that
 * the system may use huge pages, where it would otherwise fault for every 32 Ki bits.
 */
static atomic_uint_fast64_t *allocate_words(uint64_t bits)
{
    size_t bytes = words_bytes(bits);

    if (bytes < HUGE_PAGE_BYTES)
        return calloc(1, bytes);
    if (bytes > SIZE_MAX - HUGE_PAGE_BYTES)
        return NULL;
    uint8_t *start = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    size_t before = (size_t)(round_up((uintptr_t)start, HUGE_PAGE_BYTES) - (uintptr_t)start);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t behind = round_down(HUGE_PAGE_BYTES - before, page);
    if (before)
        munmap(start, before);
    uint8_t *end = start + before + round_up(bytes, page);
    if (behind)
        munmap(end, behind);
    madvise(start + before, bytes, MADV_HUGEPAGE);
    return (atomic_uint_fast64_t *)(void *)(start + before);
}

static void free_words(struct blk_dirty_bitmap *bitmap)
{
    size_t bytes = words_bytes(bitmap->bit_count);

    if (!bitmap->words || bytes < HUGE_PAGE_BYTES)
        free(bitmap->words);
    else
        munmap((void *)bitmap->words, bytes);
    bitmap->words = NULL;
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
    if (!bitmap->words)
        bitmap->words = allocate_words(bitmap->bit_count);
    return bitmap->words ? 0 : blk_fail(err, ENOMEM, "bitmap '%s'", bitmap->name);
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
    free_words(bitmap);
    blk_dirty_bitmap_free(bitmap->resized);
    free(bitmap->name);
    free(bitmap);
}

/* ---- bits ---- */

static uint64_t word_at(const struct blk_dirty_bitmap *bitmap, uint64_t index)
{
    return atomic_load_explicit(&bitmap->words[index], memory_order_acquire);
}

/* The bits [first, last] that lie in the word with this index, as a mask. */
static uint64_t mask_in_word(uint64_t index, uint64_t first, uint64_t last)
{
    uint64_t word_first = index * WORD_BITS;
    uint64_t low = first > word_first ? first - word_first : 0;
    uint64_t high = last - word_first < WORD_BITS ? last - word_first : WORD_BITS - 1;
    return (ALL_ONES << low) & (ALL_ONES >> (WORD_BITS - 1 - high));
}

/* Sets or clears the bits [first, last]. Words that already have the value are not written. */
static void change_bits(struct blk_dirty_bitmap *bitmap, uint64_t first, uint64_t last, bool set)
{
    for (uint64_t index = first / WORD_BITS; index <= last / WORD_BITS; index++) {
        uint64_t mask = mask_in_word(index, first, last);
        uint64_t word = word_at(bitmap, index);
        if (set && (word & mask) != mask)
            atomic_fetch_or(&bitmap->words[index], mask);
        else if (!set && (word & mask))
            atomic_fetch_and(&bitmap->words[index], ~mask);
        else
            continue;
        atomic_store_explicit(&bitmap->changed, true, memory_order_relaxed);
    }
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
    uint64_t bit = offset >> bitmap->granularity_bits;
    if (offset >= bitmap->size)
        return false;
    return word_at(bitmap, bit / WORD_BITS) >> (bit % WORD_BITS) & 1;
}

/*
 * The first bit in [from, end) that is set (or, with `set` false, clear); `end` when there is none.
 * Nothing behind `end` is looked at: a caller that goes through pieces stays linear.
 */
static uint64_t find_bit(const struct blk_dirty_bitmap *bitmap, uint64_t from, uint64_t end,
                         bool set)
{
    end = u64_min(end, bitmap->bit_count);
    if (from >= end)
        return end;

    uint64_t flip = set ? 0 : ALL_ONES;
    uint64_t index = from / WORD_BITS;
    uint64_t word = (word_at(bitmap, index) ^ flip) & (ALL_ONES << (from % WORD_BITS));
    uint64_t last = (end - 1) / WORD_BITS;
    while (!word) {
        if (++index > last)
            return end;
        word = word_at(bitmap, index) ^ flip;
    }
    return u64_min(index * WORD_BITS + (uint64_t)__builtin_ctzll(word), end);
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
    uint64_t first = find_bit(bitmap, offset >> shift, end_bit, true);
    if (first == end_bit)
        return false;
    *start = u64_max(first << shift, offset);
    end = *start + u64_min(end - *start, max_bytes);
    uint64_t behind = find_bit(bitmap, first, div_round_up(end, granule), false);
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

    uint64_t dirty = 0;
    for (uint64_t i = 0; i <= (bitmap->bit_count - 1) / WORD_BITS; i++)
        dirty += (uint64_t)__builtin_popcountll(word_at(bitmap, i));

    uint64_t total = dirty << bitmap->granularity_bits;
    if (blk_dirty_bitmap_get(bitmap, bitmap->size - 1))
        total -= (bitmap->bit_count << bitmap->granularity_bits) - bitmap->size;
    return total;
}

static bool any_dirty(const struct blk_dirty_bitmap *bitmap, uint64_t first, uint64_t end)
{
    uint64_t any = 0;
    for (uint64_t i = first; i < end; i++)
        any |= atomic_load_explicit(&bitmap->words[i], memory_order_relaxed);
    return any;
}

/*
 * Of equal shape: word by word. Nobody else changes `to`, so no word needs a locked instruction;
 * and stretches that are not clean are merged without a branch, which scattered bits would have
 * mispredicted half of the time.
 */
static void merge_words(struct blk_dirty_bitmap *to, const struct blk_dirty_bitmap *from)
{
    uint64_t count = div_round_up(to->bit_count, WORD_BITS), more = 0;

    for (uint64_t first = 0; first < count; first += WORD_BITS) {
        uint64_t end = u64_min(first + WORD_BITS, count);
        if (!any_dirty(from, first, end))
            continue;
        for (uint64_t i = first; i < end; i++) {
            uint64_t word = word_at(from, i);
            uint64_t old = atomic_load_explicit(&to->words[i], memory_order_relaxed);
            more |= word & ~old;
            atomic_store_explicit(&to->words[i], old | word, memory_order_relaxed);
        }
    }
    if (more)
        atomic_store_explicit(&to->changed, true, memory_order_relaxed);
}

void blk_dirty_bitmap_merge(struct blk_dirty_bitmap *to, const struct blk_dirty_bitmap *from)
{
    uint64_t offset = 0, start, bytes;

    if (to->size == from->size && to->granularity_bits == from->granularity_bits) {
        merge_words(to, from);
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
    if (bitmap->resized && bitmap->resized->size == size)
        return 0;
    blk_dirty_bitmap_free(bitmap->resized);
    return blk_dirty_bitmap_new(bitmap->name, size, bitmap->granularity_bits, &bitmap->resized,
                                err);
}

int blk_dirty_bitmap_resize(struct blk_dirty_bitmap *bitmap, uint64_t size, struct blk_error *err)
{
    int ret = blk_dirty_bitmap_prepare_resize(bitmap, size, err);
    if (ret < 0)
        return ret;
    struct blk_dirty_bitmap *resized = bitmap->resized;
    bitmap->resized = NULL;
    blk_dirty_bitmap_merge(resized, bitmap);

    free_words(bitmap);
    bitmap->words = resized->words;
    resized->words = NULL;
    bitmap->size = size;
    bitmap->bit_count = resized->bit_count;
    atomic_store(&bitmap->changed, true);
    blk_dirty_bitmap_free(resized);
    return 0;
}

void blk_dirty_bitmap_forget(struct blk_dirty_bitmap *bitmap)
{
    free_words(bitmap);
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
    uint64_t index = stored_offset / sizeof(uint64_t);
    uint64_t count = div_round_up(bitmap->bit_count, WORD_BITS);
    uint64_t at = 0;

    for (; at < bytes && index < count; at += sizeof(uint64_t), index++) {
        uint64_t word = htole64(word_at(bitmap, index));
        memcpy(buf + at, &word, u64_min(bytes - at, sizeof(word)));
    }
    if (at < bytes)
        memset(buf + at, 0, bytes - at);
}

bool blk_dirty_bitmap_piece_is(const struct blk_dirty_bitmap *bitmap, uint64_t stored_offset,
                               uint64_t bytes, bool ones)
{
    uint64_t from = stored_offset * 8;
    uint64_t end = u64_min(from + bytes * 8, bitmap->bit_count);
    return find_bit(bitmap, from, end, !ones) >= end;
}

void blk_dirty_bitmap_import(struct blk_dirty_bitmap *bitmap, uint64_t stored_offset,
                             uint64_t bytes, const uint8_t *buf)
{
    uint64_t index = stored_offset / sizeof(uint64_t);
    uint64_t count = div_round_up(bitmap->bit_count, WORD_BITS);

    for (uint64_t at = 0; at < bytes && index < count; at += sizeof(uint64_t), index++) {
        uint64_t word = 0;
        memcpy(&word, buf + at, u64_min(bytes - at, sizeof(word)));
        atomic_store_explicit(&bitmap->words[index], le64toh(word), memory_order_relaxed);
    }
    /* The last word may have bits for granules that there are not. */
    if (bitmap->bit_count % WORD_BITS && index == count)
        atomic_fetch_and(&bitmap->words[count - 1],
                         mask_in_word(count - 1, 0, bitmap->bit_count - 1));
}
