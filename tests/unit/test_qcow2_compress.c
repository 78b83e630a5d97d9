/* SPDX-License-Identifier: MIT */
/*
 * Compressed clusters: every cluster size, both types, and pieces that are not what they should be.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "drivers/qcow2/data/data.h"
#include "tests/unit/check.h"

#define MAX_CLUSTER (UINT32_C(1) << QCOW2_MAX_CLUSTER_BITS)

/* Four clusters of room: the cluster, the piece, what comes back, and one to spare. */
static uint8_t *cluster, *piece, *back;

static void get_buffers(void)
{
    if (cluster)
        return;
    cluster = malloc(MAX_CLUSTER * 4);
    piece = cluster + MAX_CLUSTER;
    back = cluster + MAX_CLUSTER * 3; /* a piece with its junk may be longer than a cluster */
}

static struct qcow2_state state_of(unsigned cluster_bits, enum qcow2_compression type)
{
    struct qcow2_state s = { .cluster_bits = cluster_bits,
                             .cluster_bytes = UINT32_C(1) << cluster_bits };
    s.header.compression = (uint8_t)type;
    return s;
}

/* Words from a small vocabulary, at distances that reach beyond the window when it is too large. */
static void fill_text(uint8_t *to, size_t bytes, unsigned seed)
{
    for (size_t at = 0; at < bytes;) {
        char word[24];
        int length = snprintf(word, sizeof(word), "%x-%u ", (unsigned)rand_r(&seed) % 997,
                              (unsigned)rand_r(&seed) % 13);
        for (int i = 0; i < length && at < bytes; i++)
            to[at++] = (uint8_t)word[i];
    }
}

static void fill_noise(uint8_t *to, size_t bytes, unsigned seed)
{
    for (size_t i = 0; i < bytes; i++)
        to[i] = (uint8_t)(rand_r(&seed) >> 7);
}

/* Inflates as QEMU does. */
static bool inflates_in_12_bits(const uint8_t *in, size_t in_bytes, size_t bytes)
{
    z_stream stream = { .next_in = (Bytef *)(uintptr_t)in,
                        .avail_in = (uInt)in_bytes,
                        .next_out = back,
                        .avail_out = (uInt)bytes };
    if (inflateInit2(&stream, -12) != Z_OK)
        return false;
    int ret = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    return ret == Z_STREAM_END && stream.avail_out == 0;
}

static void round_trip(unsigned bits, enum qcow2_compression type)
{
    struct qcow2_state s = state_of(bits, type);
    struct blk_error err = BLK_ERROR_INIT;
    size_t bytes = 0, room = s.cluster_bytes - 1;

    get_buffers();
    for (unsigned seed = 0; seed < 4; seed++) {
        if (seed == 0)
            memset(cluster, 0, s.cluster_bytes);
        else
            fill_text(cluster, s.cluster_bytes, seed);
        memset(piece, 0xff, MAX_CLUSTER);
        REQUIRE(qcow2_compress_cluster(&s, cluster, piece, room, &bytes, &err) == 0);
        CHECK(bytes > 0 && bytes <= room);
        CHECK_INT(piece[room], 0xff);
        if (type == QCOW2_DEFLATE) {
            CHECK(inflates_in_12_bits(piece, bytes, s.cluster_bytes));
            CHECK(memcmp(cluster, back, s.cluster_bytes) == 0);
        }
        /* Somebody else's bytes up to the end of the sector. */
        for (size_t junk = 0; junk < 512; junk += 511) {
            fill_noise(piece + bytes, junk, seed);
            memset(back, 0xee, s.cluster_bytes);
            CHECK_INT(qcow2_decompress_cluster(&s, piece, bytes + junk, back, NULL, &err), 0);
            CHECK(memcmp(cluster, back, s.cluster_bytes) == 0);
        }
    }
}

TEST(deflate_every_cluster_size)
{
    for (unsigned bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++)
        round_trip(bits, QCOW2_DEFLATE);
}

TEST(noise_does_not_fit)
{
    struct blk_error err = BLK_ERROR_INIT;
    size_t bytes;

    get_buffers();
    for (unsigned bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
        struct qcow2_state s = state_of(bits, QCOW2_DEFLATE);
        fill_noise(cluster, s.cluster_bytes, bits);
        CHECK_INT(qcow2_compress_cluster(&s, cluster, piece, s.cluster_bytes - 1, &bytes, &err),
                  -ENOSPC);
    }
    CHECK_INT(err.code, 0);
}

TEST(too_little_room)
{
    struct qcow2_state s = state_of(16, QCOW2_DEFLATE);
    struct blk_error err = BLK_ERROR_INIT;
    size_t bytes, enough = 0;

    get_buffers();
    fill_text(cluster, s.cluster_bytes, 7);
    REQUIRE(qcow2_compress_cluster(&s, cluster, piece, s.cluster_bytes - 1, &enough, &err) == 0);
    CHECK_INT(qcow2_compress_cluster(&s, cluster, piece, enough / 2, &bytes, &err), -ENOSPC);
    CHECK_INT(qcow2_compress_cluster(&s, cluster, piece, 1, &bytes, &err), -ENOSPC);
}

/* A stream of `bytes` zeroes, as zlib writes it. */
static size_t deflate_zeroes(size_t bytes)
{
    z_stream stream = { .next_out = piece, .avail_out = MAX_CLUSTER };
    uint8_t *zeroes = calloc(1, bytes);
    if (!zeroes || deflateInit2(&stream, 6, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        abort();
    stream.next_in = zeroes;
    stream.avail_in = (uInt)bytes;
    deflate(&stream, Z_FINISH);
    size_t length = stream.total_out;
    deflateEnd(&stream);
    free(zeroes);
    return length;
}

TEST(output_stops_at_one_cluster)
{
    struct qcow2_state s = state_of(12, QCOW2_DEFLATE);
    struct blk_error err = BLK_ERROR_INIT;

    get_buffers();
    size_t length = deflate_zeroes(64 << 20);
    memset(back, 0xee, s.cluster_bytes + 1);
    CHECK_INT(qcow2_decompress_cluster(&s, piece, length, back, NULL, &err), 0);
    CHECK(bytes_are_zero(back, s.cluster_bytes));
    CHECK_INT(back[s.cluster_bytes], 0xee);
}

TEST(damaged_pieces)
{
    struct qcow2_state s = state_of(16, QCOW2_DEFLATE);
    struct blk_error err = BLK_ERROR_INIT;
    size_t length;

    get_buffers();
    length = deflate_zeroes(s.cluster_bytes - 1); /* ends a byte early */
    CHECK_INT(qcow2_decompress_cluster(&s, piece, length, back, NULL, &err), -EIO);
    CHECK_INT(err.code, EIO);

    fill_text(cluster, s.cluster_bytes, 3);
    REQUIRE(qcow2_compress_cluster(&s, cluster, piece, s.cluster_bytes - 1, &length, &err) == 0);
    CHECK_INT(qcow2_decompress_cluster(&s, piece, length / 2, back, NULL, &err),
              -EIO); /* cut off */
    CHECK_INT(qcow2_decompress_cluster(&s, piece, 0, back, NULL, &err), -EIO);

    memset(piece, 0xff, 512); /* no such block type */
    CHECK_INT(qcow2_decompress_cluster(&s, piece, 512, back, NULL, &err), -EIO);
}

#ifdef HAVE_ZSTD

TEST(zstd_every_cluster_size)
{
    for (unsigned bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++)
        round_trip(bits, QCOW2_ZSTD);
}

TEST(zstd_odd_pieces)
{
    struct qcow2_state s = state_of(16, QCOW2_ZSTD), larger = state_of(17, QCOW2_ZSTD);
    struct blk_error err = BLK_ERROR_INIT;
    size_t length;

    get_buffers();
    fill_noise(cluster, s.cluster_bytes, 1);
    CHECK_INT(qcow2_compress_cluster(&s, cluster, piece, s.cluster_bytes - 1, &length, &err),
              -ENOSPC);

    fill_text(cluster, larger.cluster_bytes, 5);
    REQUIRE(qcow2_compress_cluster(&larger, cluster, piece, MAX_CLUSTER, &length, &err) == 0);
    memset(back, 0xee, larger.cluster_bytes);
    /*
     * A frame that goes on after the cluster is refused, as QEMU does; nothing is written past the
     * end.
     */
    CHECK_INT(qcow2_decompress_cluster(&s, piece, length, back, NULL, &err), -EIO);
    CHECK_INT(back[s.cluster_bytes], 0xee);

    CHECK_INT(qcow2_decompress_cluster(&larger, piece, length / 2, back, NULL, &err), -EIO);
    memset(piece, 0x11, 512);
    CHECK_INT(qcow2_decompress_cluster(&s, piece, 512, back, NULL, &err), -EIO);

    /* A frame that wants a window of 128 MiB: magic, descriptor, window of 2^27. */
    static const uint8_t greedy[16] = { 0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3, 0x01 };
    CHECK_INT(qcow2_decompress_cluster(&s, greedy, sizeof(greedy), back, NULL, &err), -EIO);
}

#endif
