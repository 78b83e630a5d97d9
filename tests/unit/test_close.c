/* SPDX-License-Identifier: MIT */
/*
 * A close that fails: every step of every node in turn. All nodes are reached, each failure is
 * reported once and is the result, and nothing that follows a failure calls an image complete or
 * gives it a name.
 */
#include "blockcore/graph/close.h"
#include "blockcore/graph/flush.h"
#include "tests/unit/check.h"
#include "tests/unit/memory_node.h"

/* A format over a file, over a read-only backing format with a file of its own. */
struct graph {
    struct memory_calls top, file, backing;
    struct blk_node *root;
};

static struct blk_node *format_over(struct blk_node *file, struct memory_calls *calls)
{
    struct blk_node *node = memory_node(&memory_format, 4096, 1, calls);
    blk_node_attach(node, BLK_ROLE_FILE, file);
    return node;
}

static void build(struct graph *graph)
{
    struct blk_node *file = memory_node(&memory_protocol, 4096, 1, &graph->file);
    struct blk_node *backing_file = memory_node(&memory_protocol, 4096, 1, NULL);
    struct blk_node *backing = format_over(backing_file, &graph->backing);
    backing->flags = backing_file->flags = 0;
    graph->root = format_over(file, &graph->top);
    graph->root->unnamed = file->unnamed = true;
    blk_node_attach(graph->root, BLK_ROLE_BACKING, backing);
}

static void rename_all(struct graph *graph)
{
    blk_node_rename(graph->root, "top");
    blk_node_rename(blk_child(graph->root, BLK_ROLE_FILE), "file");
    blk_node_rename(blk_child(graph->root, BLK_ROLE_BACKING), "backing");
}

static const struct blk_close_entry *entry_of(const struct blk_close_report *report,
                                              const char *node, const char *step)
{
    static const struct blk_close_entry none = {
        .step = "(none)",
        .outcome = (enum blk_outcome)(-1),
    };
    for (size_t i = 0; i < report->count; i++)
        if (!strcmp(report->entries[i].node, node) && !strcmp(report->entries[i].step, step))
            return &report->entries[i];
    return &none;
}

TEST(a_clean_close_reports_every_step_in_order)
{
    static const char *const want[][2] = {
        { "top", "flush" },      { "top", "store" },    { "top", "publish" },
        { "top", "release" },    { "file", "flush" },   { "file", "store" },
        { "file", "publish" },   { "file", "release" }, { "backing", "release" },
        { "memory", "release" },
    };
    struct graph graph = { .root = NULL };
    struct blk_close_report report = BLK_CLOSE_REPORT_INIT;
    build(&graph);
    rename_all(&graph);
    CHECK_INT(blk_close(graph.root, &report, NULL), 0);
    CHECK(!report.failed);
    REQUIRE(CHECK_INT(report.count, sizeof(want) / sizeof(want[0])));
    for (size_t i = 0; i < report.count; i++) {
        CHECK_STR(report.entries[i].node, want[i][0]);
        CHECK_STR(report.entries[i].step, want[i][1]);
        CHECK_INT(report.entries[i].outcome, BLK_OUTCOME_OK);
    }
    blk_close_report_free(&report);
}

/* What may not be done once a step has failed, by the order of steps: the top's come first. */
static unsigned claims_after(const struct graph *graph, bool top_failed, enum memory_call step)
{
    const struct memory_calls *calls[] = { &graph->top, &graph->file };
    unsigned claims = 0;
    for (int node = top_failed ? 0 : 1; node < 2; node++)
        for (int call = MEMORY_STORE; call <= MEMORY_PUBLISH; call++)
            if (node > !top_failed || call > (int)step)
                claims += calls[node]->count[call];
    return claims;
}

static void check_failing(bool top, enum memory_call step, const char *name)
{
    struct graph graph = { .root = NULL };
    struct blk_close_report report = BLK_CLOSE_REPORT_INIT;
    struct blk_error err = BLK_ERROR_INIT;
    const char *node = top ? "top" : "file";
    bool flush_of_file = !top && (step == MEMORY_FLUSH || step == MEMORY_FLUSH_TO_OS);

    (top ? &graph.top : &graph.file)->fail_at[step] = 1;
    build(&graph);
    rename_all(&graph);
    CHECK_INT(blk_close(graph.root, &report, &err), -EIO);
    CHECK(report.failed && err.code == EIO);

    const struct blk_close_entry *entry = entry_of(&report, node, name);
    CHECK_INT(entry->outcome, BLK_OUTCOME_FAILED);
    CHECK_INT(entry->code, EIO);
    CHECK(entry->message && strstr(entry->message, node));
    /* A file whose flush fails is flushed by the top: that fails too. */
    CHECK_INT(claims_after(&graph, top || flush_of_file, step), 0);
    for (size_t i = 0; i < report.count; i++)
        CHECK((report.entries[i].outcome == BLK_OUTCOME_OK) == !report.entries[i].message);

    CHECK_INT(graph.top.count[MEMORY_RELEASE], 1);
    CHECK_INT(graph.file.count[MEMORY_RELEASE], 1);
    CHECK_INT(graph.backing.count[MEMORY_RELEASE], 1);
    if (step == MEMORY_FLUSH && top)
        CHECK_STR(blk_outcome_name(entry_of(&report, "top", "store")->outcome), "skipped");
    if (step != MEMORY_PUBLISH && !(step == MEMORY_RELEASE && !top))
        CHECK_STR(blk_outcome_name(entry_of(&report, "file", "publish")->outcome), "skipped");
    blk_close_report_free(&report);
}

TEST(each_step_failing_in_turn)
{
    static const struct {
        enum memory_call call;
        const char *step;
    } steps[] = {
        { MEMORY_FLUSH_TO_OS, "flush" }, { MEMORY_FLUSH, "flush" },     { MEMORY_STORE, "store" },
        { MEMORY_PUBLISH, "publish" },   { MEMORY_RELEASE, "release" },
    };
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        check_failing(true, steps[i].call, steps[i].step);
        check_failing(false, steps[i].call, steps[i].step);
    }
}

TEST(a_release_that_fails_on_a_backing_file_counts)
{
    struct graph graph = { .backing.fail_at[MEMORY_RELEASE] = 1 };
    struct blk_error err = BLK_ERROR_INIT;
    build(&graph);
    CHECK_INT(blk_close(graph.root, NULL, &err), -EIO);
    CHECK_INT(graph.file.count[MEMORY_PUBLISH], 1);
}

TEST(an_earlier_flush_that_failed_fails_the_close)
{
    struct graph graph = { .file.fail_at[MEMORY_FLUSH] = 1 };
    struct blk_close_report report = BLK_CLOSE_REPORT_INIT;
    build(&graph);
    rename_all(&graph);
    CHECK_INT(blk_flush(graph.root, NULL), -EIO);
    CHECK_INT(blk_flush(graph.root, NULL), -EIO);
    CHECK_INT(blk_close(graph.root, &report, NULL), -EIO);
    CHECK_INT(entry_of(&report, "top", "flush")->outcome, BLK_OUTCOME_FAILED);
    CHECK_INT(entry_of(&report, "file", "flush")->outcome, BLK_OUTCOME_FAILED);
    CHECK_INT(graph.file.count[MEMORY_FLUSH], 1);
    CHECK_INT(claims_after(&graph, true, MEMORY_FLUSH), 0);
    blk_close_report_free(&report);
}

TEST(what_is_abandoned_is_flushed_but_not_published)
{
    struct graph graph = { .root = NULL };
    struct blk_close_report report = BLK_CLOSE_REPORT_INIT;
    build(&graph);
    rename_all(&graph);
    blk_abandon(graph.root);
    CHECK_INT(blk_close(graph.root, &report, NULL), 0);
    CHECK_INT(graph.file.count[MEMORY_FLUSH] > 0, true);
    CHECK_INT(graph.top.count[MEMORY_PUBLISH] + graph.file.count[MEMORY_PUBLISH], 0);
    CHECK_INT(entry_of(&report, "file", "publish")->outcome, BLK_OUTCOME_SKIPPED);
    CHECK_STR(entry_of(&report, "top", "publish")->message, "the work was not completed");
    blk_close_report_free(&report);
}

TEST(a_drop_only_releases)
{
    struct graph graph = { .root = NULL };
    build(&graph);
    blk_drop(graph.root);
    blk_drop(NULL);
    CHECK_INT(graph.top.count[MEMORY_FLUSH] + claims_after(&graph, true, MEMORY_FLUSH), 0);
    CHECK_INT(graph.top.count[MEMORY_RELEASE] + graph.file.count[MEMORY_RELEASE], 2);
}

TEST(a_shared_node_is_closed_with_its_last_reference)
{
    struct memory_calls calls = { .count = { 0 } };
    struct blk_node *shared = memory_node(&memory_protocol, 4096, 1, &calls);
    struct blk_node *top = memory_filter_over(shared);
    blk_node_ref(shared);
    CHECK_INT(blk_close(top, NULL, NULL), 0);
    CHECK_INT(calls.count[MEMORY_RELEASE], 0);
    CHECK_INT(blk_close(shared, NULL, NULL), 0);
    CHECK_INT(calls.count[MEMORY_RELEASE], 1);
}
