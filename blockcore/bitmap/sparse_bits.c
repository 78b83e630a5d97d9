/* SPDX-License-Identifier: MIT */
/* Bits in leaves that have memory only where they are neither clean nor all ones. */
#include "blockcore/bitmap/sparse_bits.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"

#define WORD_BITS 64
#define ALL_ONES UINT64_MAX
#define LEAF_BITS UINT64_C(32768)
#define LEAF_WORDS (LEAF_BITS / WORD_BITS)

/* A leaf is NULL when it is clean, this when it is all ones, else its words. */
static blk_bits_word ones[1];

/* ---- leaves ---- */

static uint64_t leaf_count(uint64_t bits)
{
    return u64_max(div_round_up(bits, LEAF_BITS), 1);
}

/* The words of a leaf: fewer where one leaf is all there is. */
static uint64_t words_per_leaf(uint64_t bits)
{
    return u64_min(u64_max(div_round_up(bits, WORD_BITS), 1), LEAF_WORDS);
}

static blk_bits_word *leaf_at(const struct blk_sparse_bits *bits, uint64_t index)
{
    return atomic_load_explicit(&bits->leaves[index], memory_order_acquire);
}

static bool has_words(const blk_bits_word *leaf)
{
    return leaf && leaf != ones;
}

/* A word of any leaf. */
static uint64_t word_of(blk_bits_word *leaf, uint64_t index)
{
    if (!has_words(leaf))
        return leaf ? ALL_ONES : 0;
    return atomic_load_explicit(&leaf[index], memory_order_acquire);
}

/*
 * Words for a leaf that has none, of the bits that it has; NULL when there is no memory. A thread
 * that was slower than another uses the other's.
 */
static blk_bits_word *try_give_words(struct blk_sparse_bits *bits, uint64_t index)
{
    blk_bits_word *leaf = leaf_at(bits, index);

    while (!has_words(leaf)) {
        size_t bytes = words_per_leaf(bits->count) * sizeof(*leaf);
        blk_bits_word *words = blk_malloc(bytes);
        if (!words)
            return NULL;
        memset((void *)words, leaf ? 0xff : 0, bytes);
        if (atomic_compare_exchange_strong(&bits->leaves[index], &leaf, words))
            return words;
        free((void *)words);
    }
    return leaf;
}

static blk_bits_word *give_words(struct blk_sparse_bits *bits, uint64_t index)
{
    blk_bits_word *words = try_give_words(bits, index);

    if (!words)
        blk_out_of_memory();
    return words;
}

bool blk_sparse_bits_allocate(struct blk_sparse_bits *bits, uint64_t count)
{
    bits->leaves = blk_calloc(leaf_count(count), sizeof(*bits->leaves));
    bits->count = count;
    return bits->leaves;
}

void blk_sparse_bits_free(struct blk_sparse_bits *bits)
{
    for (uint64_t i = 0; bits->leaves && i < leaf_count(bits->count); i++) {
        blk_bits_word *leaf = leaf_at(bits, i);
        if (has_words(leaf))
            free((void *)leaf);
    }
    free((void *)bits->leaves);
    *bits = (struct blk_sparse_bits){ .count = 0 };
}

/* ---- bits ---- */

/* The bits [first, last] that lie in the word with this index, as a mask. */
static uint64_t mask_in_word(uint64_t index, uint64_t first, uint64_t last)
{
    uint64_t word_first = index * WORD_BITS;
    uint64_t low = first > word_first ? first - word_first : 0;
    uint64_t high = last - word_first < WORD_BITS ? last - word_first : WORD_BITS - 1;
    return (ALL_ONES << low) & (ALL_ONES >> (WORD_BITS - 1 - high));
}

/* The bits [first, last] of one leaf. Words that already have the value are not written. */
static bool change_words(blk_bits_word *leaf, uint64_t first, uint64_t last, bool set)
{
    bool any = false;

    for (uint64_t index = first / WORD_BITS; index <= last / WORD_BITS; index++) {
        uint64_t mask = mask_in_word(index, first, last);
        uint64_t word = word_of(leaf, index);
        if (set && (word & mask) != mask)
            atomic_fetch_or(&leaf[index], mask);
        else if (!set && (word & mask))
            atomic_fetch_and(&leaf[index], ~mask);
        else
            continue;
        any = true;
    }
    return any;
}

/* The same for a leaf of the array, with or without words. */
static bool change_leaf(struct blk_sparse_bits *bits, uint64_t index, uint64_t first, uint64_t last,
                        bool set)
{
    blk_bits_word *leaf = leaf_at(bits, index), *wanted = set ? ones : NULL;

    if (leaf == wanted)
        return false;
    if (!has_words(leaf) && first == 0 && last == LEAF_BITS - 1 &&
        atomic_compare_exchange_strong(&bits->leaves[index], &leaf, wanted))
        return true;
    return change_words(has_words(leaf) ? leaf : give_words(bits, index), first, last, set);
}

bool blk_sparse_bits_change(struct blk_sparse_bits *bits, uint64_t first, uint64_t last, bool set)
{
    bool any = false;

    while (first <= last) {
        uint64_t leaf_first = round_down(first, LEAF_BITS);
        uint64_t leaf_last = u64_min(last, leaf_first + LEAF_BITS - 1);
        any |=
            change_leaf(bits, first / LEAF_BITS, first - leaf_first, leaf_last - leaf_first, set);
        first = leaf_last + 1;
    }
    return any;
}

bool blk_sparse_bits_get(const struct blk_sparse_bits *bits, uint64_t index)
{
    uint64_t word = word_of(leaf_at(bits, index / LEAF_BITS), index % LEAF_BITS / WORD_BITS);
    return word >> (index % WORD_BITS) & 1;
}

/* As blk_sparse_bits_find(), in a leaf that has words and of its bits. */
static uint64_t find_in_words(blk_bits_word *leaf, uint64_t from, uint64_t end, bool set)
{
    uint64_t flip = set ? 0 : ALL_ONES;
    uint64_t index = from / WORD_BITS, last = (end - 1) / WORD_BITS;
    uint64_t word = (word_of(leaf, index) ^ flip) & (ALL_ONES << (from % WORD_BITS));

    while (!word) {
        if (++index > last)
            return end;
        word = word_of(leaf, index) ^ flip;
    }
    return u64_min(index * WORD_BITS + (uint64_t)__builtin_ctzll(word), end);
}

uint64_t blk_sparse_bits_find(const struct blk_sparse_bits *bits, uint64_t from, uint64_t end,
                              bool set)
{
    end = u64_min(end, bits->count);
    while (from < end) {
        uint64_t first = round_down(from, LEAF_BITS);
        uint64_t behind = u64_min(first + LEAF_BITS, end);
        blk_bits_word *leaf = leaf_at(bits, from / LEAF_BITS);
        if (has_words(leaf))
            from = first + find_in_words(leaf, from - first, behind - first, set);
        else if ((leaf == ones) != set)
            from = behind;
        if (from < behind)
            break;
    }
    return u64_min(from, end);
}

uint64_t blk_sparse_bits_count_set(const struct blk_sparse_bits *bits)
{
    uint64_t set = 0, words = words_per_leaf(bits->count);

    for (uint64_t i = 0; i < leaf_count(bits->count); i++) {
        blk_bits_word *leaf = leaf_at(bits, i);
        if (leaf == ones)
            set += LEAF_BITS;
        for (uint64_t j = 0; has_words(leaf) && j < words; j++)
            set += (uint64_t)__builtin_popcountll(word_of(leaf, j));
    }
    return set;
}

/* No word needs a locked instruction, and none a branch, which scattered bits would mispredict. */
static bool merge_words(blk_bits_word *to, blk_bits_word *from, uint64_t words)
{
    uint64_t more = 0;

    for (uint64_t i = 0; i < words; i++) {
        uint64_t word = atomic_load_explicit(&from[i], memory_order_relaxed);
        uint64_t old = atomic_load_explicit(&to[i], memory_order_relaxed);
        more |= word & ~old;
        atomic_store_explicit(&to[i], old | word, memory_order_relaxed);
    }
    return more;
}

static bool any_set(blk_bits_word *leaf, uint64_t words)
{
    uint64_t any = 0;

    for (uint64_t i = 0; i < words; i++)
        any |= atomic_load_explicit(&leaf[i], memory_order_relaxed);
    return any;
}

bool blk_sparse_bits_merge(struct blk_sparse_bits *to, const struct blk_sparse_bits *from)
{
    uint64_t words = words_per_leaf(from->count);
    bool more = false;

    for (uint64_t i = 0; i < leaf_count(from->count); i++) {
        blk_bits_word *leaf = leaf_at(from, i);
        if (leaf == ones)
            more |= change_leaf(to, i, 0, LEAF_BITS - 1, true);
        else if (leaf && leaf_at(to, i) != ones && any_set(leaf, words))
            more |= merge_words(give_words(to, i), leaf, words);
    }
    return more;
}

/* ---- another number ---- */

bool blk_sparse_bits_prepare_resize(const struct blk_sparse_bits *bits, uint64_t count,
                                    struct blk_sparse_bits *to)
{
    uint64_t common = u64_min(bits->count, count);

    if (blk_sparse_bits_allocate(to, count) &&
        (common % LEAF_BITS == 0 || try_give_words(to, common / LEAF_BITS)))
        return true;
    blk_sparse_bits_free(to);
    return false;
}

/* The leaf that the lesser number ends in, for which `to` has words. */
static void copy_last_leaf(const struct blk_sparse_bits *bits, struct blk_sparse_bits *to,
                           uint64_t common)
{
    blk_bits_word *from = leaf_at(bits, common / LEAF_BITS),
                  *words = leaf_at(to, common / LEAF_BITS);
    uint64_t left = common % LEAF_BITS;

    if (!from) {
        atomic_store(&to->leaves[common / LEAF_BITS], NULL);
        free((void *)words);
        return;
    }
    for (uint64_t i = 0; i * WORD_BITS < left; i++)
        atomic_store_explicit(&words[i], word_of(from, i) & mask_in_word(i, 0, left - 1),
                              memory_order_relaxed);
}

void blk_sparse_bits_resize(struct blk_sparse_bits *bits, struct blk_sparse_bits *to)
{
    uint64_t common = u64_min(bits->count, to->count);

    for (uint64_t i = 0; i < common / LEAF_BITS; i++) {
        atomic_store(&to->leaves[i], leaf_at(bits, i));
        atomic_store(&bits->leaves[i], NULL);
    }
    if (common % LEAF_BITS)
        copy_last_leaf(bits, to, common);
    blk_sparse_bits_free(bits);
    *bits = *to;
    *to = (struct blk_sparse_bits){ .count = 0 };
}

/* ---- the stored form ---- */

#define LEAF_BYTES (LEAF_BITS / 8)

static void export_words(blk_bits_word *leaf, uint64_t index, uint64_t bytes, uint8_t *buf)
{
    for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t), index++) {
        uint64_t word = htole64(word_of(leaf, index));
        memcpy(buf + at, &word, u64_min(bytes - at, sizeof(word)));
    }
}

/* The bytes that the piece at `offset` has in one leaf. */
static uint64_t bytes_in_leaf(uint64_t offset, uint64_t end)
{
    return u64_min(end, round_down(offset, LEAF_BYTES) + LEAF_BYTES) - offset;
}

/* The end of a piece as far as there are bits, in whole words. */
static uint64_t stored_end(const struct blk_sparse_bits *bits, uint64_t offset, uint64_t bytes)
{
    return u64_min(offset + bytes, div_round_up(bits->count, WORD_BITS) * sizeof(uint64_t));
}

void blk_sparse_bits_export(const struct blk_sparse_bits *bits, uint64_t offset, uint64_t bytes,
                            uint8_t *buf)
{
    uint64_t end = stored_end(bits, offset, bytes), behind = offset + bytes, part;

    for (; offset < end; offset += part, buf += part) {
        part = bytes_in_leaf(offset, end);
        export_words(leaf_at(bits, offset / LEAF_BYTES), offset % LEAF_BYTES / sizeof(uint64_t),
                     part, buf);
    }
    if (offset < behind)
        memset(buf, 0, behind - offset);
}

static bool is_filled(const uint8_t *buf, uint64_t bytes, uint8_t value)
{
    return !bytes || (buf[0] == value && memcmp(buf, buf + 1, bytes - 1) == 0);
}

/* `bytes` of a leaf from its word `index` on; nobody else knows the array yet. */
static void import_words(blk_bits_word *leaf, uint64_t index, uint64_t bytes, const uint8_t *buf)
{
    for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t), index++) {
        uint64_t word = 0;
        memcpy(&word, buf + at, u64_min(bytes - at, sizeof(word)));
        uint64_t old = atomic_load_explicit(&leaf[index], memory_order_relaxed);
        atomic_store_explicit(&leaf[index], old | le64toh(word), memory_order_relaxed);
    }
}

/* The last word may have got bits for granules that there are not. */
static void cut_last_word(const struct blk_sparse_bits *bits)
{
    uint64_t past = bits->count % WORD_BITS;

    if (!past)
        return;
    blk_bits_word *leaf = leaf_at(bits, bits->count / LEAF_BITS);
    if (has_words(leaf))
        atomic_fetch_and(&leaf[bits->count % LEAF_BITS / WORD_BITS], ~(ALL_ONES << past));
}

bool blk_sparse_bits_import(struct blk_sparse_bits *bits, uint64_t offset, uint64_t bytes,
                            const uint8_t *buf)
{
    uint64_t end = stored_end(bits, offset, bytes), part;

    for (; offset < end; offset += part, buf += part) {
        part = bytes_in_leaf(offset, end);
        uint64_t index = offset / LEAF_BYTES;
        if (is_filled(buf, part, 0))
            continue;
        if (part == LEAF_BYTES && (index + 1) * LEAF_BITS <= bits->count &&
            is_filled(buf, part, 0xff)) {
            change_leaf(bits, index, 0, LEAF_BITS - 1, true);
            continue;
        }
        blk_bits_word *leaf = try_give_words(bits, index);
        if (!leaf)
            return false;
        import_words(leaf, offset % LEAF_BYTES / sizeof(uint64_t), part, buf);
    }
    if (end * 8 >= bits->count)
        cut_last_word(bits);
    return true;
}
