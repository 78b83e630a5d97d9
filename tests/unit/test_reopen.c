/* SPDX-License-Identifier: MIT */
/*
 * Reopening as a transaction: the order of levels, and what remains when the n-th level fails.
 */
#include "blockcore/base/memory.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/options.h"
#include "blockcore/graph/reopen.h"
#include "tests/unit/check.h"
#include "tests/unit/memory_node.h"

/*
 * What happened, a letter an event: p(repare), c(ommit), a(bort), each followed by the node's name.
 */
static char events[200];
static const char *fails_at;       /* such an event, which fails the first time */
static const char *fails_at_again; /* and this one after it, or NULL */

static int note(const char *what, const struct blk_node *node)
{
    char event[20];
    snprintf(event, sizeof(event), "%s%s", what, node->name);
    snprintf(events + strlen(events), sizeof(events) - strlen(events), "%s%s", *events ? " " : "",
             event);
    if (!fails_at || strcmp(fails_at, event) != 0)
        return 0;
    fails_at = fails_at_again;
    fails_at_again = NULL;
    return -EPERM;
}

static int prepare(struct blk_reopen *reopen, struct blk_error *err)
{
    (void)err;
    return note(reopen->flags & BLK_WRITABLE ? "P" : "p", reopen->node);
}

static void commit(struct blk_reopen *reopen)
{
    note("c", reopen->node);
}

static void cancel(struct blk_reopen *reopen)
{
    note("a", reopen->node);
}

static int flush(struct blk_node *node, struct blk_error *err)
{
    (void)err;
    return note("f", node);
}

/* It has one option, "level", which is what is in its state. */
static int read_option(struct blk_node *node, struct blk_options *options, void **settings,
                       struct blk_error *err)
{
    uint64_t *level = *settings = blk_xcalloc(1, sizeof(*level));
    *level = *(uint64_t *)node->state;
    return blk_options_get_uint(options, "level", level, err);
}

static void apply_option(struct blk_node *node, const void *settings)
{
    note("o", node);
    *(uint64_t *)node->state = *(const uint64_t *)settings;
}

static const struct blk_reopen_ops recorder_reopen_ops = {
    .prepare = prepare,
    .commit = commit,
    .abort = cancel,
    .options_read = read_option,
    .options_apply = apply_option,
};

static const struct blk_driver recorder = {
    .name = "recorder",
    .kind = BLK_FORMAT,
    .supports_backing = true,
    .state_bytes = sizeof(uint64_t),
    .data = { .flush_to_disk = flush },
    .reopen = &recorder_reopen_ops,
};

static struct blk_node *node_named(const char *name, bool writable)
{
    struct blk_cache_mode cache = { .direct = false };
    return blk_node_new(&recorder, name, writable ? BLK_WRITABLE : 0, cache);
}

/* 1 is the root, 2 its file, 3 the file of that, 4 the data file of 1, 5 its backing file. */
static struct blk_node *build(bool writable)
{
    struct blk_node *root = node_named("1", writable), *file = node_named("2", writable);
    blk_node_attach(file, BLK_ROLE_FILE, node_named("3", writable));
    blk_node_attach(root, BLK_ROLE_FILE, file);
    blk_node_attach(root, BLK_ROLE_DATA, node_named("4", writable));
    blk_node_attach(root, BLK_ROLE_BACKING, node_named("5", false));
    events[0] = '\0';
    fails_at = NULL;
    return root;
}

/* Which nodes are writable: "1234" when all are. */
static const char *writable_ones(struct blk_node *root)
{
    static char names[8];
    struct blk_node *file = blk_child(root, BLK_ROLE_FILE);
    struct blk_node *all[] = { root, file, blk_child(file, BLK_ROLE_FILE),
                               blk_child(root, BLK_ROLE_DATA), blk_child(root, BLK_ROLE_BACKING) };
    names[0] = '\0';
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (blk_is_writable(all[i]))
            strcat(names, all[i]->name);
    return names;
}

static const struct blk_cache_mode writeback = { .direct = false };

TEST(to_writable_goes_up)
{
    struct blk_node *root = build(false);
    CHECK_INT(blk_reopen(root, true, writeback, NULL), 0);
    CHECK_STR(events, "P3 c3 P2 c2 P4 c4 P1 c1");
    CHECK_STR(writable_ones(root), "1234");
    blk_drop(root);
}

TEST(to_read_only_goes_down_after_a_flush)
{
    struct blk_node *root = build(true);
    CHECK_INT(blk_reopen(root, false, writeback, NULL), 0);
    CHECK(strncmp(events, "f3 f2 f4 f1 p1 c1 ", 18) == 0);
    CHECK(strstr(events, "p2 c2 ") < strstr(events, "p3 c3"));
    CHECK_STR(writable_ones(root), "");
    blk_drop(root);
}

TEST(a_level_that_fails_takes_the_others_back)
{
    static const char *const levels[] = { "P3", "P2", "P4", "P1" };
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        struct blk_node *root = build(false);
        struct blk_error err = BLK_ERROR_INIT;
        fails_at = levels[i];
        CHECK_INT(blk_reopen(root, true, writeback, &err), -EPERM);
        CHECK_INT(err.code, EPERM);
        CHECK_STR(err.left, "");
        CHECK_STR(writable_ones(root), "");
        char aborted[4] = { 'a', levels[i][1], '\0' };
        CHECK(strstr(events, aborted));
        blk_drop(root);
    }
}

TEST(what_cannot_be_taken_back_is_said)
{
    struct blk_node *root = build(false);
    struct blk_error err = BLK_ERROR_INIT;
    fails_at = "P1";
    /* The way back of node 4 begins with a flush. */
    blk_child(root, BLK_ROLE_DATA)->flush_error = ENOSPC;
    CHECK_INT(blk_reopen(root, true, writeback, &err), -EPERM);
    CHECK(strstr(err.left, "'4'"));
    CHECK_STR(writable_ones(root), "4");
    blk_drop(root);
}

TEST(a_change_of_cache_mode_is_taken_back_too)
{
    struct blk_cache_mode unsafe = { .no_flush = true };
    struct blk_node *root = build(true);
    fails_at = "P1";
    CHECK_INT(blk_reopen(root, true, unsafe, NULL), -EPERM);
    CHECK_STR(writable_ones(root), "1234");
    CHECK(!blk_child(root, BLK_ROLE_FILE)->cache.no_flush);
    CHECK(!blk_child(root, BLK_ROLE_DATA)->cache.no_flush);
    CHECK_INT(blk_reopen(root, true, unsafe, NULL), 0);
    CHECK(blk_bottom(root)->cache.no_flush && root->cache.no_flush);
    blk_drop(root);
}

TEST(a_failed_way_down_is_taken_back)
{
    static const char *const steps[] = { "f1", "p1", "f2", "p2", "f3", "p3", "f4", "p4" };
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        struct blk_node *root = build(true);
        fails_at = steps[i];
        CHECK_INT(blk_reopen(root, false, writeback, NULL), -EPERM);
        CHECK_STR(writable_ones(root), "1234");
        blk_drop(root);
    }
}

TEST(a_way_down_that_cannot_be_taken_back_is_said)
{
    struct blk_node *root = build(true);
    struct blk_error err = BLK_ERROR_INIT;
    fails_at = "p2";
    fails_at_again = "P1";
    CHECK_INT(blk_reopen(root, false, writeback, &err), -EPERM);
    CHECK_STR(writable_ones(root), "234");
    CHECK(strstr(err.left, "'1'"));
    blk_drop(root);
}

TEST(force_share_stays_read_only)
{
    struct blk_node *root = build(false);
    struct blk_error err = BLK_ERROR_INIT;
    root->flags |= BLK_FORCE_SHARE;
    CHECK_INT(blk_reopen(root, true, writeback, &err), -EINVAL);
    CHECK_STR(events, "");
    blk_drop(root);
}

/* ---- sets ---- */

static struct blk_options *option(const char *key, const char *value)
{
    struct blk_options *options = blk_options_new();
    blk_options_set(options, key, value);
    return options;
}

static uint64_t level(const struct blk_node *node)
{
    return *(const uint64_t *)node->state;
}

TEST(a_set_changes_access_options_and_backing_together)
{
    struct blk_node *top = build(true), *other = node_named("8", false),
                    *next = node_named("9", false);
    struct blk_node *old = blk_child(top, BLK_ROLE_BACKING);
    struct blk_change changes[] = {
        { .node = other, .writable = true, .options = option("level", "7") },
        { .node = top, .writable = true, .has_backing = true, .backing = next },
    };
    CHECK_INT(blk_reopen_set(changes, 2, NULL), 0);
    CHECK(blk_is_writable(other) && level(other) == 7);
    CHECK(blk_child(top, BLK_ROLE_BACKING) == next && changes[1].backing == old);
    CHECK_STR(strstr(events, "c1"), "c1 o8"); /* what cannot fail comes last */

    changes[1].backing = NULL;
    CHECK_INT(blk_reopen_set(&changes[1], 1, NULL), 0);
    CHECK(!blk_child(top, BLK_ROLE_BACKING) && changes[1].backing == next);
    blk_options_free(changes[0].options);
    blk_drop(old);
    blk_drop(next);
    blk_drop(other);
    blk_drop(top);
}

TEST(a_set_that_fails_changes_nothing)
{
    static const char *const steps[] = { "P8", "P3", "P2", "P4", "P1" };
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        struct blk_node *top = build(false), *other = node_named("8", false);
        struct blk_node *next = node_named("9", false), *old = blk_child(top, BLK_ROLE_BACKING);
        struct blk_change changes[] = {
            { .node = other, .writable = true, .options = option("level", "7") },
            { .node = top, .writable = true, .has_backing = true, .backing = next },
        };
        struct blk_error err = BLK_ERROR_INIT;
        fails_at = steps[i];
        CHECK_INT(blk_reopen_set(changes, 2, &err), -EPERM);
        CHECK_STR(err.left, "");
        CHECK(!blk_is_writable(other) && level(other) == 0);
        CHECK_STR(writable_ones(top), "");
        CHECK(blk_child(top, BLK_ROLE_BACKING) == old && changes[1].backing == next);
        blk_options_free(changes[0].options);
        blk_drop(next);
        blk_drop(other);
        blk_drop(top);
    }
}

TEST(what_is_wrong_in_a_set_is_found_before_anything_is_switched)
{
    struct blk_node *top = build(false), *other = node_named("8", false);
    struct {
        struct blk_change change;
        int error;
    } bad[] = {
        { { .node = top, .writable = true, .options = option("level", "high") }, -EINVAL },
        { { .node = top, .writable = true, .options = option("depth", "1") }, -EINVAL },
        { { .node = blk_child(top, BLK_ROLE_FILE), .has_backing = true, .backing = top }, -ELOOP },
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct blk_change changes[] = { { .node = other, .writable = true }, bad[i].change };
        struct blk_error err = BLK_ERROR_INIT;
        CHECK_INT(blk_reopen_set(changes, 2, &err), bad[i].error);
        CHECK_STR(events, "");
        blk_options_free(bad[i].change.options);
    }
    CHECK_STR(writable_ones(top), "");
    CHECK(!blk_is_writable(other) && level(top) == 0);
    blk_drop(other);
    blk_drop(top);
}
