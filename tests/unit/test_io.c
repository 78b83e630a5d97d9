/* SPDX-License-Identifier: MIT */
/*
 * Requests of any offset and length against a node that wants 4096, compared with a plain array;
 * and the general ways of doing what a driver lacks.
 */
#include <pthread.h>

#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/pieces.h"
#include "tests/unit/check.h"
#include "tests/unit/memory_node.h"

#define ALIGNMENT 4096
#define SIZE (40 * ALIGNMENT)

static bool same(struct blk_node *node, const uint8_t *model, uint64_t bytes)
{
    uint8_t *got = blk_buffer_alloc(bytes);
    bool equal = blk_pread_padded(node, 0, bytes, got, NULL) == 0 && !memcmp(got, model, bytes);
    free(got);
    return equal;
}

/* One random request, done to the node and to the model. */
static int random_request(struct blk_node *node, uint8_t *model, uint64_t size, unsigned *seed)
{
    uint8_t buf[3 * ALIGNMENT + 1];
    uint64_t offset = pick(seed, size);
    uint64_t bytes = u64_min(1 + pick(seed, sizeof(buf) - 1), size - offset);
    bool skewed = pick(seed, 2) && bytes < sizeof(buf);
    uint8_t *data = buf + skewed; /* an address that fits, or one that does not */

    switch (pick(seed, 4)) {
    case 0:
        memset(model + offset, 0, bytes);
        return blk_write_zeroes(node, offset, bytes, BLK_REQ_MAY_UNMAP, NULL);
    case 1:
        if (blk_pread(node, offset, bytes, data, NULL) < 0)
            return -EIO;
        return memcmp(data, model + offset, bytes) ? -EBADMSG : 0;
    default:
        fill_random(seed, data, bytes);
        memcpy(model + offset, data, bytes);
        return blk_pwrite(node, offset, bytes, data, pick(seed, 2) ? BLK_REQ_FUA : 0, NULL);
    }
}

static void check_random(uint64_t size, uint32_t alignment, struct memory_calls *calls,
                         uint64_t max_transfer)
{
    unsigned seed = check_seed();
    uint8_t *model = blk_xcalloc(size, 1);
    struct blk_node *node = memory_node(&memory_protocol, size, alignment, calls);

    node->limits.max_transfer = max_transfer;
    for (int i = 0; i < 2000; i++)
        if (!CHECK_INT(random_request(node, model, size, &seed), 0))
            break;
    CHECK(same(node, model, size));
    CHECK_INT(calls->misaligned, 0);
    CHECK_INT(blk_size(node), size);
    CHECK_INT(blk_close(node, NULL, NULL), 0);
    free(model);
}

TEST(random_requests_on_an_aligned_node)
{
    struct memory_calls calls = { .count = { 0 } };
    check_random(SIZE, ALIGNMENT, &calls, 0);
}

TEST(random_requests_where_zeroing_must_be_written)
{
    struct memory_calls calls = { .no_zero = true };
    check_random(SIZE, ALIGNMENT, &calls, ALIGNMENT);
}

TEST(random_requests_on_a_size_that_is_no_multiple)
{
    struct memory_calls calls = { .count = { 0 } };
    check_random(SIZE + 1234, ALIGNMENT, &calls, 0);
}

/* ---- many threads, each with bytes of its own in blocks that all share ---- */

enum { THREADS = 6, STRIPE = 700 };

struct stripes {
    struct blk_node *node;
    uint8_t *model;
    unsigned thread, seed;
    atomic_int *failed;
};

static void *write_stripes(void *argument)
{
    struct stripes *s = argument;
    for (int round = 0; round < 300; round++) {
        uint64_t row = pick(&s->seed, SIZE / (THREADS * STRIPE));
        uint64_t offset = (row * THREADS + s->thread) * STRIPE;
        if (round % 3)
            fill_random(&s->seed, s->model + offset, STRIPE);
        else
            memset(s->model + offset, 0, STRIPE);
        int ret = round % 3 ? blk_pwrite(s->node, offset, STRIPE, s->model + offset, 0, NULL)
                            : blk_write_zeroes(s->node, offset, STRIPE, 0, NULL);
        if (ret < 0)
            (*s->failed)++;
    }
    return NULL;
}

TEST(threads_that_share_blocks_lose_nothing)
{
    unsigned seed = check_seed();
    struct blk_node *node = memory_node(&memory_protocol, SIZE, ALIGNMENT, NULL);
    uint8_t *model = blk_xcalloc(SIZE, 1);
    struct stripes stripes[THREADS];
    pthread_t threads[THREADS];
    atomic_int failed = 0;

    for (unsigned i = 0; i < THREADS; i++) {
        stripes[i] = (struct stripes){ node, model, i, seed + i, &failed };
        pthread_create(&threads[i], NULL, write_stripes, &stripes[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(failed, 0);
    CHECK(same(node, model, SIZE));
    blk_close(node, NULL, NULL);
    free(model);
}

/* ---- whole blocks against parts of them ---- */

struct block_user {
    struct blk_node *node;
    atomic_bool *stop;
};

static void *write_part(void *argument)
{
    struct block_user *user = argument;
    uint8_t part[100] = { 0 };
    while (!*user->stop)
        blk_pwrite(user->node, 50, sizeof(part), part, 0, NULL);
    return NULL;
}

TEST(a_read_modify_write_puts_nothing_old_back)
{
    struct memory_calls calls = { .count = { 0 } };
    struct blk_node *node = memory_node(&memory_protocol, SIZE, ALIGNMENT, &calls);
    uint8_t *block = blk_buffer_alloc(ALIGNMENT), *got = blk_buffer_alloc(ALIGNMENT);
    atomic_bool stop = false;
    struct block_user user = { node, &stop };
    unsigned wrong = 0;
    pthread_t thread;

    pthread_create(&thread, NULL, write_part, &user);
    for (int i = 0; i < 3000 || calls.count[MEMORY_WRITE] < 9000; i++) {
        memset(block, i % 255 + 1, ALIGNMENT);
        blk_pwrite(node, 0, ALIGNMENT, block, 0, NULL);
        struct blk_range range; /* reads need no order with writes; this one wants it */
        blk_range_take(&node->ranges, &range, 0, ALIGNMENT, 1);
        blk_pread(node, 0, ALIGNMENT, got, NULL);
        blk_range_release(&node->ranges, &range);
        wrong += memcmp(got + 150, block + 150, ALIGNMENT - 150) != 0;
    }
    stop = true;
    pthread_join(thread, NULL);
    CHECK_INT(wrong, 0);
    free(block);
    free(got);
    blk_drop(node);
}

/* ---- appending: cutting back a widened write spares what others append ---- */

struct appender {
    struct blk_node *node;
    unsigned thread;
};

static void *append_pieces(void *argument)
{
    struct appender *a = argument;
    uint8_t piece[1000];
    memset(piece, (int)a->thread + 1, sizeof(piece));
    for (uint64_t i = 0; i < 40; i++)
        blk_child_pwrite(a->node, (i * THREADS + a->thread) * sizeof(piece), sizeof(piece), piece,
                         0, NULL);
    return NULL;
}

TEST(threads_that_append_do_not_cut_each_other_off)
{
    for (int round = 0; round < 20; round++) {
        struct blk_node *node = memory_node(&memory_protocol, 400000, ALIGNMENT, NULL);
        struct appender appenders[THREADS];
        pthread_t threads[THREADS];
        blk_node_set_size(node, 0);
        for (unsigned i = 0; i < THREADS; i++) {
            appenders[i] = (struct appender){ node, i };
            pthread_create(&threads[i], NULL, append_pieces, &appenders[i]);
        }
        for (unsigned i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        CHECK_INT(blk_size(node), 40 * THREADS * 1000);
        for (uint64_t i = 0; i < 40 * THREADS; i++)
            if (memory_of(node)->data[i * 1000 + 999] != i % THREADS + 1)
                CHECK_INT(i, -1);
        blk_drop(node);
    }
}

/* ---- what is refused, and what is passed on ---- */

TEST(ranges_past_the_end)
{
    struct blk_node *node = memory_node(&memory_protocol, 1000, 1, NULL);
    struct blk_error err = BLK_ERROR_INIT;
    uint8_t buf[20];
    memset(buf, 7, sizeof(buf));

    CHECK_INT(blk_pread(node, 990, 20, buf, &err), -EIO);
    CHECK_INT(blk_pwrite(node, UINT64_MAX, 20, buf, 0, &err), -EIO);
    CHECK_INT(blk_write_zeroes(node, 1001, 0, 0, &err), -EIO);
    CHECK_INT(blk_discard(node, 0, 1001, &err), -EIO);
    CHECK_INT(blk_pread_padded(node, 990, 20, buf, NULL), 0);
    CHECK(bytes_are_zero(buf, sizeof(buf)));
    CHECK_INT(blk_pwrite(node, 990, 10, buf, 0, NULL), 0);
    blk_drop(node);
}

TEST(a_read_only_node_refuses_every_change)
{
    struct memory_calls calls = { .count = { 0 } };
    struct blk_node *node = memory_node(&memory_protocol, 4096, 1, &calls);
    struct blk_error err = BLK_ERROR_INIT;
    node->flags = 0;
    CHECK_INT(blk_pwrite(node, 0, 1, "x", 0, &err), -EACCES);
    CHECK_INT(blk_write_zeroes(node, 0, 1, 0, &err), -EACCES);
    CHECK_INT(blk_discard(node, 0, 1, &err), -EACCES);
    CHECK_INT(blk_truncate(node, 0, BLK_PREALLOC_OFF, true, &err), -EACCES);
    CHECK_INT(calls.count[MEMORY_WRITE] + calls.count[MEMORY_ZERO], 0);
    blk_drop(node);
}

TEST(zeroing_without_fallback)
{
    struct memory_calls calls = { .no_zero = true };
    struct blk_node *node = memory_node(&memory_protocol, 65536, 512, &calls);
    struct blk_error err = BLK_ERROR_INIT;
    CHECK_INT(blk_write_zeroes(node, 0, 65536, BLK_REQ_NO_FALLBACK, &err), -ENOTSUP);
    CHECK_INT(calls.count[MEMORY_WRITE], 0);
    blk_drop(node);
}

TEST(a_failure_below_comes_back_once)
{
    for (unsigned nth = 1; nth <= 3; nth++) {
        struct memory_calls calls = { .fail_at = { [MEMORY_WRITE] = nth } };
        struct blk_node *node = memory_node(&memory_protocol, 65536, 512, &calls);
        uint8_t buf[3 * 512] = { 1 };
        int failed = 0;
        node->limits.max_transfer = 512;
        for (int i = 0; i < 4; i++) {
            struct blk_error err = BLK_ERROR_INIT;
            int ret = blk_pwrite(node, 0, sizeof(buf), buf, 0, &err);
            failed += ret < 0;
            CHECK(ret == 0 || (err.code == EIO && strstr(err.what, "writing")));
        }
        CHECK_INT(failed, 1);
        blk_drop(node);
    }
}

/* ---- flush ---- */

TEST(a_flush_that_failed_stays_failed)
{
    struct memory_calls calls = { .fail_at = { [MEMORY_FLUSH] = 2 } };
    struct blk_node *file = memory_node(&memory_protocol, 4096, 1, &calls);
    struct blk_node *top = memory_filter_over(file);
    struct blk_error err = BLK_ERROR_INIT;

    CHECK_INT(blk_flush(top, &err), 0);
    CHECK_INT(blk_flush(top, &err), -EIO);
    for (int i = 0; i < 3; i++) {
        blk_error_clear(&err);
        CHECK_INT(blk_flush(top, &err), -EIO);
        CHECK(strstr(err.why, "earlier"));
    }
    CHECK_INT(blk_child_flush(file, NULL), -EIO);
    CHECK_INT(calls.count[MEMORY_FLUSH], 2);
    CHECK_INT(blk_close(top, NULL, &err), -EIO);
}

TEST(cache_modes_and_durability)
{
    struct memory_calls calls = { .count = { 0 } };
    struct blk_node *node = memory_node(&memory_protocol, 4096, 1, &calls);
    blk_pwrite(node, 0, 1, "x", 0, NULL);
    CHECK_INT(calls.count[MEMORY_FLUSH], 0);
    blk_pwrite(node, 0, 1, "x", BLK_REQ_FUA, NULL);
    CHECK_INT(calls.count[MEMORY_FLUSH], 1);
    node->cache.writethrough = true;
    blk_pwrite(node, 0, 1, "x", 0, NULL);
    blk_write_zeroes(node, 0, 1, 0, NULL);
    blk_discard(node, 0, 1, NULL);
    CHECK_INT(calls.count[MEMORY_FLUSH], 4);
    node->cache = (struct blk_cache_mode){ .no_flush = true };
    unsigned to_os = calls.count[MEMORY_FLUSH_TO_OS];
    CHECK_INT(blk_flush(node, NULL), 0);
    CHECK_INT(calls.count[MEMORY_FLUSH], 4);
    CHECK_INT(calls.count[MEMORY_FLUSH_TO_OS], to_os + 1);
    blk_close(node, NULL, NULL);
}

struct flusher {
    struct blk_node *node;
    atomic_int failures;
};

static void *flush_often(void *argument)
{
    struct flusher *f = argument;
    bool failed = false;
    for (int i = 0; i < 50; i++) {
        int ret = blk_flush(f->node, NULL);
        if (failed && ret == 0)
            f->failures += 1000; /* it got well again */
        failed = ret < 0;
    }
    f->failures += failed;
    return NULL;
}

TEST(all_threads_hear_of_the_flush_that_failed)
{
    struct memory_calls calls = { .fail_at = { [MEMORY_FLUSH] = 60 } };
    struct flusher f = { .node = memory_node(&memory_protocol, 4096, 1, &calls) };
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, flush_often, &f);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK(f.failures >= 1 && f.failures <= 4);
    CHECK_INT(calls.count[MEMORY_FLUSH], 60);
    CHECK_INT(blk_flush(f.node, NULL), -EIO);
    blk_drop(f.node);
}

/* ---- dirty bitmaps ---- */

TEST(every_change_is_recorded)
{
    struct blk_node *node = memory_node(&memory_format, 1 << 20, 1, NULL);
    struct blk_dirty_bitmap *bitmap;
    static uint8_t cluster[MEMORY_CLUSTER_BYTES];

    REQUIRE(blk_dirty_bitmap_new("b", 1 << 20, 16, &bitmap, NULL) == 0);
    blk_bitmaps_add(node, bitmap, NULL);
    blk_pwrite(node, 0, 1, "x", 0, NULL);
    blk_write_zeroes(node, 2 * 65536, 1, 0, NULL);
    blk_write_compressed(node, 4 * 65536, sizeof(cluster), cluster, NULL);
    for (unsigned i = 0; i < 6; i++)
        CHECK_INT(blk_dirty_bitmap_get(bitmap, i * 65536), i % 2 == 0);
    CHECK_INT(blk_dirty_bitmap_count(bitmap), 3 * 65536);
    blk_drop(node);
}
