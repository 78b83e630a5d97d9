/* SPDX-License-Identifier: MIT */
/*
 * An array of bits that takes memory only for what is mixed: a table of leaves of 32 Ki bits, each
 * of which is clean, all ones, or 4 KiB of words. A table of a clean disk of 8 TiB in granules of
 * 64 KiB has 32 KiB.
 *
 * Threads set, clear and read bits without a lock. A leaf that has words keeps them for as long as
 * the array lives: one thread might still change a word while another decides that the leaf became
 * clean. A leaf without words gets them, or changes between clean and all ones, by one
 * compare-and-swap. All else is for one thread at a time.
 */
#ifndef BLOCKCORE_BITMAP_SPARSE_BITS_H
#define BLOCKCORE_BITMAP_SPARSE_BITS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef atomic_uint_fast64_t blk_bits_word;

/* All zeroes: nothing allocated. */
struct blk_sparse_bits {
    _Atomic(blk_bits_word *) *leaves; /* NULL: not allocated; of each leaf, see sparse_bits.c */
    uint64_t count;                   /* bits */
};

/* Clean bits. False: no memory. */
bool blk_sparse_bits_allocate(struct blk_sparse_bits *bits, uint64_t count);
void blk_sparse_bits_free(struct blk_sparse_bits *bits);

/* Sets or clears the bits [first, last]. Returns whether any had another value. */
bool blk_sparse_bits_change(struct blk_sparse_bits *bits, uint64_t first, uint64_t last, bool set);

bool blk_sparse_bits_get(const struct blk_sparse_bits *bits, uint64_t index);

/*
 * The first bit in [from, end) that is set (or, with `set` false, clear); `end` when there is none.
 * Nothing behind `end` is looked at: a caller that goes through pieces stays linear.
 */
uint64_t blk_sparse_bits_find(const struct blk_sparse_bits *bits, uint64_t from, uint64_t end,
                              bool set);

uint64_t blk_sparse_bits_count_set(const struct blk_sparse_bits *bits);

/*
 * Sets in `to` what is set in `from`, which has as many bits. Nobody else changes `to`. Returns
 * whether that changed anything.
 */
bool blk_sparse_bits_merge(struct blk_sparse_bits *to, const struct blk_sparse_bits *from);

/*
 * Another number of bits, in two steps of which only the first, which changes nothing, can fail for
 * want of memory. New bits are clean. `to` is unallocated before the first, and freed by the second
 * together with what `bits` had.
 */
bool blk_sparse_bits_prepare_resize(const struct blk_sparse_bits *bits, uint64_t count,
                                    struct blk_sparse_bits *to);
void blk_sparse_bits_resize(struct blk_sparse_bits *bits, struct blk_sparse_bits *to);

/*
 * Bytes of the array as it is stored: bit n is bit n % 8 of byte n / 8. `offset` is a multiple of
 * 8. Past the last bit there are zeroes. An import sets bits, and ignores what is past the last
 * one; false: no memory.
 */
void blk_sparse_bits_export(const struct blk_sparse_bits *bits, uint64_t offset, uint64_t bytes,
                            uint8_t *buf);
bool blk_sparse_bits_import(struct blk_sparse_bits *bits, uint64_t offset, uint64_t bytes,
                            const uint8_t *buf);

#endif
