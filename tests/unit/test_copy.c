/* SPDX-License-Identifier: MIT */
/*
 * The copy engine between nodes in memory: whatever the way a range is moved, the target reads as
 * the source does; and no failure of a read, write or map lookup is lost.
 */
#include <signal.h>
#include <time.h>

#include "blockcore/base/cancel.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/io.h"
#include "blockcore/jobs/copy/copy.h"
#include "tests/unit/check.h"
#include "tests/unit/memory_node.h"

#define SIZE (5 * MIB + 12 * KIB)

/* Runs of random length, many of them short: holes, zeroes written as data, and data. */
static void fill(struct blk_node *node, unsigned *seed)
{
    uint64_t size = blk_size(node);
    static uint8_t buf[600 * KIB];
    uint64_t kind = pick(seed, 3);

    for (uint64_t at = 0, bytes; at < size; at += bytes) {
        uint64_t longest = pick(seed, 2) ? sizeof(buf) : 40 * KIB;
        bytes = u64_min(512 * (1 + pick(seed, longest / 512)), size - at);
        kind = (kind + 1 + pick(seed, 2)) % 3;
        if (kind == 0)
            continue;
        memset(buf, 0, bytes);
        if (kind == 1)
            fill_random(seed, buf, bytes);
        blk_pwrite(node, at, bytes, buf, 0, NULL);
    }
}

static bool same_content(struct blk_node *a, struct blk_node *b, uint64_t bytes)
{
    uint8_t *from = blk_buffer_alloc(bytes), *to = blk_buffer_alloc(bytes);
    bool equal = blk_pread_padded(a, 0, bytes, from, NULL) == 0 &&
                 blk_pread_padded(b, 0, bytes, to, NULL) == 0 && !memcmp(from, to, bytes);
    free(from);
    free(to);
    return equal;
}

static uint64_t data_bytes(const struct blk_node *node)
{
    uint64_t sectors = 0;
    for (uint64_t i = 0; i < blk_size(node) / 512; i++)
        sectors += memory_of(node)->map[i] == MEMORY_DATA;
    return sectors * 512;
}

struct pair {
    struct memory_calls source_calls, target_calls;
    struct blk_node *source, *target;
    struct blk_copy_params params;
    unsigned seed;
};

static void make_pair(struct pair *pair, const struct blk_driver *target)
{
    *pair = (struct pair){ .seed = check_seed() };
    pair->source = memory_node(&memory_protocol, SIZE, 1, &pair->source_calls);
    pair->target = memory_node(target, SIZE, 1, &pair->target_calls);
    fill(pair->source, &pair->seed);
    for (int i = 0; i < MEMORY_CALLS; i++)
        pair->source_calls.count[i] = 0;
    pair->params = (struct blk_copy_params){
        .source = pair->source,
        .target = pair->target,
        .bytes = SIZE,
        .sparse_bytes = 4096,
        .workers = 4,
    };
}

static void drop_pair(struct pair *pair)
{
    blk_drop(pair->source);
    blk_drop(pair->target);
}

static void dirty_target(struct pair *pair)
{
    static uint8_t buf[SIZE];
    fill_random(&pair->seed, buf, SIZE);
    blk_pwrite(pair->target, 0, SIZE, buf, 0, NULL);
    pair->target_calls.count[MEMORY_WRITE] = 0;
}

/* Copies, and checks that the target is the source. */
static void check_copy(struct pair *pair)
{
    struct blk_error err = BLK_ERROR_INIT;
    if (!CHECK_INT(blk_copy_run(&pair->params, &err), 0))
        printf("# %s: %s\n", err.what, err.why);
    CHECK(same_content(pair->source, pair->target, SIZE));
}

TEST(sparse_into_zeroes)
{
    struct pair pair;
    make_pair(&pair, &memory_protocol);
    pair.params.target_reads_zero = true;
    check_copy(&pair);
    CHECK_INT(pair.target_calls.count[MEMORY_ZERO], 0);
    CHECK(data_bytes(pair.target) <= data_bytes(pair.source));
    drop_pair(&pair);
}

TEST(sparse_over_old_content)
{
    for (uint64_t step = 512; step <= 16 * MIB; step *= 8) {
        struct pair pair;
        make_pair(&pair, &memory_protocol);
        dirty_target(&pair);
        pair.params.sparse_bytes = step;
        check_copy(&pair);
        drop_pair(&pair);
    }
}

TEST(everything_as_data)
{
    struct pair pair;
    make_pair(&pair, &memory_protocol);
    pair.params.sparse_bytes = 0;
    pair.params.target_reads_zero = true;
    check_copy(&pair);
    CHECK_INT(data_bytes(pair.target), SIZE);
    drop_pair(&pair);
}

TEST(in_the_kernel_and_without)
{
    for (int refused = 0; refused < 2; refused++) {
        struct pair pair;
        make_pair(&pair, &memory_protocol);
        dirty_target(&pair);
        pair.params.allow_copy_range = true;
        pair.target_calls.no_copy = refused;
        check_copy(&pair);
        CHECK(pair.target_calls.count[MEMORY_COPY] > 0);
        /* Four refusals in a row are enough; the others may have begun by then. */
        CHECK(!refused || pair.target_calls.count[MEMORY_COPY] <= 4 + pair.params.workers);
        CHECK_INT(pair.source_calls.count[MEMORY_READ] > 2, refused); /* but for the comparison */
        drop_pair(&pair);
    }
}

TEST(compressed_clusters)
{
    struct pair pair;
    make_pair(&pair, &memory_format);
    pair.params.compressed = true;
    pair.params.target_reads_zero = true;
    check_copy(&pair);
    CHECK(pair.target_calls.count[MEMORY_COMPRESS] > 0);
    CHECK_INT(pair.target_calls.count[MEMORY_COMPRESS], pair.target_calls.count[MEMORY_WRITE]);
    drop_pair(&pair);

    struct blk_error err = BLK_ERROR_INIT;
    make_pair(&pair, &memory_protocol);
    pair.params.compressed = true;
    CHECK_INT(blk_copy_run(&pair.params, &err), -ENOTSUP);
    drop_pair(&pair);
}

/*
 * Source: top over middle over base. Only what lies above base comes over, and the rest stays as it
 * was.
 */
static void check_only_allocated(uint64_t base_bytes, bool through_filter)
{
    struct pair pair;
    struct blk_node *base = memory_node(&memory_format, base_bytes, 1, NULL);
    struct blk_node *middle = memory_node(&memory_format, SIZE - 64 * KIB, 1, NULL);
    struct blk_node *top = memory_node(&memory_format, SIZE, 1, NULL);
    struct blk_node *same_base = memory_node(&memory_format, base_bytes, 1, NULL);

    make_pair(&pair, &memory_format);
    fill(base, &pair.seed);
    fill(middle, &pair.seed);
    fill(top, &pair.seed);
    memcpy(memory_of(same_base)->data, memory_of(base)->data, base_bytes);
    for (uint64_t i = 0; i < base_bytes / 512; i++)
        memory_of(same_base)->map[i] = memory_of(base)->map[i];
    blk_node_attach(middle, BLK_ROLE_BACKING, through_filter ? memory_filter_over(base) : base);
    blk_node_attach(top, BLK_ROLE_BACKING, middle);
    blk_node_attach(pair.target, BLK_ROLE_BACKING, same_base);
    pair.params.source = top;
    pair.params.base = base;
    pair.params.only_allocated = true;

    CHECK_INT(blk_copy_run(&pair.params, NULL), 0);
    CHECK(same_content(top, pair.target, SIZE));
    for (uint64_t i = 0; i < base_bytes / 512; i++) {
        bool above = memory_of(top)->map[i] != MEMORY_HOLE || i >= blk_size(middle) / 512 ||
                     memory_of(middle)->map[i] != MEMORY_HOLE;
        if (memory_of(pair.target)->map[i] != MEMORY_HOLE && !above)
            CHECK_INT(i, -1);
    }
    blk_drop(top);
    drop_pair(&pair);
}

TEST(only_what_is_above_the_base)
{
    check_only_allocated(SIZE, false);
    check_only_allocated(3 * MIB, false);
    check_only_allocated(2 * MIB + 512, true);
}

TEST(at_offsets_and_past_the_sources_end)
{
    struct pair pair;
    make_pair(&pair, &memory_protocol);
    dirty_target(&pair);
    pair.params.source_offset = 1 * MIB + 512;
    pair.params.target_offset = 3584;
    pair.params.bytes = SIZE - 3584;
    REQUIRE(blk_copy_run(&pair.params, NULL) == 0);
    const uint8_t *from = memory_of(pair.source)->data, *to = memory_of(pair.target)->data;
    uint64_t there = SIZE - pair.params.source_offset;
    CHECK(!memcmp(to + 3584, from + pair.params.source_offset, there));
    CHECK(bytes_are_zero(to + 3584 + there, pair.params.bytes - there));
    CHECK(!bytes_are_zero(to, 3584));
    drop_pair(&pair);
}

/* ---- failures ---- */

/* Lets the n-th call of a kind fail, for every n. Returns how many there were. */
static unsigned check_failures_of(bool source, enum memory_call kind, bool kernel)
{
    unsigned nth = 0;
    for (bool reached = true; reached && nth < 5000;) {
        struct pair pair;
        struct blk_error err = BLK_ERROR_INIT;
        make_pair(&pair, &memory_protocol);
        pair.params.allow_copy_range = kernel;
        struct memory_calls *calls = source ? &pair.source_calls : &pair.target_calls;
        calls->fail_at[kind] = ++nth;
        int ret = blk_copy_run(&pair.params, &err);
        reached = calls->count[kind] >= nth;
        CHECK_INT(ret, reached ? -EIO : 0);
        CHECK_INT(err.code, reached ? EIO : 0);
        drop_pair(&pair);
    }
    return nth - 1;
}

TEST(every_failure_is_reported)
{
    unsigned tried = check_failures_of(true, MEMORY_READ, false) +
                     check_failures_of(true, MEMORY_STATUS, false) +
                     check_failures_of(false, MEMORY_WRITE, false) +
                     check_failures_of(false, MEMORY_ZERO, false) +
                     check_failures_of(false, MEMORY_COPY, true);
    printf("# faults tried: %u\n", tried);
    CHECK(tried > 20);
}

static unsigned salvaged_count;
static uint64_t salvaged_bytes;

static void count_salvaged(void *opaque, uint64_t offset, uint64_t bytes,
                           const struct blk_error *why)
{
    CHECK(opaque == &salvaged_count && offset % 512 == 0 && why->code == EIO);
    salvaged_count++;
    salvaged_bytes += bytes;
}

TEST(salvage_loses_only_what_cannot_be_read)
{
    struct pair pair;
    make_pair(&pair, &memory_protocol);
    dirty_target(&pair);
    memset(memory_of(pair.source)->data, 1, SIZE);
    for (uint64_t i = 0; i < SIZE / 512; i++)
        memory_of(pair.source)->map[i] = MEMORY_DATA;
    pair.params.workers = 1;
    pair.params.salvage = true;
    pair.params.opaque = &salvaged_count;
    pair.params.salvaged = count_salvaged;
    /*
     * The first chunk fails as a whole; the retries go sector by sector, and the failing one is the
     * first of them.
     */
    pair.source_calls.fail_at[MEMORY_READ] = 1;
    CHECK_INT(blk_copy_run(&pair.params, NULL), 0);
    CHECK_INT(salvaged_count, 0);
    CHECK(same_content(pair.source, pair.target, SIZE));
    drop_pair(&pair);
}

/* A medium with three sectors that cannot be read, two of which are neighbours. */
static int read_around_sectors(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                               struct blk_error *err)
{
    if (ranges_overlap(offset, bytes, 3 * 512, 1024) || ranges_overlap(offset, bytes, 9 * 512, 512))
        return -EIO;
    return memory_pread(node, offset, bytes, buf, err);
}

TEST(salvage_puts_zeroes_where_sectors_are_lost)
{
    struct blk_driver damaged = memory_protocol;
    struct pair pair;
    damaged.data.pread = read_around_sectors;
    make_pair(&pair, &memory_protocol);
    dirty_target(&pair);
    blk_drop(pair.source);
    pair.params.source = pair.source = memory_node(&damaged, SIZE, 1, NULL);
    memset(memory_of(pair.source)->data, 1, SIZE);
    for (uint64_t i = 0; i < SIZE / 512; i++)
        memory_of(pair.source)->map[i] = MEMORY_DATA;

    CHECK_INT(blk_copy_run(&pair.params, NULL), -EIO);
    pair.params.salvage = true;
    pair.params.opaque = &salvaged_count;
    pair.params.salvaged = count_salvaged;
    salvaged_count = 0;
    salvaged_bytes = 0;
    CHECK_INT(blk_copy_run(&pair.params, NULL), 0);
    CHECK_INT(salvaged_count, 2);
    CHECK(salvaged_bytes == 3 * 512);
    memset(memory_of(pair.source)->data + 3 * 512, 0, 1024);
    memset(memory_of(pair.source)->data + 9 * 512, 0, 512);
    CHECK(!memcmp(memory_of(pair.source)->data, memory_of(pair.target)->data, SIZE));
    drop_pair(&pair);
}

/* ---- rate ---- */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

TEST(the_rate_counts_what_is_moved)
{
    struct pair pair;
    make_pair(&pair, &memory_protocol);
    pair.params.bytes_per_second = 20 * MIB;
    pair.params.sparse_bytes = 0; /* all of it is moved */
    double start = seconds();
    check_copy(&pair);
    CHECK(seconds() - start >= 0.19); /* the third chunk may begin after 4 MiB */
    drop_pair(&pair);

    make_pair(&pair, &memory_protocol);
    blk_write_zeroes(pair.source, 0, SIZE, 0, NULL);
    pair.params.target_reads_zero = true;
    pair.params.bytes_per_second = 1;
    check_copy(&pair); /* holes cost nothing */
    drop_pair(&pair);
}

/* ---- cancel: the last test, as a signal holds for the rest of the run ---- */

static uint64_t last_done;

static void stop_half_way(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    CHECK(done > last_done && done <= total);
    last_done = done;
    if (done >= total / 2)
        raise(SIGTERM);
}

TEST(a_signal_stops_the_copy)
{
    struct pair pair;
    struct blk_error err = BLK_ERROR_INIT;
    make_pair(&pair, &memory_protocol);
    blk_cancel_init();
    pair.params.progress = stop_half_way;
    pair.params.workers = 1;
    CHECK_INT(blk_copy_run(&pair.params, &err), -ECANCELED);
    CHECK_INT(blk_cancelled(), SIGTERM);
    CHECK(last_done >= SIZE / 2 && last_done < SIZE);
    drop_pair(&pair);
}
