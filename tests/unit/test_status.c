/* SPDX-License-Identifier: MIT */
/*
 * Block status through chains of layers: random maps and sizes, filters in between, compared sector
 * by sector with what each layer's map says.
 */

#include "blockcore/graph/close.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"
#include "tests/unit/check.h"
#include "tests/unit/memory_node.h"

#define SECTOR ((uint64_t)BLK_SECTOR_BYTES)

enum { LAYERS = 4, SECTORS = 64 };

/* Layer 0 is the top. */
struct chain {
    struct blk_node *node[LAYERS]; /* without filters */
    struct blk_node *top;
};

static struct blk_node *random_layer(unsigned *seed)
{
    uint64_t sectors = 1 + pick(seed, SECTORS);
    struct blk_node *node = memory_node(&memory_format, sectors * SECTOR, 1, NULL);
    for (uint64_t i = 0; i < sectors; i++)
        memory_of(node)->map[i] =
            (uint8_t)(i && pick(seed, 3) ? memory_of(node)->map[i - 1] : pick(seed, 3));
    return node;
}

static void build(struct chain *chain, unsigned *seed)
{
    struct blk_node *below = NULL;
    for (int i = LAYERS - 1; i >= 0; i--) {
        struct blk_node *node = chain->node[i] = random_layer(seed);
        if (below)
            blk_node_attach(node, BLK_ROLE_BACKING, below);
        below = pick(seed, 3) ? node : memory_filter_over(node);
    }
    chain->top = below;
}

/* What a sector seen through the layers above `base` is. */
struct expected {
    bool allocated, zero, data;
    unsigned depth;
};

static struct expected expect(const struct chain *chain, int base, uint64_t sector)
{
    for (int i = 0; i < base; i++) {
        if (sector * SECTOR >= blk_size(chain->node[i]))
            return (struct expected){ true, true, false, (unsigned)i };
        uint8_t as = memory_of(chain->node[i])->map[sector];
        if (as != MEMORY_HOLE)
            return (struct expected){ true, as == MEMORY_ZEROES, as == MEMORY_DATA, (unsigned)i };
    }
    bool nothing = base == LAYERS || sector * SECTOR >= blk_size(chain->node[base]);
    return (struct expected){ false, nothing, false, (unsigned)base - 1 };
}

static bool agrees(const struct chain *chain, int base, uint64_t sector,
                   const struct blk_extent *extent)
{
    struct expected want = expect(chain, base, sector);
    return !!(extent->flags & BLK_EXT_ALLOCATED) == want.allocated &&
           !!(extent->flags & BLK_EXT_ZERO) == want.zero &&
           !!(extent->flags & BLK_EXT_DATA) == want.data && extent->depth == want.depth;
}

/* Walks the whole chain from a random start, in pieces of random length. */
static void walk(const struct chain *chain, int base, unsigned *seed)
{
    struct blk_node *end = base < LAYERS ? chain->node[base] : NULL;
    uint64_t size = blk_size(chain->top), offset = pick(seed, size);
    struct blk_extent extent;

    for (; offset < size; offset += extent.bytes) {
        uint64_t bytes = 1 + pick(seed, size - offset);
        REQUIRE(blk_block_status_above(blk_layers(chain->top, end), offset, bytes, 0, &extent,
                                       NULL) == 0);
        REQUIRE(extent.bytes > 0 && extent.bytes <= bytes);
        for (uint64_t at = offset; at < offset + extent.bytes; at++)
            REQUIRE(agrees(chain, base, at / SECTOR, &extent));
        bool ends = offset + extent.bytes == size;
        REQUIRE(!!(extent.flags & BLK_EXT_EOF) == ends);
    }
}

TEST(chains_of_any_shape)
{
    unsigned seed = check_seed();
    for (int round = 0; round < 300; round++) {
        struct chain chain;
        build(&chain, &seed);
        walk(&chain, 1 + (int)pick(&seed, LAYERS), &seed);
        blk_drop(chain.top);
    }
}

TEST(past_the_end)
{
    struct blk_node *node = memory_node(&memory_format, 1000, 1, NULL);
    struct blk_extent extent;
    CHECK_INT(blk_block_status(node, 1000, 5000, 0, &extent, NULL), 0);
    CHECK_INT(extent.bytes, 5000);
    CHECK_INT(extent.flags, BLK_EXT_ZERO | BLK_EXT_EOF);
    CHECK_INT(blk_block_status(node, 0, 5000, 0, &extent, NULL), 0);
    CHECK_INT(extent.bytes, 1000);
    CHECK(extent.flags & BLK_EXT_EOF);
    CHECK_INT(blk_block_status(node, 10, 0, 0, &extent, NULL), 0);
    CHECK_INT(extent.bytes, 0);
    blk_drop(node);
}

TEST(past_the_end_nothing_of_a_longer_backing_file_shows)
{
    struct blk_node *base = memory_node(&memory_format, 8 * SECTOR, 1, NULL);
    struct blk_node *top = memory_node(&memory_format, 2 * SECTOR, 1, NULL);
    struct blk_extent extent;
    for (int i = 0; i < 8; i++)
        memory_of(base)->map[i] = MEMORY_DATA;
    blk_node_attach(top, BLK_ROLE_BACKING, base);
    CHECK_INT(blk_block_status_above(blk_layers(top, NULL), 0, 8 * SECTOR, 0, &extent, NULL), 0);
    CHECK(extent.bytes == 2 * SECTOR && extent.flags & BLK_EXT_DATA && extent.depth == 1);
    CHECK_INT(
        blk_block_status_above(blk_layers(top, NULL), 4 * SECTOR, 4 * SECTOR, 0, &extent, NULL), 0);
    CHECK_INT(extent.bytes, 4 * SECTOR);
    CHECK_INT(extent.flags, BLK_EXT_ZERO | BLK_EXT_EOF);
    CHECK_INT(extent.depth, 0);
    blk_drop(top);
}

TEST(a_backing_file_that_was_not_opened_may_hold_anything)
{
    struct blk_node *node = memory_node(&memory_format, 4096, 1, NULL);
    struct blk_extent extent;
    CHECK_INT(blk_block_status(node, 0, 4096, 0, &extent, NULL), 0);
    CHECK(extent.flags & BLK_EXT_ZERO);
    node->backing_name = blk_xstrdup("base"); /* taken away by the option backing= */
    CHECK_INT(blk_block_status(node, 0, 4096, 0, &extent, NULL), 0);
    CHECK(extent.flags & BLK_EXT_ZERO);
    node->flags |= BLK_NO_BACKING;
    CHECK_INT(blk_block_status(node, 0, 4096, 0, &extent, NULL), 0);
    CHECK(!(extent.flags & BLK_EXT_ZERO));
    blk_drop(node);
}

/* A node that maps itself one to one onto its file. */
static int mapped_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                         struct blk_extent *extent, struct blk_error *err)
{
    (void)want;
    (void)err;
    *extent = (struct blk_extent){
        .bytes = bytes,
        .flags = BLK_EXT_DATA | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID | BLK_EXT_RECURSE,
        .host = blk_child(node, BLK_ROLE_FILE),
        .host_offset = offset,
    };
    return 0;
}

TEST(holes_of_the_file_below_are_zeroes)
{
    static const struct blk_driver mapped = {
        .name = "mapped",
        .kind = BLK_FORMAT,
        .data = { .block_status = mapped_status },
    };
    struct blk_node *file = memory_node(&memory_protocol, 4096, 1, NULL);
    struct blk_node *node = blk_node_new(&mapped, "mapped", 0, file->cache);
    struct blk_extent extent;
    static const uint8_t sector[512] = { 1 };
    blk_node_attach(node, BLK_ROLE_FILE, file);
    blk_node_set_size(node, 8192);
    blk_child_pwrite(file, 0, sizeof(sector), sector, 0, NULL);

    CHECK_INT(blk_block_status(node, 0, 8192, 0, &extent, NULL), 0);
    CHECK(extent.bytes == 8192 && !(extent.flags & BLK_EXT_ZERO));
    CHECK_INT(blk_block_status(node, 0, 8192, BLK_WANT_ZERO, &extent, NULL), 0);
    CHECK(extent.bytes == 512 && !(extent.flags & BLK_EXT_ZERO));
    CHECK_INT(blk_block_status(node, 512, 8192 - 512, BLK_WANT_ZERO, &extent, NULL), 0);
    CHECK(extent.flags & BLK_EXT_ZERO && extent.flags & BLK_EXT_OFFSET_VALID);
    CHECK_INT(extent.host_offset, 512);
    CHECK_INT(blk_block_status(node, 4096, 4096, BLK_WANT_ZERO, &extent, NULL), 0);
    CHECK(extent.bytes == 4096 && extent.flags & BLK_EXT_ZERO);
    blk_drop(node);
}

TEST(an_error_of_any_layer_comes_back)
{
    struct memory_calls calls = { .fail_at = { [MEMORY_STATUS] = 1 } };
    struct blk_node *base = memory_node(&memory_format, 4096, 1, &calls);
    struct blk_node *top = memory_node(&memory_format, 4096, 1, NULL);
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_extent extent;
    blk_node_attach(top, BLK_ROLE_BACKING, base);
    CHECK_INT(blk_block_status_above(blk_layers(top, NULL), 0, 4096, 0, &extent, &err), -EIO);
    CHECK_INT(err.code, EIO);
    blk_drop(top);
}
