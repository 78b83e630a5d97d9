/* SPDX-License-Identifier: MIT */
/*
 * Bits over several leaves against a plain array of flags, and threads that give the same leaves
 * their words.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/bitmap/sparse_bits.h"
#include "tests/unit/check.h"

#define LEAF UINT64_C(32768)
#define MAX_BITS (5 * LEAF)

struct model {
    uint64_t count;
    bool set[MAX_BITS];
};

static uint64_t pick(unsigned *seed, uint64_t below)
{
    return below ? (((uint64_t)rand_r(seed) << 31) | (uint64_t)rand_r(seed)) % below : 0;
}

static bool model_change(struct model *model, uint64_t first, uint64_t last, bool set)
{
    bool any = false;
    for (uint64_t i = first; i <= last; i++) {
        any |= model->set[i] != set;
        model->set[i] = set;
    }
    return any;
}

/* Every bit by every way of reading it. */
static bool agree(const struct model *model, const struct blk_sparse_bits *bits)
{
    uint64_t set = 0, at = 0;

    if (bits->count != model->count)
        return false;
    for (uint64_t i = 0; i < model->count; i++) {
        if (model->set[i] != blk_sparse_bits_get(bits, i))
            return false;
        set += model->set[i];
    }
    while (at < model->count) {
        uint64_t end = blk_sparse_bits_find(bits, at, UINT64_MAX, !model->set[at]);
        if (end <= at || end > model->count)
            return false;
        for (uint64_t i = at; i < end; i++)
            if (model->set[i] != model->set[at])
                return false;
        if (end < model->count && model->set[end] == model->set[at])
            return false;
        at = end;
    }
    return set == blk_sparse_bits_count_set(bits);
}

/* A range that often is, or touches, a whole leaf. */
static void pick_range(unsigned *seed, uint64_t count, uint64_t *first, uint64_t *last)
{
    *first = pick(seed, count);
    *last = *first + pick(seed, count - *first);
    if (pick(seed, 2))
        *first -= *first % LEAF;
    if (pick(seed, 2) && *last - *last % LEAF + LEAF <= count)
        *last = *last - *last % LEAF + LEAF - 1;
    if (pick(seed, 3) == 0)
        *last = *first + pick(seed, 200) % (count - *first);
}

static void scramble(unsigned *seed, struct model *model, struct blk_sparse_bits *bits)
{
    for (int i = 0; i < 12; i++) {
        uint64_t first, last;
        pick_range(seed, model->count, &first, &last);
        bool set = pick(seed, 3);
        CHECK_INT(blk_sparse_bits_change(bits, first, last, set),
                  model_change(model, first, last, set));
    }
}

static uint64_t pick_count(unsigned *seed)
{
    uint64_t count = pick(seed, 3) ? 1 + pick(seed, MAX_BITS) : (1 + pick(seed, 5)) * LEAF;
    return pick(seed, 4) ? count : 1 + pick(seed, 300);
}

static struct model *make(unsigned *seed, struct blk_sparse_bits *bits, uint64_t count)
{
    struct model *model = calloc(1, sizeof(*model));
    model->count = count;
    if (!blk_sparse_bits_allocate(bits, count))
        abort();
    scramble(seed, model, bits);
    return model;
}

TEST(random_changes_agree_with_a_model)
{
    unsigned seed = check_seed();

    for (int round = 0; round < 40; round++) {
        struct blk_sparse_bits bits;
        struct model *model = make(&seed, &bits, pick_count(&seed));
        REQUIRE(agree(model, &bits));
        blk_sparse_bits_free(&bits);
        free(model);
    }
}

TEST(a_merge_sets_what_either_has)
{
    unsigned seed = check_seed();

    for (int round = 0; round < 40; round++) {
        struct blk_sparse_bits to, from;
        struct model *a = make(&seed, &to, pick_count(&seed));
        struct model *b = make(&seed, &from, a->count);
        bool more = false;
        for (uint64_t i = 0; i < a->count; i++) {
            more |= b->set[i] && !a->set[i];
            a->set[i] |= b->set[i];
        }
        CHECK_INT(blk_sparse_bits_merge(&to, &from), more);
        REQUIRE(agree(a, &to));
        REQUIRE(agree(b, &from));
        blk_sparse_bits_free(&to);
        blk_sparse_bits_free(&from);
        free(a);
        free(b);
    }
}

TEST(another_number_of_bits)
{
    unsigned seed = check_seed();

    for (int round = 0; round < 80; round++) {
        struct blk_sparse_bits bits, to;
        struct model *model = make(&seed, &bits, pick_count(&seed));
        uint64_t count = pick_count(&seed);
        if (round % 8 == 0)
            count = model->count;
        REQUIRE(blk_sparse_bits_prepare_resize(&bits, count, &to));
        REQUIRE(agree(model, &bits));
        for (uint64_t i = count; i < MAX_BITS; i++)
            model->set[i] = false;
        model->count = count;
        blk_sparse_bits_resize(&bits, &to);
        REQUIRE(agree(model, &bits));
        CHECK(!to.leaves);
        scramble(&seed, model, &bits);
        REQUIRE(agree(model, &bits));
        blk_sparse_bits_free(&bits);
        free(model);
    }
}

TEST(the_stored_form_is_read_back_in_pieces_of_any_size)
{
    unsigned seed = check_seed();

    for (int round = 0; round < 40; round++) {
        struct blk_sparse_bits bits, loaded;
        struct model *model = make(&seed, &bits, pick_count(&seed));
        uint64_t bytes = (model->count + 7) / 8, piece = 8 * (1 + pick(&seed, 1500));
        uint8_t *buf = malloc(piece);
        REQUIRE(blk_sparse_bits_allocate(&loaded, model->count));
        for (uint64_t at = 0; at < bytes; at += piece) {
            memset(buf, 0xaa, piece);
            blk_sparse_bits_export(&bits, at, piece, buf);
            for (uint64_t i = 0; i < piece * 8; i++) {
                bool set = at * 8 + i < model->count && model->set[at * 8 + i];
                REQUIRE((buf[i / 8] >> (i % 8) & 1) == set);
            }
            uint64_t left = bytes - at;
            REQUIRE(blk_sparse_bits_import(&loaded, at, left < piece ? left : piece, buf));
        }
        REQUIRE(agree(model, &loaded));
        /* What lies past the last bit is not taken. */
        memset(buf, 0xff, 8);
        REQUIRE(blk_sparse_bits_import(&loaded, (bytes - 1) / 8 * 8, 8, buf));
        model_change(model, (bytes - 1) / 8 * 64, model->count - 1, true);
        REQUIRE(agree(model, &loaded));
        free(buf);
        blk_sparse_bits_free(&bits);
        blk_sparse_bits_free(&loaded);
        free(model);
    }
}

/* ---- threads ---- */

#define THREADS 4
#define SHARED_LEAVES 64

struct worker {
    struct blk_sparse_bits *bits;
    uint64_t index; /* every bit whose number ends in this is its own */
};

static void *change_own_bits(void *argument)
{
    const struct worker *worker = argument;

    for (uint64_t leaf = 0; leaf < SHARED_LEAVES; leaf++)
        for (uint64_t i = 0; i < 40; i++) {
            uint64_t bit = leaf * LEAF + i * THREADS + worker->index;
            blk_sparse_bits_change(worker->bits, bit, bit, leaf % 2 == 0);
        }
    return NULL;
}

TEST(threads_that_give_a_leaf_its_words_lose_no_bit)
{
    struct blk_sparse_bits bits;
    struct worker workers[THREADS];
    pthread_t threads[THREADS];

    REQUIRE(blk_sparse_bits_allocate(&bits, SHARED_LEAVES * LEAF));
    for (uint64_t leaf = 1; leaf < SHARED_LEAVES; leaf += 2)
        blk_sparse_bits_change(&bits, leaf * LEAF, (leaf + 1) * LEAF - 1, true);
    for (uint64_t i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){ &bits, i };
        REQUIRE(pthread_create(&threads[i], NULL, change_own_bits, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t bit = 0; bit < bits.count; bit++)
        REQUIRE(blk_sparse_bits_get(&bits, bit) ==
                ((bit % LEAF < 40 * THREADS) == (bit / LEAF % 2 == 0)));
    blk_sparse_bits_free(&bits);
}

/* ---- memory ---- */

/* How many leaves differ from the one before: none has memory of its own when none does. */
static int differing(const struct blk_sparse_bits *bits)
{
    int count = 0;
    for (uint64_t i = 1; i < bits->count / LEAF; i++)
        count += bits->leaves[i] != bits->leaves[i - 1];
    return count;
}

TEST(clean_and_wholly_set_stretches_have_no_memory)
{
    const uint64_t count = UINT64_C(1) << 32;
    struct blk_sparse_bits bits, copy;

    REQUIRE(blk_sparse_bits_allocate(&bits, count));
    REQUIRE(blk_sparse_bits_allocate(&copy, count));
    CHECK(blk_sparse_bits_change(&bits, 0, count - 1, true));
    CHECK(blk_sparse_bits_merge(&copy, &bits));
    CHECK_INT(differing(&copy), 0);
    CHECK(blk_sparse_bits_find(&copy, 0, count, false) == count);
    CHECK(blk_sparse_bits_change(&bits, 0, count - 1, false));
    CHECK_INT(differing(&bits), 0);
    CHECK(!bits.leaves[0]);
    CHECK(blk_sparse_bits_change(&copy, count / 2, count / 2, false));
    CHECK_INT(differing(&copy), 2);
    CHECK(blk_sparse_bits_count_set(&copy) == count - 1);
    blk_sparse_bits_free(&bits);
    blk_sparse_bits_free(&copy);
}
