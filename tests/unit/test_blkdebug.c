/* SPDX-License-Identifier: MIT */
/*
 * The rules and breakpoints of blkdebug by themselves, and the driver under requests from several
 * threads.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "blockcore/graph/close.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "drivers/blkdebug/break.h"
#include "drivers/blkdebug/rules.h"
#include "tests/unit/check.h"

/* Rules from options in the form of --image-opts. */
static int parse(struct blkdebug_rules *rules, const char *text, struct blk_error *err)
{
    struct blk_options *options = blk_options_new();

    *rules = (struct blkdebug_rules){ .state = 1 };
    int ret = blk_options_parse_keyval(options, text, NULL, err);
    if (ret == 0)
        ret = blkdebug_rules_take_options(rules, options, err);
    if (ret == 0)
        CHECK_INT(blk_options_count(options), 0);
    blk_options_free(options);
    return ret;
}

/* What becomes of `count` requests, as "1" for a failed and "0" for a good one. */
static const char *outcomes(struct blkdebug_rules *rules, enum blkdebug_iotype iotype,
                            uint64_t offset, uint64_t bytes, int count)
{
    static char text[64];
    for (int i = 0; i < count; i++)
        text[i] = blkdebug_rules_check(rules, iotype, offset, bytes) < 0 ? '1' : '0';
    text[count] = '\0';
    return text;
}

TEST(rule_without_event_matches_qemus_types_only)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules, "inject-error.0.errno=28", NULL) == 0);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_WRITE, 0, 512), -ENOSPC);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_DISCARD, 0, 512), -ENOSPC);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_FLUSH, 0, 0), -ENOSPC);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_BLOCK_STATUS, 0, 512), 0);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_TRUNCATE, 0, 0), 0);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_CREATE, 0, 0), 0);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_PUBLISH, 0, 0), 0);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_CLOSE, 0, 0), 0);
    CHECK_INT(rules.list[0].matched, 3);
    CHECK_INT(rules.list[0].injected, 3);
    blkdebug_rules_free(&rules);
}

TEST(one_rule_needs_no_index)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules, "inject-error.iotype=close", NULL) == 0);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_CLOSE, 0, 0), -EIO);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_WRITE, 0, 1), 0);
    blkdebug_rules_free(&rules);
}

TEST(once_fails_the_first_request_only)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules, "inject-error.0.once=on,inject-error.0.iotype=read", NULL) == 0);
    CHECK_STR(outcomes(&rules, BLKDEBUG_WRITE, 0, 512, 2), "00");
    CHECK_STR(outcomes(&rules, BLKDEBUG_READ, 0, 512, 4), "1000");
    blkdebug_rules_free(&rules);
}

TEST(nth_fails_that_request_only)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules, "inject-error.0.nth=3,inject-error.0.iotype=write", NULL) == 0);
    CHECK_STR(outcomes(&rules, BLKDEBUG_READ, 0, 512, 3), "000");
    CHECK_STR(outcomes(&rules, BLKDEBUG_WRITE, 0, 512, 6), "001000");
    CHECK_INT(rules.list[0].injected, 1);
    blkdebug_rules_free(&rules);
}

TEST(nth_without_once_fails_all_from_there_on)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules, "inject-error.0.nth=3,inject-error.0.once=off", NULL) == 0);
    CHECK_STR(outcomes(&rules, BLKDEBUG_WRITE, 0, 512, 6), "001111");
    blkdebug_rules_free(&rules);
}

TEST(requests_before_the_nth_are_counted)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules, "inject-error.0.nth=9,inject-error.0.iotype=write", NULL) == 0);
    CHECK_STR(outcomes(&rules, BLKDEBUG_WRITE, 0, 512, 5), "00000");
    CHECK_INT(rules.list[0].matched, 5);
    CHECK_INT(rules.list[0].injected, 0);
    blkdebug_rules_free(&rules);
}

TEST(sector_meets_the_requests_that_hold_its_first_byte)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules, "inject-error.0.sector=2", NULL) == 0);
    CHECK_STR(outcomes(&rules, BLKDEBUG_READ, 0, 1024, 1), "0");
    CHECK_STR(outcomes(&rules, BLKDEBUG_READ, 0, 1025, 1), "1");
    CHECK_STR(outcomes(&rules, BLKDEBUG_READ, 1024, 1, 1), "1");
    CHECK_STR(outcomes(&rules, BLKDEBUG_READ, 1025, 511, 1), "0");
    CHECK_STR(outcomes(&rules, BLKDEBUG_FLUSH, 0, 0, 1), "0");
    blkdebug_rules_free(&rules);
}

TEST(event_activates_until_another_one_replaces_it)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules,
                  "inject-error.0.event=l2_load,inject-error.0.errno=1,"
                  "inject-error.1.event=l2_update,inject-error.1.errno=2,"
                  "inject-error.2.event=none,inject-error.2.iotype=discard,inject-error.2.errno=3",
                  NULL) == 0);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_READ, 0, 1), 0);
    blkdebug_rules_event(&rules, BLK_EVENT_L2_LOAD);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_READ, 0, 1), -1);
    blkdebug_rules_event(&rules, BLK_EVENT_CLUSTER_FREE);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_READ, 0, 1), -1);
    blkdebug_rules_event(&rules, BLK_EVENT_L2_UPDATE);
    CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_READ, 0, 1), -2);
    blkdebug_rules_free(&rules);
}

TEST(rule_without_event_stays_active_beside_events)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules,
                  "inject-error.0.iotype=flush,inject-error.1.event=pwritev,"
                  "inject-error.1.iotype=write",
                  NULL) == 0);
    blkdebug_rules_event(&rules, BLK_EVENT_PWRITEV);
    CHECK_STR(outcomes(&rules, BLKDEBUG_WRITE, 0, 1, 1), "1");
    CHECK_STR(outcomes(&rules, BLKDEBUG_FLUSH, 0, 0, 1), "1");
    blkdebug_rules_free(&rules);
}

TEST(state_machine_waits_for_its_state)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules,
                  "set-state.0.event=flush_to_os,set-state.0.state=1,set-state.0.new_state=2,"
                  "set-state.1.event=flush_to_os,set-state.1.state=2,set-state.1.new_state=3,"
                  "inject-error.0.event=flush_to_disk,inject-error.0.state=3",
                  NULL) == 0);
    for (unsigned state = 1; state <= 3; state++) {
        CHECK_INT(rules.state, state);
        blkdebug_rules_event(&rules, BLK_EVENT_FLUSH_TO_DISK);
        CHECK_INT(blkdebug_rules_check(&rules, BLKDEBUG_FLUSH, 0, 0), state == 3 ? -EIO : 0);
        blkdebug_rules_event(&rules, BLK_EVENT_FLUSH_TO_OS);
    }
    CHECK_INT(rules.state, 3);
    blkdebug_rules_free(&rules);
}

TEST(errno_zero_shields_from_later_rules)
{
    struct blkdebug_rules rules;
    REQUIRE(parse(&rules, "inject-error.0.sector=0,inject-error.0.errno=0,inject-error.1.errno=5",
                  NULL) == 0);
    CHECK_STR(outcomes(&rules, BLKDEBUG_READ, 0, 512, 2), "00");
    CHECK_STR(outcomes(&rules, BLKDEBUG_READ, 512, 512, 2), "11");
    blkdebug_rules_free(&rules);
}

TEST(bad_rules_are_refused_by_name)
{
    static const struct {
        const char *text, *named;
    } bad[] = {
        { "inject-error.0.event=nope", "nope" },
        { "inject-error.0.iotype=nope", "nope" },
        { "inject-error.0.nope=1", "nope" },
        { "inject-error.1.event=none", "inject-error.1.event" },
        { "inject-error.0.nth=0", "nth" },
        { "inject-error.0.errno=x", "errno" },
        { "inject-error.0.errno=-5", "errno" },
        { "inject-error.0.errno=4294967296", "errno" },
        { "inject-error.0.sector=36028797018963968", "sector" },
        { "inject-error.0.once=maybe", "once" },
        { "inject-error.0=x", "inject-error.0" },
        { "inject-error.0.event=none,inject-error.0=x", "inject-error.0" },
        { "inject-error.0.stats=x,inject-error.0.nope=1", "nope" },
        { "set-state.0.new_state=2", "set-state" },
        { "set-state.0.event=l2_load,set-state.0.errno=2", "errno" },
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct blkdebug_rules rules;
        struct blk_error err = BLK_ERROR_INIT;
        if (!CHECK_INT(parse(&rules, bad[i].text, &err), -EINVAL) ||
            !CHECK(strstr(err.what, bad[i].named)))
            printf("# %s: %s: %s\n", bad[i].text, err.what, err.why);
        blkdebug_rules_free(&rules);
    }
}

/* ---- files ---- */

static int read_text(struct blkdebug_rules *rules, const char *text, struct blk_error *err)
{
    const char *folder = getenv("TMPDIR");
    char path[4096];
    snprintf(path, sizeof(path), "%s/blkimg-test.XXXXXX", folder ? folder : "/tmp");
    int fd = mkstemp(path);
    ssize_t length = (ssize_t)strlen(text);

    *rules = (struct blkdebug_rules){ .state = 1 };
    int ret = fd >= 0 && write(fd, text, strlen(text)) == length
                  ? blkdebug_rules_read_file(rules, path, err)
                  : -ENOTRECOVERABLE;
    close(fd);
    unlink(path);
    return ret;
}

TEST(file_in_qemus_syntax)
{
    struct blkdebug_rules rules;
    struct blk_error err = BLK_ERROR_INIT;
    int ret = read_text(&rules,
                        "# a comment\n"
                        "\n"
                        "[set-state]\n"
                        "event = \"l2_load\"\n"
                        "new_state=\"0x2\"\n"
                        "[inject-error \"a name\"]\n"
                        "\tevent\t= \"l2_update\"\r\n"
                        "  state = \"2\"\n"
                        "sector = \"-1\"\n"
                        "errno = \"28\"\n"
                        "immediately = \"on\"\n"
                        "once = \"on\"",
                        &err);
    if (!CHECK_INT(ret, 0))
        printf("# %s: %s\n", err.what, err.why);
    REQUIRE(rules.count == 2);
    CHECK_INT(rules.list[0].action, BLKDEBUG_SET_STATE);
    CHECK_INT(rules.list[0].event, BLK_EVENT_L2_LOAD);
    CHECK_INT(rules.list[0].new_state, 2);
    CHECK_INT(rules.list[1].action, BLKDEBUG_INJECT_ERROR);
    CHECK_INT(rules.list[1].event, BLK_EVENT_L2_UPDATE);
    CHECK_INT(rules.list[1].state, 2);
    CHECK_INT(rules.list[1].code, ENOSPC);
    CHECK(rules.list[1].once);
    CHECK(rules.list[1].anywhere);
    blkdebug_rules_free(&rules);
}

TEST(empty_file_has_no_rules)
{
    struct blkdebug_rules rules;
    CHECK_INT(read_text(&rules, "", NULL), 0);
    CHECK_INT(rules.count, 0);
    blkdebug_rules_free(&rules);
}

TEST(bad_files_are_refused_with_the_line)
{
    static const struct {
        const char *text;
        unsigned line;
    } bad[] = {
        { "event = \"none\"\n", 1 },
        { "[inject-error]\nevent = none\n", 2 },
        { "[inject-error]\n\nevent = \"none\n", 3 },
        { "[inject-error]\nevent\n", 2 },
        { "[inject-error]\n= \"1\"\n", 2 },
        { "[inject-error\n", 1 },
        { "[other]\n", 1 },
        { "[inject-error]\nnope = \"1\"\n", 2 },
        { "[set-state]\n", 1 },
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct blkdebug_rules rules;
        struct blk_error err = BLK_ERROR_INIT;
        char line[32];
        snprintf(line, sizeof(line), "line %u:", bad[i].line);
        if (!CHECK_INT(read_text(&rules, bad[i].text, &err), -EINVAL) ||
            !CHECK(strstr(err.what, line)))
            printf("# %s: %s: %s\n", bad[i].text, err.what, err.why);
        blkdebug_rules_free(&rules);
    }
}

TEST(missing_file_is_named)
{
    struct blkdebug_rules rules = { .state = 1 };
    struct blk_error err = BLK_ERROR_INIT;
    CHECK_INT(blkdebug_rules_read_file(&rules, "/nonexistent/rules", &err), -ENOENT);
    CHECK(strstr(err.what, "/nonexistent/rules"));
}

/* ---- breakpoints ---- */

struct request {
    struct blkdebug_breaks *breaks;
    struct blk_mutex *mutex;
    pthread_t thread;
    bool done; /* guarded by mutex */
};

static void *run_request(void *opaque)
{
    struct request *request = opaque;
    blk_mutex_lock(request->mutex);
    blkdebug_breaks_meet(request->breaks, BLK_EVENT_PWRITEV, request->mutex);
    request->done = true;
    blk_mutex_unlock(request->mutex);
    return NULL;
}

/* Returns with the mutex held and a request stopped at `tag`, or done. */
static void lock_when_suspended(struct request *request, const char *tag)
{
    blk_mutex_lock(request->mutex);
    while (!request->done && !blkdebug_breaks_is_suspended(request->breaks, tag)) {
        blk_mutex_unlock(request->mutex);
        usleep(1000);
        blk_mutex_lock(request->mutex);
    }
}

static void start_request(struct request *request, struct blkdebug_breaks *breaks,
                          struct blk_mutex *mutex)
{
    *request = (struct request){ .breaks = breaks, .mutex = mutex };
    CHECK_INT(pthread_create(&request->thread, NULL, run_request, request), 0);
}

TEST(request_waits_until_resumed)
{
    struct blkdebug_breaks breaks;
    struct blk_mutex mutex = BLK_MUTEX_INIT;
    struct request first, second;

    blkdebug_breaks_init(&breaks);
    blkdebug_breaks_set(&breaks, BLK_EVENT_PWRITEV, "A");
    blkdebug_breaks_set(&breaks, BLK_EVENT_L2_LOAD, "B");
    start_request(&first, &breaks, &mutex);
    lock_when_suspended(&first, "A");
    CHECK(!first.done);
    CHECK(!blkdebug_breaks_resume(&breaks, "B"));
    CHECK(!blkdebug_breaks_resume(&breaks, "C"));
    blk_mutex_unlock(&mutex);

    /* The breakpoint is used up: another request passes. */
    start_request(&second, &breaks, &mutex);
    pthread_join(second.thread, NULL);
    CHECK(second.done);

    blk_mutex_lock(&mutex);
    CHECK(!first.done);
    CHECK(blkdebug_breaks_resume(&breaks, "A"));
    blk_mutex_unlock(&mutex);
    pthread_join(first.thread, NULL);
    CHECK(first.done);
    CHECK(!blkdebug_breaks_is_suspended(&breaks, "A"));
    CHECK(!blkdebug_breaks_remove(&breaks, "A"));
    CHECK(blkdebug_breaks_remove(&breaks, "B"));
    blkdebug_breaks_destroy(&breaks);
}

TEST(request_at_two_breakpoints_needs_both)
{
    struct blkdebug_breaks breaks;
    struct blk_mutex mutex = BLK_MUTEX_INIT;
    struct request request;

    blkdebug_breaks_init(&breaks);
    blkdebug_breaks_set(&breaks, BLK_EVENT_PWRITEV, "A");
    blkdebug_breaks_set(&breaks, BLK_EVENT_PWRITEV, "B");
    start_request(&request, &breaks, &mutex);
    lock_when_suspended(&request, "B");
    CHECK(blkdebug_breaks_is_suspended(&breaks, "A"));
    CHECK(blkdebug_breaks_resume(&breaks, "A"));
    CHECK(blkdebug_breaks_is_suspended(&breaks, "B"));
    CHECK(blkdebug_breaks_remove(&breaks, "B"));
    blk_mutex_unlock(&mutex);
    pthread_join(request.thread, NULL);
    CHECK(request.done);
    blkdebug_breaks_destroy(&breaks);
}

/* ---- the driver ---- */

/* Opens options in the form of --image-opts for writing. */
static struct blk_node *open_node(const char *text)
{
    struct blk_options *options = blk_options_new();
    struct blk_open how = { .options = options, .flags = BLK_WRITABLE | BLK_UNMAP };
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *node = NULL;

    int ret = blk_options_parse_keyval(options, text, NULL, &err);
    if (ret == 0)
        ret = blk_open(&how, &node, &err);
    if (!CHECK_INT(ret, 0))
        printf("# %s: %s\n", err.what, err.why);
    blk_options_free(options);
    return node;
}

static int zero_64k(struct blk_node *node)
{
    return blk_write_zeroes(node, 0, 65536, BLK_REQ_NO_FALLBACK, NULL);
}

static int discard_64k(struct blk_node *node)
{
    return blk_discard(node, 0, 65536, NULL);
}

#define THREADS 8
#define REQUESTS_PER_THREAD 500

struct writer {
    struct blk_node *node;
    pthread_t thread;
    int failed;
};

static void *run_writer(void *opaque)
{
    struct writer *writer = opaque;
    char buf[512] = { 0 };
    for (uint64_t i = 0; i < REQUESTS_PER_THREAD; i++)
        writer->failed += blk_pwrite(writer->node, 512 * i, sizeof(buf), buf, 0, NULL) < 0;
    return NULL;
}

TEST(among_many_threads_one_request_is_the_nth)
{
    struct writer writers[THREADS];
    struct blk_node *node = open_node("driver=blkdebug,image.driver=null-co,"
                                      "inject-error.0.iotype=write,inject-error.0.nth=1234,"
                                      "set-state.0.event=pwritev,set-state.0.new_state=2,"
                                      "set-state.1.event=pwritev_done,set-state.1.new_state=1");
    REQUIRE(node);
    for (int i = 0; i < THREADS; i++) {
        writers[i] = (struct writer){ .node = node };
        CHECK_INT(pthread_create(&writers[i].thread, NULL, run_writer, &writers[i]), 0);
    }
    int failed = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(writers[i].thread, NULL);
        failed += writers[i].failed;
    }
    CHECK_INT(failed, 1);
    CHECK_INT(blk_close(node, NULL, NULL), 0);
}

TEST(long_zeroing_and_discarding_is_split)
{
    static const struct {
        const char *iotype, *limit;
        int (*request)(struct blk_node *node);
    } cases[] = { { "write-zeroes", "max-write-zero=4096", zero_64k },
                  { "discard", "max-discard=4096", discard_64k } };
    for (size_t i = 0; i < 2; i++) {
        for (int nth = 16; nth <= 17; nth++) {
            char text[256];
            snprintf(text, sizeof(text),
                     "driver=blkdebug,image.driver=null-co,%s,inject-error.0.iotype=%s,"
                     "inject-error.0.nth=%d",
                     cases[i].limit, cases[i].iotype, nth);
            struct blk_node *node = open_node(text);
            REQUIRE(node);
            CHECK_INT(cases[i].request(node), nth == 16 ? -EIO : 0);
            CHECK_INT(blk_close(node, NULL, NULL), 0);
        }
    }
}
