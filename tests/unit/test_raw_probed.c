/* SPDX-License-Identifier: MIT */
/*
 * A probed raw image must not become another format by what is written into it. The list of drivers
 * is this file's own (the program's registry is not linked then): file, raw, and a format that is
 * known by its first eight bytes, zeroes among them, as qcow2 is.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "blockcore/base/bytes.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "drivers/drivers.h"
#include "tests/unit/check.h"

#define MAGIC "MAGI\0\0\0\3"
#define MAGIC_BYTES 8

static int probe_magic(const uint8_t *head, size_t bytes)
{
    return bytes >= MAGIC_BYTES && memcmp(head, MAGIC, MAGIC_BYTES) == 0 ? 100 : 0;
}

static const struct blk_driver magic = {
    .name = "magic",
    .kind = BLK_FORMAT,
    .probe = probe_magic,
};

const struct blk_driver *const blk_drivers[] = { &blk_driver_raw, &blk_driver_file, &magic, NULL };

static char name[200];
static struct blk_error err;

/* A new file of 64 KiB, opened with the format given or guessed. */
static struct blk_node *open_new(const char *format)
{
    const char *base = getenv("TMPDIR");
    snprintf(name, sizeof(name), "%s/blkimg-unit.XXXXXX", base ? base : "/tmp");
    int fd = mkstemp(name);
    if (fd < 0 || ftruncate(fd, 65536) < 0 || close(fd) < 0)
        abort();
    struct blk_open how = { .filename = name, .format = format, .flags = BLK_WRITABLE | BLK_UNMAP };
    struct blk_node *root;
    blk_error_clear(&err);
    return blk_open(&how, &root, &err) < 0 ? NULL : root;
}

/* Whether the file still is raw to the next who opens it. */
static bool close_and_probe(struct blk_node *node)
{
    char head[MAGIC_BYTES];
    CHECK_INT(blk_close(node, NULL, &err), 0);
    FILE *file = fopen(name, "r");
    bool raw = file && fread(head, 1, sizeof(head), file) == sizeof(head) &&
               memcmp(head, MAGIC, MAGIC_BYTES) != 0;
    if (file)
        fclose(file);
    unlink(name);
    return raw;
}

static int put(struct blk_node *node, uint64_t offset, uint64_t bytes, const char *data)
{
    return blk_pwrite(node, offset, bytes, data, 0, &err);
}

TEST(a_header_at_once)
{
    static char block[65536] = MAGIC;
    struct blk_node *node = open_new(NULL);
    REQUIRE(node);
    CHECK_INT(put(node, 0, MAGIC_BYTES, block), -EPERM);
    CHECK(strstr(err.why, "magic"));
    CHECK_INT(put(node, 0, 512, block), -EPERM);
    CHECK_INT(put(node, 0, sizeof(block), block), -EPERM);
    CHECK_INT(put(node, 1, 512, block), 0);
    CHECK(close_and_probe(node));
}

TEST(a_header_in_pieces)
{
    struct blk_node *node = open_new(NULL);
    REQUIRE(node);
    CHECK_INT(put(node, 4, 4, &MAGIC[4]), 0);
    CHECK_INT(put(node, 0, 3, MAGIC), 0);
    CHECK_INT(put(node, 3, 1, &MAGIC[3]), -EPERM);
    CHECK(close_and_probe(node));
}

TEST(a_header_completed_by_zeroes)
{
    for (int way = 0; way < 3; way++) {
        struct blk_node *node = open_new(NULL);
        REQUIRE(node);
        CHECK_INT(put(node, 0, MAGIC_BYTES, "MAGI\1\0\0\3"), 0);
        if (way == 0)
            CHECK_INT(blk_write_zeroes(node, 4, 1, 0, &err), -EPERM);
        else if (way == 1)
            CHECK(blk_write_zeroes(node, 4, 1, BLK_REQ_MAY_UNMAP | BLK_REQ_NO_FALLBACK, &err) < 0);
        else
            CHECK_INT(blk_discard(node, 4, 1, &err), 0);
        CHECK(close_and_probe(node));
    }
}

TEST(zeroes_over_the_whole_head_are_raw)
{
    struct blk_node *node = open_new(NULL);
    REQUIRE(node);
    CHECK_INT(put(node, 0, 4, "MAGI"), 0);
    CHECK_INT(blk_write_zeroes(node, 0, 65536, BLK_REQ_MAY_UNMAP, &err), 0);
    char buf[4];
    CHECK_INT(blk_pread(node, 0, 4, buf, &err), 0);
    CHECK(bytes_are_zero(buf, 4));
    CHECK(close_and_probe(node));
}

TEST(who_says_raw_may_write_anything)
{
    struct blk_node *node = open_new("raw");
    REQUIRE(node);
    CHECK_INT(put(node, 0, MAGIC_BYTES, MAGIC), 0);
    CHECK(!close_and_probe(node));
}
