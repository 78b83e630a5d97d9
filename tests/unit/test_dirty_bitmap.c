/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps against a plain array of flags: random ranges over sizes that are no multiple of
 * anything.
 */
#include <stdlib.h>

#include "blockcore/bitmap/dirty_bitmap.h"
#include "tests/unit/check.h"

#define GRANULES_MAX 700

struct model {
    uint64_t size, granule;
    bool dirty[GRANULES_MAX];
};

static uint64_t pick(unsigned *seed, uint64_t below)
{
    return below ? (((uint64_t)rand_r(seed) << 31) | (uint64_t)rand_r(seed)) % below : 0;
}

static uint64_t granules(const struct model *model)
{
    return (model->size + model->granule - 1) / model->granule;
}

static void model_change(struct model *model, uint64_t offset, uint64_t bytes, bool set)
{
    uint64_t end = offset + bytes < model->size ? offset + bytes : model->size;
    for (uint64_t i = 0; i < granules(model); i++) {
        uint64_t from = i * model->granule;
        uint64_t to = from + model->granule < model->size ? from + model->granule : model->size;
        bool touched = bytes && from < end && offset < to;
        bool whole = bytes && offset <= from && to <= end;
        if (set ? touched : whole)
            model->dirty[i] = set;
    }
}

static bool agree(const struct model *model, const struct blk_dirty_bitmap *bitmap)
{
    uint64_t count = 0, runs = 0, offset = 0, start, bytes;
    for (uint64_t i = 0; i < granules(model); i++) {
        uint64_t from = i * model->granule;
        uint64_t length = model->size - from < model->granule ? model->size - from : model->granule;
        if (model->dirty[i] != blk_dirty_bitmap_get(bitmap, from))
            return false;
        count += model->dirty[i] ? length : 0;
    }
    while (blk_dirty_bitmap_next(bitmap, offset, UINT64_MAX, &start, &bytes)) {
        runs += bytes;
        offset = start + bytes;
    }
    return count == blk_dirty_bitmap_count(bitmap) && count == runs;
}

static struct blk_dirty_bitmap *make(uint64_t size, unsigned granularity_bits)
{
    struct blk_dirty_bitmap *bitmap = NULL;
    blk_dirty_bitmap_new("b", size, granularity_bits, &bitmap, NULL);
    return bitmap;
}

/* Stores the bitmap and loads it again, a few words at a time. */
static struct blk_dirty_bitmap *through_storage(const struct blk_dirty_bitmap *bitmap)
{
    struct blk_dirty_bitmap *loaded = make(bitmap->size, bitmap->granularity_bits);
    uint8_t buf[24];
    for (uint64_t at = 0; at < blk_dirty_bitmap_stored_bytes(bitmap); at += sizeof(buf)) {
        blk_dirty_bitmap_export(bitmap, at, sizeof(buf), buf);
        blk_dirty_bitmap_import(loaded, at, sizeof(buf), buf, NULL);
    }
    return loaded;
}

TEST(random_ranges_agree_with_a_model)
{
    unsigned seed = check_seed();

    for (int round = 0; round < 60; round++) {
        unsigned granularity_bits = 9 + (unsigned)pick(&seed, 13);
        struct model model = { .granule = UINT64_C(1) << granularity_bits };
        model.size = 1 + pick(&seed, model.granule * (GRANULES_MAX - 1));
        struct blk_dirty_bitmap *bitmap = make(model.size, granularity_bits);
        REQUIRE(bitmap);
        for (int i = 0; i < 40; i++) {
            uint64_t offset = pick(&seed, model.size + 1);
            uint64_t bytes = pick(&seed, pick(&seed, 4) ? 5 * model.granule : model.size + 1);
            bool set = pick(&seed, 3);
            model_change(&model, offset, bytes, set);
            if (set)
                blk_dirty_bitmap_set(bitmap, offset, bytes);
            else
                blk_dirty_bitmap_clear(bitmap, offset, bytes);
        }
        CHECK(agree(&model, bitmap));

        struct blk_dirty_bitmap *loaded = through_storage(bitmap);
        CHECK(agree(&model, loaded));
        blk_dirty_bitmap_free(loaded);
        blk_dirty_bitmap_free(bitmap);
    }
}

TEST(merge_to_a_coarser_granularity_loses_nothing)
{
    struct blk_dirty_bitmap *fine = make(10 << 20, 9), *coarse = make(10 << 20, 16);
    blk_dirty_bitmap_set(fine, 65535, 2);
    blk_dirty_bitmap_merge(coarse, fine);
    CHECK_INT((intmax_t)blk_dirty_bitmap_count(coarse), 2 * 65536);
    blk_dirty_bitmap_free(fine);
    blk_dirty_bitmap_free(coarse);
}

TEST(growing_keeps_bits_and_shrinking_cuts_them)
{
    struct blk_dirty_bitmap *bitmap = make(100000, 16);
    blk_dirty_bitmap_set(bitmap, 99999, 1);
    CHECK_INT(blk_dirty_bitmap_resize(bitmap, 200000, NULL), 0);
    CHECK_INT((intmax_t)blk_dirty_bitmap_count(bitmap), 65536);
    CHECK_INT(blk_dirty_bitmap_resize(bitmap, 65536, NULL), 0);
    CHECK_INT((intmax_t)blk_dirty_bitmap_count(bitmap), 0);
    blk_dirty_bitmap_free(bitmap);
}

TEST(all_ones_is_seen_up_to_the_last_bit)
{
    struct blk_dirty_bitmap *bitmap = make(70 * 512, 9);
    CHECK(blk_dirty_bitmap_piece_is(bitmap, 0, 4096, false));
    blk_dirty_bitmap_set(bitmap, 0, 70 * 512);
    CHECK(blk_dirty_bitmap_piece_is(bitmap, 0, 4096, true));
    blk_dirty_bitmap_clear(bitmap, 69 * 512, 512);
    CHECK(!blk_dirty_bitmap_piece_is(bitmap, 0, 4096, true));
    CHECK(!blk_dirty_bitmap_piece_is(bitmap, 0, 4096, false));
    blk_dirty_bitmap_free(bitmap);
}

TEST(stored_bits_past_the_end_are_ignored)
{
    struct blk_dirty_bitmap *bitmap = make(3 * 512, 9);
    uint8_t stored[8] = { 0x0f };
    blk_dirty_bitmap_import(bitmap, 0, sizeof(stored), stored, NULL);
    CHECK_INT(blk_dirty_bitmap_count(bitmap), 3 * 512);
    uint8_t again[8];
    blk_dirty_bitmap_export(bitmap, 0, sizeof(again), again);
    CHECK(again[0] == 7 && !again[1]);
    blk_dirty_bitmap_free(bitmap);
}

TEST(bad_shapes_are_refused)
{
    struct blk_dirty_bitmap *bitmap = NULL;
    CHECK(blk_dirty_bitmap_new("", 512, 9, &bitmap, NULL) < 0);
    CHECK(blk_dirty_bitmap_new("b", 512, 8, &bitmap, NULL) < 0);
    CHECK(blk_dirty_bitmap_new("b", UINT64_C(1) << 62, 9, &bitmap, NULL) < 0);
}

TEST(a_constructor_that_fails_leaves_null)
{
    static struct blk_dirty_bitmap dangling;
    struct blk_dirty_bitmap *bitmap = &dangling;
    CHECK(blk_dirty_bitmap_new("b", UINT64_C(1) << 62, 9, &bitmap, NULL) < 0);
    CHECK(!bitmap);
    bitmap = &dangling;
    CHECK(blk_dirty_bitmap_describe("", 512, 9, &bitmap, NULL) < 0);
    CHECK(!bitmap);
}

/* ---- pieces of what is huge: each of these would not end if it looked beyond its piece ---- */

#define HUGE_SIZE (UINT64_C(8) << 40)
#define HUGE_BITS 13

TEST(going_through_all_pieces_of_a_clean_bitmap_is_linear)
{
    struct blk_dirty_bitmap *bitmap = make(HUGE_SIZE, HUGE_BITS);
    uint64_t bytes = blk_dirty_bitmap_stored_bytes(bitmap), clean = 0;
    for (uint64_t at = 0; at < bytes; at += 512)
        clean += blk_dirty_bitmap_piece_is(bitmap, at, 512, false);
    CHECK_INT(clean, bytes / 512);
    blk_dirty_bitmap_free(bitmap);
}

TEST(going_through_a_dirty_run_in_pieces_is_linear)
{
    struct blk_dirty_bitmap *bitmap = make(HUGE_SIZE, HUGE_BITS);
    uint64_t at = 0, start, bytes, pieces = 0;
    blk_dirty_bitmap_set(bitmap, 0, HUGE_SIZE);
    while (blk_dirty_bitmap_next_piece(bitmap, at, HUGE_SIZE, 2 << 20, &start, &bytes)) {
        at = start + bytes;
        pieces++;
    }
    CHECK_INT(at, HUGE_SIZE);
    CHECK_INT(pieces, HUGE_SIZE >> 21);

    struct blk_dirty_cursor cursor = { .bitmap = bitmap, .end = HUGE_SIZE };
    for (at = 0; at < HUGE_SIZE && CHECK(blk_dirty_cursor_look(&cursor, at, &bytes));)
        at += 1 << 20;
    CHECK_INT(bytes, 1 << 20);
    blk_dirty_bitmap_free(bitmap);
}

TEST(a_cursor_says_what_the_bits_say)
{
    unsigned seed = check_seed();
    struct blk_dirty_bitmap *bitmap = make(1000 * 512 - 100, 9);
    for (int i = 0; i < 60; i++)
        blk_dirty_bitmap_set(bitmap, pick(&seed, 1000 * 512), pick(&seed, 3000));

    uint64_t end = 1100 * 512; /* behind the bitmap */
    struct blk_dirty_cursor cursor = { .bitmap = bitmap, .end = end };
    for (uint64_t at = 0; at < end;) {
        uint64_t bytes;
        bool dirty = blk_dirty_cursor_look(&cursor, at, &bytes);
        REQUIRE(bytes && at + bytes <= end);
        for (uint64_t i = at; i < at + bytes; i++)
            REQUIRE(blk_dirty_bitmap_get(bitmap, i) == dirty);
        CHECK(at + bytes == end || blk_dirty_bitmap_get(bitmap, at + bytes) != dirty);
        at += 1 + pick(&seed, bytes);
    }
    blk_dirty_bitmap_free(bitmap);
}

TEST(a_piece_is_the_start_of_the_run)
{
    struct blk_dirty_bitmap *bitmap = make(100 * 512, 9);
    uint64_t start, bytes;
    blk_dirty_bitmap_set(bitmap, 10 * 512, 20 * 512);
    CHECK(blk_dirty_bitmap_next_piece(bitmap, 0, 100 * 512, 700, &start, &bytes));
    CHECK_INT(start, 10 * 512);
    CHECK_INT(bytes, 700);
    CHECK(blk_dirty_bitmap_next_piece(bitmap, 29 * 512, 100 * 512, 700, &start, &bytes));
    CHECK_INT(bytes, 512);
    CHECK(!blk_dirty_bitmap_next_piece(bitmap, 30 * 512, 100 * 512, 700, &start, &bytes));
    blk_dirty_bitmap_free(bitmap);
}
