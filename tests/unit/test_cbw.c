/* SPDX-License-Identifier: MIT */
/*
 * Copy-before-write: the frozen view against a copy of the frozen moment, while guests write, saves
 * fail, or the target blocks. Source and target are a medium of this file, which can fail at random
 * and block; its bytes have a lock of their own, as a disk has.
 */
#include <pthread.h>
#include <time.h>

#include "blockcore/filters/cbw/cbw.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/status.h"
#include "tests/unit/check.h"
#include "tests/unit/memory_node.h"

#define CLUSTER 65536
#define CLUSTERS 300
#define SIZE ((uint64_t)CLUSTER * CLUSTERS - 4096)
#define SLOT 4096
#define GUESTS 4
#define WRITES 2500

/* ---- the medium ---- */

struct medium {
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    uint8_t *data;
    unsigned seed;
    unsigned fail_one_in; /* writes fail at random; 0: never */
    unsigned fail_reads_in;
    bool reads_block, writes_block;
    unsigned blocked; /* requests that wait now */
    unsigned reads, writes;
};

static struct medium *medium_of(struct blk_node *node)
{
    return node->state;
}

/* Waits while the switch is on; then decides whether to fail. The mutex is held. */
static int pass(struct medium *m, const bool *blocks, unsigned fail_one_in)
{
    m->blocked++;
    pthread_cond_broadcast(&m->changed);
    while (*blocks)
        pthread_cond_wait(&m->changed, &m->mutex);
    m->blocked--;
    return fail_one_in && pick(&m->seed, fail_one_in) == 0 ? -EIO : 0;
}

static int medium_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                        struct blk_error *err)
{
    struct medium *m = node->state;
    (void)err;
    pthread_mutex_lock(&m->mutex);
    m->reads++;
    int ret = pass(m, &m->reads_block, m->fail_reads_in);
    if (ret == 0)
        memcpy(buf, m->data + offset, bytes);
    pthread_mutex_unlock(&m->mutex);
    return ret;
}

static int medium_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                         unsigned flags, struct blk_error *err)
{
    struct medium *m = node->state;
    (void)flags;
    (void)err;
    pthread_mutex_lock(&m->mutex);
    m->writes++;
    int ret = pass(m, &m->writes_block, m->fail_one_in);
    /* A write that fails may have been done in part. */
    memcpy(m->data + offset, buf, ret < 0 ? bytes / 2 : bytes);
    pthread_mutex_unlock(&m->mutex);
    return ret;
}

static int medium_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc,
                           bool exact, struct blk_error *err)
{
    (void)prealloc;
    (void)exact;
    (void)err;
    blk_node_set_size(node, size);
    return 0;
}

static int medium_release(struct blk_node *node, struct blk_error *err)
{
    struct medium *m = node->state;
    (void)err;
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->mutex);
    free(m->data);
    return 0;
}

static const struct blk_driver medium_driver = {
    .name = "medium",
    .kind = BLK_PROTOCOL,
    .state_bytes = sizeof(struct medium),
    .release = medium_release,
    .data = {
        .pread = medium_pread,
        .pwrite = medium_pwrite,
        .truncate = medium_truncate,
    },
};

static struct blk_node *new_medium(const char *name, unsigned *seed, bool filled)
{
    struct blk_cache_mode writeback = { .direct = false };
    struct blk_node *node = blk_node_new(&medium_driver, name, BLK_WRITABLE | BLK_UNMAP, writeback);
    struct medium *m = medium_of(node);

    pthread_mutex_init(&m->mutex, NULL);
    pthread_cond_init(&m->changed, NULL);
    m->data = blk_xcalloc(SIZE, 1);
    m->seed = *seed + 1;
    for (uint64_t at = 0; filled && at < SIZE; at += 512)
        fill_random(seed, m->data + at, 4); /* enough to tell sectors apart */
    blk_node_set_size(node, SIZE);
    return node;
}

static void set_blocking(struct blk_node *node, bool reads, bool writes)
{
    struct medium *m = medium_of(node);
    pthread_mutex_lock(&m->mutex);
    m->reads_block = reads;
    m->writes_block = writes;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->mutex);
}

static void await_blocked(struct blk_node *node, unsigned count)
{
    struct medium *m = medium_of(node);
    pthread_mutex_lock(&m->mutex);
    while (m->blocked < count)
        pthread_cond_wait(&m->changed, &m->mutex);
    pthread_mutex_unlock(&m->mutex);
}

/* ---- a graph ---- */

struct scene {
    unsigned seed;
    struct blk_node *source, *target, *filter, *view;
    struct blk_cbw *cbw;
    uint8_t *frozen; /* the content at the frozen moment */
    uint8_t *guest;  /* what the guest has written successfully */
};

/* The frozen moment as a node of its own. */
static int open_view(struct blk_node *filter, struct blk_node **view, struct blk_error *err)
{
    blk_node_ref(filter);
    const struct blk_open_over over = {
        .driver = blk_driver_find("snapshot-access"),
        .file = filter,
        .cache = filter->cache,
    };
    return blk_open_over(&over, view, err);
}

static bool begin(struct scene *s, const struct blk_cbw_params *params)
{
    *s = (struct scene){ .seed = check_seed() };
    s->source = new_medium("source", &s->seed, true);
    s->target = new_medium("target", &s->seed, false);
    s->frozen = blk_xcalloc(SIZE, 1);
    s->guest = blk_xcalloc(SIZE, 1);
    memcpy(s->frozen, medium_of(s->source)->data, SIZE);
    memcpy(s->guest, s->frozen, SIZE);
    struct blk_error err = BLK_ERROR_INIT;
    if (!CHECK_INT(blk_cbw_insert(s->source, s->target, params, &s->filter, &err), 0) ||
        !CHECK_INT(open_view(s->filter, &s->view, &err), 0)) {
        printf("# %s: %s\n", err.what, err.why);
        return false;
    }
    s->cbw = blk_cbw_of(s->filter);
    return true;
}

static void end(struct scene *s)
{
    CHECK(memcmp(medium_of(s->source)->data, s->guest, SIZE) == 0);
    CHECK_INT(blk_close(s->view, NULL, NULL), 0);
    CHECK_INT(blk_close(s->filter, NULL, NULL), 0);
    CHECK_INT(blk_close(s->target, NULL, NULL), 0);
    free(s->frozen);
    free(s->guest);
}

static bool view_is_frozen(struct scene *s)
{
    uint8_t *got = blk_buffer_alloc(SIZE);
    bool same = blk_pread(s->view, 0, SIZE, got, NULL) == 0 && !memcmp(got, s->frozen, SIZE);
    free(got);
    return same;
}

/* A guest's write of one byte value; the model follows when it succeeds. */
static int guest_write(struct scene *s, uint64_t offset, uint64_t bytes, uint8_t value,
                       struct blk_error *err)
{
    uint8_t *buf = blk_buffer_alloc(bytes);
    memset(buf, value, bytes);
    int ret = blk_pwrite(s->filter, offset, bytes, buf, 0, err);
    if (ret == 0)
        memcpy(s->guest + offset, buf, bytes);
    free(buf);
    return ret;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- many guests ---- */

struct crowd {
    struct scene *s;
    atomic_uint guests_left, written, refused;
    atomic_uint views, views_failed, views_wrong;
    atomic_uint views_risen; /* well again after a failure */
    atomic_bool view_failed;
};

struct worker {
    struct crowd *crowd;
    unsigned number, seed;
    pthread_t thread;
};

/* Writes, zeroes or discards within the slots whose number modulo GUESTS is its own. */
static void *be_guest(void *argument)
{
    struct worker *w = argument;
    struct scene *s = w->crowd->s;
    uint8_t buf[SLOT];

    for (unsigned i = 0; i < WRITES; i++) {
        uint64_t slot = pick(&w->seed, SIZE / SLOT / GUESTS) * GUESTS + w->number;
        uint64_t offset = slot * SLOT + pick(&w->seed, SLOT / 2);
        uint64_t bytes = 1 + pick(&w->seed, SLOT / 2);
        bool zero = pick(&w->seed, 4) == 0;
        int ret;
        if (zero) {
            memset(buf, 0, bytes);
            ret = blk_write_zeroes(s->filter, offset, bytes, BLK_REQ_MAY_UNMAP, NULL);
        } else {
            fill_random(&w->seed, buf, bytes);
            ret = blk_pwrite(s->filter, offset, bytes, buf, 0, NULL);
        }
        if (ret == 0)
            memcpy(s->guest + offset, buf, bytes);
        atomic_fetch_add(ret == 0 ? &w->crowd->written : &w->crowd->refused, 1);
    }
    atomic_fetch_sub(&w->crowd->guests_left, 1);
    return NULL;
}

static void *be_reader(void *argument)
{
    struct worker *w = argument;
    struct crowd *c = w->crowd;
    uint8_t *buf = malloc(SIZE);

    while (atomic_load(&c->guests_left)) {
        uint64_t offset = pick(&w->seed, SIZE);
        uint64_t bytes = 1 + pick(&w->seed, u64_min(SIZE - offset, 5 * CLUSTER));
        bool failed_before = atomic_load(&c->view_failed);
        atomic_fetch_add(&c->views, 1);
        if (blk_pread(c->s->view, offset, bytes, buf, NULL) < 0) {
            atomic_store(&c->view_failed, true);
            atomic_fetch_add(&c->views_failed, 1);
            continue;
        }
        if (memcmp(buf, c->s->frozen + offset, bytes) != 0)
            atomic_fetch_add(&c->views_wrong, 1);
        if (failed_before)
            atomic_fetch_add(&c->views_risen, 1);
    }
    free(buf);
    return NULL;
}

/* A backup job. Its failures are its own. */
static void *be_job(void *argument)
{
    struct worker *w = argument;
    struct crowd *c = w->crowd;
    while (atomic_load(&c->guests_left)) {
        uint64_t offset = pick(&w->seed, SIZE);
        if (pick(&w->seed, 8) == 0)
            blk_cbw_save(c->s->cbw, offset, 2 * CLUSTER, NULL);
    }
    return NULL;
}

static void run_crowd(struct scene *s, struct crowd *crowd, bool job)
{
    struct worker workers[GUESTS + 3];
    unsigned count = GUESTS + 2 + job;

    *crowd = (struct crowd){ .s = s, .guests_left = GUESTS };
    for (unsigned i = 0; i < count; i++) {
        workers[i] = (struct worker){ .crowd = crowd, .number = i, .seed = s->seed + i };
        void *(*role)(void *) = i < GUESTS ? be_guest : i < GUESTS + 2 ? be_reader : be_job;
        pthread_create(&workers[i].thread, NULL, role, &workers[i]);
    }
    for (unsigned i = 0; i < count; i++)
        pthread_join(workers[i].thread, NULL);
    printf("# %u written, %u refused; %u views, %u failed\n", crowd->written, crowd->refused,
           crowd->views, crowd->views_failed);
}

static void check_guests_break(uint64_t timeout_ms, bool job)
{
    const struct blk_cbw_params params = { .timeout_ms = timeout_ms };
    struct scene s;
    struct crowd crowd;

    REQUIRE(begin(&s, &params));
    medium_of(s.target)->fail_one_in = 2;
    run_crowd(&s, &crowd, job);
    CHECK_INT(crowd.written + crowd.refused, GUESTS * WRITES);
    CHECK(crowd.refused > 0);
    CHECK_INT(crowd.views_failed, 0);
    CHECK_INT(crowd.views_wrong, 0);
    CHECK_INT(blk_cbw_check(s.cbw, NULL), 0);
    CHECK(view_is_frozen(&s));
    end(&s);
}

TEST(guests_are_refused_and_the_view_holds)
{
    check_guests_break(0, false);
    check_guests_break(0, true);
}

TEST(the_same_with_a_time_limit)
{
    check_guests_break(20000, false);
    check_guests_break(20000, true);
}

/* In this mode no guest is the one who suffers; the view is right, or fails for good. */
static void check_snapshot_breaks(uint64_t timeout_ms, unsigned fail_one_in)
{
    const struct blk_cbw_params params = {
        .on_error = BLK_CBW_BREAK_SNAPSHOT,
        .timeout_ms = timeout_ms,
    };
    struct scene s;
    struct crowd crowd;

    REQUIRE(begin(&s, &params));
    medium_of(s.target)->fail_one_in = fail_one_in;
    run_crowd(&s, &crowd, true);
    CHECK_INT(crowd.refused, 0);
    CHECK_INT(crowd.views_wrong, 0);
    CHECK_INT(crowd.views_risen, 0);
    if (blk_cbw_check(s.cbw, NULL) == 0) {
        CHECK_INT(crowd.views_failed, 0);
        CHECK(view_is_frozen(&s));
    } else {
        struct blk_error err = BLK_ERROR_INIT;
        uint8_t byte;
        CHECK_INT(blk_pread(s.view, 0, 1, &byte, &err), -EIO);
        CHECK(strstr(err.why, "the snapshot is broken"));
        CHECK_INT(blk_cbw_save(s.cbw, 0, CLUSTER, NULL), -EIO);
    }
    end(&s);
}

TEST(the_snapshot_breaks_and_guests_go_on)
{
    for (int i = 0; i < 2; i++) {
        check_snapshot_breaks(i % 2 ? 20000 : 0, 2);
        check_snapshot_breaks(i % 2 ? 20000 : 0, 150);
        check_snapshot_breaks(i % 2 ? 20000 : 0, 0);
    }
}

TEST(old_data_that_cannot_be_read)
{
    struct blk_cbw_params params = { .on_error = BLK_CBW_BREAK_GUEST_WRITE };
    struct blk_error err = BLK_ERROR_INIT;
    struct scene s;

    REQUIRE(begin(&s, &params));
    medium_of(s.source)->fail_reads_in = 1;
    CHECK_INT(guest_write(&s, 5000, 10, 1, &err), -EIO);
    CHECK(strstr(err.what, "saving the old data of 'source'"));
    medium_of(s.source)->fail_reads_in = 0;
    CHECK(view_is_frozen(&s));
    CHECK_INT(guest_write(&s, 5000, 10, 1, &err), 0);
    CHECK(view_is_frozen(&s));
    end(&s);

    params.on_error = BLK_CBW_BREAK_SNAPSHOT;
    REQUIRE(begin(&s, &params));
    medium_of(s.source)->fail_reads_in = 1;
    CHECK_INT(guest_write(&s, 5000, 10, 1, &err), 0);
    CHECK_INT(blk_cbw_check(s.cbw, NULL), -EIO);
    end(&s);
}

/* ---- a target that blocks ---- */

TEST(a_blocked_target_refuses_guests_in_time)
{
    const struct blk_cbw_params params = { .timeout_ms = 100 };
    struct blk_error err = BLK_ERROR_INIT;
    struct scene s;

    REQUIRE(begin(&s, &params));
    set_blocking(s.target, false, true);
    double start = now();
    CHECK_INT(guest_write(&s, 0, SLOT, 1, &err), -ETIMEDOUT);
    CHECK(strstr(err.why, "cbw-timeout"));
    CHECK(now() - start >= 0.1 && now() - start < 30);
    /*
     * The same cluster waits behind the save that was given up; another one has a helper of its
     * own.
     */
    CHECK_INT(guest_write(&s, SLOT, SLOT, 2, NULL), -ETIMEDOUT);
    CHECK_INT(guest_write(&s, 3 * CLUSTER, SLOT, 3, NULL), -ETIMEDOUT);
    CHECK(view_is_frozen(&s));

    /* The late saves end well, and do not count: a job that has waited for them saves again. */
    set_blocking(s.target, false, false);
    CHECK_INT(blk_cbw_save(s.cbw, 0, 1, NULL), 0);
    CHECK_INT(blk_cbw_save(s.cbw, 3 * CLUSTER, 1, NULL), 0);
    CHECK_INT(medium_of(s.target)->writes, 4);
    CHECK_INT(blk_cbw_pending_bytes(s.cbw), SIZE - 2 * CLUSTER);

    CHECK_INT(guest_write(&s, CLUSTER, SLOT, 1, NULL), 0);
    CHECK_INT(blk_cbw_pending_bytes(s.cbw), SIZE - 3 * CLUSTER);
    CHECK(view_is_frozen(&s));
    end(&s);
}

TEST(a_blocked_target_breaks_the_snapshot_in_time)
{
    const struct blk_cbw_params params = {
        .on_error = BLK_CBW_BREAK_SNAPSHOT,
        .timeout_ms = 100,
    };
    struct blk_error err = BLK_ERROR_INIT;
    struct scene s;
    uint8_t byte;

    REQUIRE(begin(&s, &params));
    set_blocking(s.target, false, true);
    CHECK_INT(guest_write(&s, 0, SLOT, 1, NULL), 0);
    double start = now();
    for (uint64_t i = 0; i < 100; i++)
        CHECK_INT(guest_write(&s, i * CLUSTER, SLOT, 2, NULL), 0);
    CHECK(now() - start < 30); /* without waiting any more */
    CHECK_INT(blk_pread(s.view, SIZE - 1, 1, &byte, &err), -ETIMEDOUT);
    CHECK(strstr(err.why, "the snapshot is broken"));
    set_blocking(s.target, false, false);
    CHECK_INT(blk_pread(s.view, 0, 1, &byte, NULL), -ETIMEDOUT);
    end(&s);
    /* The helper was waited for: nothing of it is left. */
}

/* ---- reads in flight ---- */

struct request {
    struct scene *s;
    pthread_t thread;
    uint64_t offset; /* of a save */
    uint8_t buf[2 * SLOT];
    int ret;
    atomic_bool done;
};

static void *read_view(void *argument)
{
    struct request *r = argument;
    r->ret = blk_pread(r->s->view, 0, sizeof(r->buf), r->buf, NULL);
    atomic_store(&r->done, true);
    return NULL;
}

static void *write_guest(void *argument)
{
    struct request *r = argument;
    r->ret = guest_write(r->s, SLOT, SLOT, 0x77, NULL);
    atomic_store(&r->done, true);
    return NULL;
}

TEST(a_write_waits_for_reads_in_flight)
{
    const struct blk_cbw_params params = {
        .on_error = BLK_CBW_BREAK_SNAPSHOT,
        .timeout_ms = 50,
    };
    struct scene s;
    REQUIRE(begin(&s, &params));
    struct request reader = { .s = &s }, guest = { .s = &s };

    set_blocking(s.source, true, false);
    pthread_create(&reader.thread, NULL, read_view, &reader);
    await_blocked(s.source, 1);
    pthread_create(&guest.thread, NULL, write_guest, &guest);
    while (blk_cbw_check(s.cbw, NULL) == 0)
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
    CHECK(!atomic_load(&guest.done)); /* broken, but the reader is still there */

    set_blocking(s.source, false, false);
    pthread_join(reader.thread, NULL);
    pthread_join(guest.thread, NULL);
    CHECK_INT(reader.ret, 0);
    CHECK(memcmp(reader.buf, s.frozen, sizeof(reader.buf)) == 0);
    CHECK_INT(guest.ret, 0);
    end(&s);
}

static void *save_for_job(void *argument)
{
    struct request *r = argument;
    r->ret = blk_cbw_save(r->s->cbw, r->offset, 1, NULL);
    return NULL;
}

/* What a job copied while the snapshot broke may be newer than the frozen moment. */
TEST(a_save_of_a_job_does_not_outlive_the_snapshot)
{
    const struct blk_cbw_params params = {
        .on_error = BLK_CBW_BREAK_SNAPSHOT,
        .timeout_ms = 50,
    };
    struct scene s;
    REQUIRE(begin(&s, &params));
    struct request job = { .s = &s };

    set_blocking(s.target, false, true);
    pthread_create(&job.thread, NULL, save_for_job, &job);
    await_blocked(s.target, 1);
    CHECK_INT(guest_write(&s, 0, SLOT, 1, NULL), 0);
    set_blocking(s.target, false, false);
    pthread_join(job.thread, NULL);
    CHECK_INT(job.ret, -ETIMEDOUT);
    CHECK_INT(blk_cbw_pending_bytes(s.cbw), SIZE);
    end(&s);
}

TEST(a_slow_reader_of_the_target_keeps_no_guest)
{
    const struct blk_cbw_params params = { .timeout_ms = 20000 };
    struct scene s;
    REQUIRE(begin(&s, &params));
    struct request reader = { .s = &s };

    CHECK_INT(guest_write(&s, 0, SLOT, 1, NULL), 0);
    set_blocking(s.target, true, false);
    pthread_create(&reader.thread, NULL, read_view, &reader);
    await_blocked(s.target, 1);
    CHECK_INT(guest_write(&s, SLOT, SLOT, 2, NULL), 0);
    set_blocking(s.target, false, false);
    pthread_join(reader.thread, NULL);
    CHECK_INT(reader.ret, 0);
    CHECK(memcmp(reader.buf, s.frozen, sizeof(reader.buf)) == 0);
    end(&s);
}

/* ---- sharing the record ---- */

TEST(what_a_job_has_copied_is_not_saved_again)
{
    const struct blk_cbw_params params = { .timeout_ms = 50 };
    const uint64_t tail = (uint64_t)(CLUSTERS - 1) * CLUSTER;
    struct scene s;

    REQUIRE(begin(&s, &params));
    struct request job = { .s = &s, .offset = SIZE - 1 };
    CHECK_INT(blk_cbw_save(s.cbw, CLUSTER + 1, 1, NULL), 0);
    CHECK_INT(medium_of(s.target)->writes, 1);
    CHECK_INT(guest_write(&s, CLUSTER, CLUSTER, 1, NULL), 0);
    CHECK_INT(medium_of(s.target)->writes, 1);

    /* While a job copies the last cluster, a guest waits for it in vain. */
    set_blocking(s.target, false, true);
    pthread_create(&job.thread, NULL, save_for_job, &job);
    await_blocked(s.target, 1);
    CHECK_INT(guest_write(&s, tail, 512, 9, NULL), -ETIMEDOUT);
    set_blocking(s.target, false, false);
    pthread_join(job.thread, NULL);
    CHECK_INT(job.ret, 0);
    CHECK_INT(blk_cbw_pending_bytes(s.cbw), tail - CLUSTER);
    CHECK_INT(guest_write(&s, tail, 512, 9, NULL), 0);
    CHECK_INT(medium_of(s.target)->writes, 2);
    CHECK(view_is_frozen(&s));
    end(&s);
}

TEST(only_what_the_mask_marks_is_saved)
{
    struct blk_dirty_bitmap *mask;
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_extent extent;
    struct scene s;
    uint8_t buf[2 * SLOT];

    REQUIRE(blk_dirty_bitmap_new("mask", SIZE, 12, &mask, NULL) == 0);
    blk_dirty_bitmap_set(mask, 2 * CLUSTER + 5000, 1);
    blk_dirty_bitmap_set(mask, SIZE - 1, 1);
    const struct blk_cbw_params params = { .mask = mask };
    REQUIRE(begin(&s, &params));
    blk_dirty_bitmap_free(mask);

    CHECK_INT(blk_cbw_pending_bytes(s.cbw), CLUSTER + CLUSTER - 4096);
    medium_of(s.target)->fail_one_in = 1;
    CHECK_INT(guest_write(&s, 0, 2 * CLUSTER, 1, NULL), 0);
    CHECK_INT(guest_write(&s, CLUSTER, 2 * CLUSTER, 1, NULL), -EIO);
    medium_of(s.target)->fail_one_in = 0;
    CHECK_INT(guest_write(&s, CLUSTER, 2 * CLUSTER, 1, NULL), 0);
    CHECK_INT(medium_of(s.target)->writes, 2);

    CHECK_INT(blk_pread(s.view, 2 * CLUSTER, sizeof(buf), buf, NULL), 0);
    CHECK(memcmp(buf, s.frozen + 2 * CLUSTER, sizeof(buf)) == 0);
    CHECK_INT(blk_cbw_pending_bytes(s.cbw), CLUSTER - 4096);
    CHECK_INT(blk_pread(s.view, 2 * CLUSTER - 1, 2, buf, &err), -EACCES);
    CHECK_INT(blk_pread(s.view, 3 * CLUSTER - 1, 2, buf, &err), -EACCES);
    CHECK_INT(blk_block_status(s.view, 0, SIZE, 0, &extent, &err), -EACCES);
    CHECK_INT(blk_block_status(s.view, 2 * CLUSTER, SIZE - 2 * CLUSTER, 0, &extent, &err), 0);
    CHECK_INT(extent.bytes, CLUSTER);
    end(&s);
}

/* ---- shape ---- */

TEST(cutting_off_and_growing)
{
    const struct blk_cbw_params params = { .timeout_ms = 0 };
    struct scene s;

    REQUIRE(begin(&s, &params));
    CHECK_INT(blk_truncate(s.filter, 5 * CLUSTER + 512, BLK_PREALLOC_OFF, true, NULL), 0);
    CHECK_INT(blk_size(s.filter), 5 * CLUSTER + 512);
    CHECK_INT(blk_size(s.view), SIZE);
    memset(medium_of(s.source)->data + 5 * CLUSTER + 512, 0, SIZE - 5 * CLUSTER - 512);
    memset(s.guest + 5 * CLUSTER + 512, 0, SIZE - 5 * CLUSTER - 512);
    CHECK(view_is_frozen(&s));
    CHECK_INT(blk_truncate(s.filter, SIZE, BLK_PREALLOC_OFF, true, NULL), 0);
    CHECK_INT(guest_write(&s, SIZE - 100, 100, 3, NULL), 0);
    CHECK(view_is_frozen(&s));
    CHECK(blk_cbw_pending_bytes(s.cbw) == 5 * CLUSTER);

    medium_of(s.target)->fail_one_in = 1;
    CHECK_INT(blk_truncate(s.filter, 512, BLK_PREALLOC_OFF, true, NULL), -EIO);
    CHECK_INT(blk_size(s.filter), SIZE);
    end(&s);
}

TEST(the_view_cannot_be_written)
{
    const struct blk_cbw_params params = { .timeout_ms = 0 };
    struct scene s;

    REQUIRE(begin(&s, &params));
    CHECK_INT(blk_pwrite(s.view, 0, 1, "x", 0, NULL), -EACCES);
    end(&s);
}

TEST(a_target_that_is_too_small)
{
    const struct blk_cbw_params params = { .timeout_ms = 0 };
    unsigned seed = 1;
    struct blk_node *source = new_medium("source", &seed, false), *filter = NULL;
    struct blk_node *target = new_medium("target", &seed, false);

    blk_node_set_size(target, SIZE - 1);
    CHECK_INT(blk_cbw_insert(source, target, &params, &filter, NULL), -EINVAL);
    CHECK(!filter);
    CHECK_INT(blk_close(source, NULL, NULL), 0);
    CHECK_INT(blk_close(target, NULL, NULL), 0);
}

/* The state of the past: from the source, or from the target where it was saved. */
TEST(block_status_of_the_view)
{
    const struct blk_cbw_params params = { .timeout_ms = 0 };
    struct blk_node *source = memory_node(&memory_format, SIZE, 512, NULL), *filter, *view;
    struct blk_node *target = memory_node(&memory_protocol, SIZE, 512, NULL);
    struct blk_extent extent;
    uint8_t buf[512] = { 1 };

    blk_node_attach(source, BLK_ROLE_BACKING, memory_node(&memory_protocol, SIZE, 512, NULL));
    CHECK_INT(blk_pwrite(blk_child(source, BLK_ROLE_BACKING), 0, 512, buf, 0, NULL), 0);
    CHECK_INT(blk_pwrite(source, CLUSTER, 512, buf, 0, NULL), 0);
    REQUIRE(blk_cbw_insert(source, target, &params, &filter, NULL) == 0);
    REQUIRE(open_view(filter, &view, NULL) == 0);

    for (int written = 0; written < 2; written++) {
        unsigned own = written ? BLK_EXT_ALLOCATED : 0;
        CHECK_INT(blk_block_status(view, 0, SIZE, BLK_WANT_ZERO, &extent, NULL), 0);
        CHECK_INT(extent.flags, BLK_EXT_DATA | own);
        CHECK_INT(blk_block_status(view, CLUSTER, SIZE - CLUSTER, BLK_WANT_ZERO, &extent, NULL), 0);
        CHECK_INT(extent.flags, BLK_EXT_DATA | BLK_EXT_ALLOCATED);
        CHECK_INT(blk_block_status(view, 3 * CLUSTER, CLUSTER, BLK_WANT_ZERO, &extent, NULL), 0);
        CHECK_INT(extent.flags, BLK_EXT_ZERO | own);
        CHECK_INT(extent.bytes, CLUSTER);
        buf[0] = 2;
        for (uint64_t at = 0; at < 4 * CLUSTER; at += 512)
            CHECK_INT(blk_pwrite(filter, at, 512, buf, 0, NULL), 0);
    }
    CHECK_INT(blk_pread(view, CLUSTER, 512, buf, NULL), 0);
    CHECK_INT(buf[0], 1);
    CHECK_INT(blk_close(view, NULL, NULL), 0);
    CHECK_INT(blk_close(filter, NULL, NULL), 0);
    CHECK_INT(blk_close(target, NULL, NULL), 0);
}
