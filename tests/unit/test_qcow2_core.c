/* SPDX-License-Identifier: MIT */
/*
 * The core of the qcow2 driver under several threads at once: each thread writes, zeroes and
 * reads its own stripes, which share clusters with those of the others, while one flushes. Then
 * the content must be what the threads' models say, here and after a new open, and qemu-img must
 * find nothing wrong.
 */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "blockcore/base/bytes.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "tests/unit/check.h"

#define IMAGE "threads.qcow2"
#define THREADS 4
#define STRIPE 1536
#define STRIPES 400 /* a thread */
#define ROUNDS 600
#define SIZE ((uint64_t)STRIPE * STRIPES * THREADS)

static struct blk_node *node;
static uint8_t model[SIZE];
static atomic_int failures;
static const char *message = "";

static bool make_image(const char *options)
{
    char command[512];
    snprintf(command, sizeof(command), "qemu-img create -q -f qcow2 -o %s " IMAGE " %llu", options,
             (unsigned long long)SIZE);
    return system(command) == 0;
}

static bool open_image(const char *more)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_options *options = blk_options_new();
    blk_options_parse_keyval(
        options, "driver=qcow2,discard=unmap,file.driver=file,file.filename=" IMAGE, NULL, NULL);
    blk_options_parse_keyval(options, more, NULL, NULL);
    struct blk_open how = { .options = options, .flags = BLK_WRITABLE | BLK_UNMAP };
    int ret = blk_open(&how, &node, &err);
    if (ret < 0)
        printf("# %s: %s\n", err.what, err.why);
    blk_options_free(options);
    return ret == 0;
}

static void note_failure(const char *what)
{
    message = what;
    atomic_fetch_add(&failures, 1);
}

/* One request on one stripe of the thread; its part of the model is the thread's alone. */
static void request(unsigned thread, unsigned *seed)
{
    unsigned stripe = (unsigned)rand_r(seed) % STRIPES;
    uint64_t offset = ((uint64_t)stripe * THREADS + thread) * STRIPE;
    uint8_t buf[STRIPE];
    int ret;

    switch (rand_r(seed) % 6) {
    case 0:
        ret =
            blk_write_zeroes(node, offset, STRIPE, rand_r(seed) % 2 ? BLK_REQ_MAY_UNMAP : 0, NULL);
        memset(model + offset, 0, STRIPE);
        break;
    case 1:
    case 2:
        ret = blk_pread(node, offset, STRIPE, buf, NULL);
        if (ret == 0 && memcmp(buf, model + offset, STRIPE) != 0)
            note_failure("a stripe does not read as it was written");
        break;
    case 3:
        if (thread == 0 && rand_r(seed) % 4 == 0) {
            ret = blk_flush(node, NULL);
            break;
        }
        __attribute__((fallthrough));
    default:
        memset(buf, rand_r(seed), STRIPE);
        ret = blk_pwrite(node, offset, STRIPE, buf, 0, NULL);
        memcpy(model + offset, buf, STRIPE);
    }
    if (ret < 0)
        note_failure("a request failed");
}

static void *work(void *argument)
{
    unsigned thread = (unsigned)(uintptr_t)argument, seed = thread * 7919 + 1;
    for (int round = 0; round < ROUNDS; round++)
        request(thread, &seed);
    return NULL;
}

static void check_content(void)
{
    uint8_t *buf = malloc(SIZE);
    CHECK(blk_pread(node, 0, SIZE, buf, NULL) == 0);
    CHECK(memcmp(buf, model, SIZE) == 0);
    free(buf);
}

static void run_threads(const char *create_options, const char *open_options)
{
    pthread_t threads[THREADS];

    memset(model, 0, SIZE);
    REQUIRE(make_image(create_options));
    REQUIRE(open_image(open_options));
    for (uintptr_t i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    if (!CHECK_INT(atomic_exchange(&failures, 0), 0))
        printf("# %s\n", message);
    check_content();
    CHECK_INT(blk_close(node, NULL, NULL), 0);

    REQUIRE(open_image(open_options));
    check_content();
    CHECK_INT(blk_close(node, NULL, NULL), 0);
    CHECK_INT(system("qemu-img check -q -f qcow2 " IMAGE), 0);
    unlink(IMAGE);
}

#define TINY_CACHES "l2-cache-entry-size=512,l2-cache-size=4k,refcount-cache-size=512"

TEST(threads_share_clusters)
{
    run_threads("cluster_size=64k", "");
}

TEST(threads_share_small_clusters_and_caches)
{
    run_threads("cluster_size=512", TINY_CACHES);
}

TEST(threads_share_subclusters)
{
    run_threads("cluster_size=32k,extended_l2=on", TINY_CACHES);
}

TEST(threads_share_clusters_of_a_data_file)
{
    run_threads("cluster_size=4k,data_file=threads.data", TINY_CACHES);
    unlink("threads.data");
}
