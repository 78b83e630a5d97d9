/* SPDX-License-Identifier: MIT */
/*
 * The digest: known values, and the same result however, in whatever order and by how many threads
 * the content is added.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/sha256.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/io.h"
#include "blockcore/jobs/checksum.h"
#include "blockcore/jobs/digest.h"
#include "config.h"
#include "tests/unit/check.h"
#include "tests/unit/memory_node.h"

#define BLOCK BLK_DIGEST_BLOCK_BYTES

#ifdef HAVE_LIBCRYPTO

/* Computed by another program. */
#define KNOWN_EMPTY "c5df0daf8ce1050ead164a150cad7ba04fd028cd97f41fbc93112589fb271cb4"
#define KNOWN_ABC "a6cfd109933cfbc2722ea1c94cd8b1dd5de1312f6af5f80e3abb617e7e8de33a"

/* The definition in digest.h, word by word. */
static void plain_hash(uint8_t tag, const void *a, size_t a_bytes, const void *b, size_t b_bytes,
                       uint8_t hash[32])
{
    struct iovec parts[] = { { &tag, 1 }, { (void *)a, a_bytes }, { (void *)b, b_bytes } };
    CHECK_INT(blk_sha256(parts, 3, hash, NULL), 0);
}

static void plain_digest(const uint8_t *content, uint64_t size, char hex[BLK_DIGEST_HEX_BYTES])
{
    size_t leaves = 1;
    while (leaves * BLOCK < size)
        leaves *= 2;
    uint8_t(*hashes)[32] = calloc(leaves, 32);
    uint8_t *block = malloc(BLOCK);

    for (size_t i = 0; i < leaves; i++) {
        uint64_t at = u64_min(i * BLOCK, size), bytes = u64_min(size - at, BLOCK);
        memset(block, 0, BLOCK);
        memcpy(block, content + at, bytes);
        plain_hash(0, block, BLOCK, NULL, 0, hashes[i]);
    }
    for (; leaves > 1; leaves /= 2) {
        for (size_t i = 0; i < leaves / 2; i++) {
            uint8_t inner[32];
            plain_hash(1, hashes[2 * i], 32, hashes[2 * i + 1], 32, inner);
            memcpy(hashes[i], inner, 32);
        }
    }
    uint8_t be_size[8], result[32];
    be64_put(be_size, size);
    plain_hash(2, be_size, 8, hashes[0], 32, result);
    blk_digest_to_hex(result, hex);
    free(block);
    free(hashes);
}

/* Content with blocks of zeroes, of data, and of both. */
static uint8_t *some_content(uint64_t size, unsigned *seed)
{
    uint8_t *content = calloc(size + 1, 1);
    for (uint64_t at = 0; at < size; at += 65536) {
        if (pick(seed, 3) == 0 && at / BLOCK % 3 != 1)
            fill_random(seed, content + at, u64_min(4096, size - at));
    }
    return content;
}

static bool finish_hex(struct blk_digest *digest, char hex[BLK_DIGEST_HEX_BYTES])
{
    uint8_t result[BLK_DIGEST_BYTES];
    bool ok = blk_digest_finish(digest, result, NULL) == 0;
    blk_digest_to_hex(result, hex);
    blk_digest_free(digest);
    return ok;
}

/* The pieces that a content is cut into, and how far the threads have come. */
struct pieces {
    const uint8_t *content;
    struct blk_digest *digest;
    struct {
        uint64_t offset, bytes;
    } list[4096];
    unsigned count;
    atomic_uint next;
    atomic_int failures;
};

static void *add_pieces(void *argument)
{
    struct pieces *p = argument;
    for (unsigned i; (i = atomic_fetch_add(&p->next, 1)) < p->count;) {
        uint64_t offset = p->list[i].offset, bytes = p->list[i].bytes;
        int ret = bytes_are_zero(p->content + offset, bytes)
                      ? blk_digest_add_zeroes(p->digest, offset, bytes, NULL)
                      : blk_digest_add(p->digest, offset, bytes, p->content + offset, NULL);
        if (ret < 0)
            atomic_fetch_add(&p->failures, 1);
    }
    return NULL;
}

static void cut_and_shuffle(struct pieces *p, uint64_t size, uint64_t longest, unsigned *seed)
{
    for (uint64_t at = 0; at < size; at += p->list[p->count++].bytes) {
        p->list[p->count].offset = at;
        p->list[p->count].bytes = u64_min(1 + pick(seed, longest), size - at);
    }
    for (unsigned i = p->count; i > 1; i--) {
        unsigned other = (unsigned)pick(seed, i);
        __typeof__(p->list[0]) old = p->list[i - 1];
        p->list[i - 1] = p->list[other];
        p->list[other] = old;
    }
}

static void check_content(uint64_t size, uint64_t longest, unsigned *seed)
{
    char want[BLK_DIGEST_HEX_BYTES], got[BLK_DIGEST_HEX_BYTES];
    uint8_t *content = some_content(size, seed);
    struct pieces *p = calloc(1, sizeof(*p));
    pthread_t threads[4];

    plain_digest(content, size, want);
    p->content = content;
    cut_and_shuffle(p, size, longest, seed);
    REQUIRE(blk_digest_begin(size, &p->digest, NULL) == 0);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, add_pieces, p);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(p->failures, 0);
    CHECK(finish_hex(p->digest, got));
    CHECK_STR(got, want);
    free(p);
    free(content);
}

TEST(known_values)
{
    struct blk_digest *digest;
    char hex[BLK_DIGEST_HEX_BYTES];

    REQUIRE(blk_digest_begin(0, &digest, NULL) == 0);
    CHECK(finish_hex(digest, hex));
    CHECK_STR(hex, KNOWN_EMPTY);
    REQUIRE(blk_digest_begin(3, &digest, NULL) == 0);
    CHECK_INT(blk_digest_add(digest, 0, 3, "abc", NULL), 0);
    CHECK(finish_hex(digest, hex));
    CHECK_STR(hex, KNOWN_ABC);
}

TEST(any_order_and_pieces)
{
    static const uint64_t sizes[] = { 0,         1,         512,           BLOCK - 1,
                                      BLOCK,     BLOCK + 1, 2 * BLOCK,     3 * BLOCK,
                                      5 * BLOCK, 8 * BLOCK, 7 * BLOCK + 9, 9 * BLOCK - 512 };
    unsigned seed = check_seed();

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        check_content(sizes[i], 4 * BLOCK, &seed);
        check_content(sizes[i], BLOCK, &seed);
        check_content(sizes[i], BLOCK / 8, &seed);
    }
}

TEST(a_huge_hole_costs_nothing)
{
    struct blk_digest *digest;
    char whole[BLK_DIGEST_HEX_BYTES], halves[BLK_DIGEST_HEX_BYTES];
    uint64_t size = UINT64_C(0x7fffffffc0000000);

    REQUIRE(blk_digest_begin(size, &digest, NULL) == 0);
    CHECK_INT(blk_digest_add_zeroes(digest, 0, size, NULL), 0);
    CHECK(finish_hex(digest, whole));
    REQUIRE(blk_digest_begin(size, &digest, NULL) == 0);
    CHECK_INT(blk_digest_add_zeroes(digest, 12345, size - 12345, NULL), 0);
    CHECK_INT(blk_digest_add_zeroes(digest, 0, 12345, NULL), 0);
    CHECK(finish_hex(digest, halves));
    CHECK_STR(halves, whole);
}

TEST(what_is_missing_or_twice_is_refused)
{
    struct blk_digest *digest;
    uint8_t result[BLK_DIGEST_BYTES], *block = calloc(2, BLOCK);
    uint64_t size = 4 * BLOCK;

    block[5] = 1;
    REQUIRE(blk_digest_begin(size, &digest, NULL) == 0);
    CHECK_INT(blk_digest_add(digest, BLOCK, BLOCK, block, NULL), 0);
    CHECK_INT(blk_digest_add(digest, BLOCK, BLOCK, block, NULL), -EINVAL);
    CHECK_INT(blk_digest_add_zeroes(digest, 0, 2 * BLOCK, NULL), -EINVAL);
    CHECK_INT(blk_digest_add(digest, size - 1, 2, block, NULL), -EINVAL);
    CHECK_INT(blk_digest_add(digest, 2 * BLOCK, 1000, block, NULL), 0);
    CHECK_INT(blk_digest_add(digest, 2 * BLOCK, BLOCK - 1, block, NULL), -EINVAL);
    CHECK_INT(blk_digest_finish(digest, result, NULL), -EINVAL);
    blk_digest_free(digest);
    free(block);
}

/* What a node shows: holes, data and a backing file give what the same bytes give. */
TEST(a_node)
{
    unsigned seed = check_seed();
    uint64_t size = 5 * BLOCK + 512;
    uint8_t *content = some_content(size, &seed);
    char want[BLK_DIGEST_HEX_BYTES], got[BLK_DIGEST_HEX_BYTES];
    uint8_t result[BLK_DIGEST_BYTES];

    struct blk_node *top = memory_node(&memory_format, size, 512, NULL);
    struct blk_node *base = memory_node(&memory_protocol, size, 1, NULL);
    for (uint64_t at = 0; at < size; at += 512) {
        uint64_t bytes = u64_min(512, size - at);
        struct blk_node *where = pick(&seed, 2) ? top : base;
        if (!bytes_are_zero(content + at, bytes))
            CHECK_INT(blk_pwrite(where, at, bytes, content + at, 0, NULL), 0);
    }
    blk_node_attach(top, BLK_ROLE_BACKING, base);

    plain_digest(content, size, want);
    for (unsigned workers = 1; workers <= 4; workers++) {
        const struct blk_checksum_params params = { .node = top, .workers = workers };
        CHECK_INT(blk_checksum(&params, result, NULL), 0);
        blk_digest_to_hex(result, got);
        CHECK_STR(got, want);
    }
    blk_drop(top);
    free(content);
}

TEST(a_read_error_is_the_result)
{
    struct memory_calls calls = { .fail_at = { [MEMORY_READ] = 3 } };
    struct blk_node *node = memory_node(&memory_protocol, 8 * BLOCK, 1, &calls);
    uint8_t result[BLK_DIGEST_BYTES], byte = 1;

    for (uint64_t at = 0; at < 8 * BLOCK; at += BLOCK)
        CHECK_INT(blk_pwrite(node, at, 1, &byte, 0, NULL), 0);
    const struct blk_checksum_params params = { .node = node, .workers = 2 };
    struct blk_error err = BLK_ERROR_INIT;
    CHECK_INT(blk_checksum(&params, result, &err), -EIO);
    CHECK_INT(err.code, EIO);
    blk_drop(node);
}

#else

TEST(without_libcrypto)
{
    struct blk_digest *digest;
    struct blk_error err = BLK_ERROR_INIT;

    CHECK_INT(blk_digest_begin(check_seed(), &digest, &err), -ENOTSUP);
    CHECK(strstr(err.why, "libcrypto"));
}

#endif
