/* SPDX-License-Identifier: MIT */
/*
 * One close: parents before children, each node in its steps, all nodes whatever fails; and the
 * report of it. Names that were given are made final when everything is closed, or taken back.
 */
#include "blockcore/graph/close.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/flush.h"

static const char *const step_names[BLK_STEP_COUNT] = {
    [BLK_STEP_FLUSH] = "flush",
    [BLK_STEP_STORE] = "store",
    [BLK_STEP_PUBLISH] = "publish",
    [BLK_STEP_RELEASE] = "release",
};

const char *blk_outcome_name(enum blk_outcome outcome)
{
    static const char *const names[] = {
        [BLK_OUTCOME_OK] = "ok",
        [BLK_OUTCOME_FAILED] = "failed",
        [BLK_OUTCOME_SKIPPED] = "skipped",
    };
    return names[outcome];
}

/* The report's copy of a node's name. */
static const char *keep_name(struct blk_close_report *report, const char *name)
{
    for (size_t i = 0; i < report->name_count; i++)
        if (!strcmp(report->names[i], name))
            return report->names[i];
    report->names = blk_xgrow(report->names, report->name_count, sizeof(*report->names));
    return report->names[report->name_count++] = blk_xstrdup(name);
}

static void make_report_room(struct blk_close_report *report, size_t more)
{
    if (report->room - report->count >= more)
        return;
    report->room = report->count + more;
    report->entries = blk_xrealloc(report->entries, report->room, sizeof(*report->entries));
}

/* How many steps the close of the graph can have; keeps the names of its nodes. */
static size_t count_steps(struct blk_close_report *report, const struct blk_node *node)
{
    size_t steps = BLK_STEP_COUNT;

    keep_name(report, node->name);
    for (struct blk_dirty_bitmap *b = node->bitmaps ? node->bitmaps->first : NULL; b; b = b->next)
        steps++; /* some are left out of a store, or fail */
    for (int role = 0; role < BLK_ROLE_COUNT; role++)
        if (node->children[role])
            steps += count_steps(report, node->children[role]);
    return steps;
}

/* A step that went well, of the node called `name`. The entry is valid until the next one. */
static struct blk_close_entry *new_entry(struct blk_close_report *report, const char *name,
                                         const struct blk_driver *driver, enum blk_close_step step)
{
    if (report->count == report->room)
        make_report_room(report, BLK_STEP_COUNT + report->count);
    struct blk_close_entry *entry = &report->entries[report->count++];
    *entry = (struct blk_close_entry){
        .node = keep_name(report, name),
        .driver_name = driver->name,
        .step = step_names[step],
        .outcome = BLK_OUTCOME_OK,
    };
    return entry;
}

static void entry_failed(struct blk_close_report *report, struct blk_close_entry *entry,
                         const struct blk_error *err)
{
    report->failed = true;
    entry->outcome = BLK_OUTCOME_FAILED;
    entry->code = err->code;
    entry->message = err->left[0] ? blk_xasprintf("%s: %s (%s)", err->what, err->why, err->left)
                                  : blk_xasprintf("%s: %s", err->what, err->why);
}

static void entry_skipped(struct blk_close_entry *entry, const char *why)
{
    entry->outcome = BLK_OUTCOME_SKIPPED;
    entry->message = blk_xstrdup(why);
}

void blk_close_report_add(struct blk_close_report *report, const struct blk_node *node,
                          enum blk_close_step step, const char *detail, enum blk_outcome outcome,
                          const struct blk_error *err)
{
    struct blk_close_entry *entry = new_entry(report, node->name, node->driver, step);

    entry->detail = blk_xstrdup(detail);
    entry->outcome = outcome;
    if (outcome == BLK_OUTCOME_FAILED)
        entry_failed(report, entry, err);
}

void blk_close_report_free(struct blk_close_report *report)
{
    for (size_t i = 0; i < report->count; i++) {
        free(report->entries[i].detail);
        free(report->entries[i].message);
    }
    for (size_t i = 0; i < report->name_count; i++)
        free(report->names[i]);
    free(report->names);
    free(report->entries);
    *report = BLK_CLOSE_REPORT_INIT;
}

/* One close: where its results go. */
struct closing {
    struct blk_close_report *report;
    struct blk_published *published; /* names that can be taken back; NULL: they are final */
    struct blk_error *first;         /* the caller's error: the first failure stays in it */
    int ret;
};

static void add_result(struct closing *closing, struct blk_node *node, enum blk_close_step step,
                       int ret, struct blk_error *err)
{
    if (ret < 0) {
        blk_fail_if_unset(err, -ret, "closing '%s' (%s)", node->name, step_names[step]);
        if (closing->ret == 0) {
            closing->ret = ret;
            if (closing->first)
                *closing->first = *err;
        }
    }
    blk_close_report_add(closing->report, node, step, NULL,
                         ret < 0 ? BLK_OUTCOME_FAILED : BLK_OUTCOME_OK, err);
}

static void skip(struct closing *closing, struct blk_node *node, enum blk_close_step step)
{
    entry_skipped(new_entry(closing->report, node->name, node->driver, step),
                  node->abandoned ? "the work was not completed" : "an earlier step failed");
}

static void flush_step(struct closing *closing, struct blk_node *node)
{
    struct blk_error err = BLK_ERROR_INIT;
    int ret = blk_child_flush(node, &err);
    add_result(closing, node, BLK_STEP_FLUSH, ret, &err);
}

static int bitmaps_lost(const struct blk_node *node, struct blk_error *err)
{
    int ret = blk_fail_why(err, EIO, "an earlier step failed", "not done");
    blk_bitmaps_name(node, "storing", err);
    return ret;
}

/*
 * The two steps that call an image complete, and so must not follow a failed one. A run that was
 * abandoned stores its bitmaps anyway: what it wrote to the image stays, and so the bitmaps must
 * keep what they have recorded of it.
 */
static void store_step(struct closing *closing, struct blk_node *node)
{
    if (!node->driver->store)
        return;
    struct blk_error err = BLK_ERROR_INIT;
    if (closing->report->failed) {
        if (blk_bitmaps_unsaved(node))
            add_result(closing, node, BLK_STEP_STORE, bitmaps_lost(node, &err), &err);
        else
            skip(closing, node, BLK_STEP_STORE);
        return;
    }
    int ret = node->driver->store(node, closing->report, &err);
    add_result(closing, node, BLK_STEP_STORE, ret, &err);
}

static void publish_step(struct closing *closing, struct blk_node *node)
{
    if (!node->driver->publish || !node->unnamed)
        return;
    if (closing->report->failed || node->abandoned) {
        skip(closing, node, BLK_STEP_PUBLISH);
        return;
    }
    struct blk_error err = BLK_ERROR_INIT;
    int ret = node->driver->publish(node, closing->published, &err);
    add_result(closing, node, BLK_STEP_PUBLISH, ret, &err);
}

static void release_step(struct closing *closing, struct blk_node *node)
{
    struct blk_error err = BLK_ERROR_INIT;
    int ret = node->driver->release ? node->driver->release(node, &err) : 0;
    add_result(closing, node, BLK_STEP_RELEASE, ret, &err);
}

static void close_node(struct closing *closing, struct blk_node *node)
{
    if (--node->refs > 0)
        return;

    blk_gate_drain_begin(&node->gate);
    if (blk_is_writable(node)) {
        flush_step(closing, node);
        store_step(closing, node);
        publish_step(closing, node);
    }
    release_step(closing, node);
    blk_gate_drain_end(&node->gate);

    /* The data file first: no image gets its name while the file that it needs has none. */
    static const enum blk_role order[BLK_ROLE_COUNT] = { BLK_ROLE_DATA, BLK_ROLE_FILE,
                                                         BLK_ROLE_BACKING, BLK_ROLE_TARGET };
    for (int i = 0; i < BLK_ROLE_COUNT; i++) {
        struct blk_node *child = node->children[order[i]];
        node->children[order[i]] = NULL;
        if (child)
            close_node(closing, child);
    }
    blk_bitmaps_free(node);
    blk_node_free(node);
}

int blk_close_held(struct blk_node *root, struct blk_published *published,
                   struct blk_close_report *report, struct blk_error *err)
{
    struct blk_close_report own = BLK_CLOSE_REPORT_INIT;
    struct closing closing = {
        .report = report ? report : &own,
        .published = published,
        .first = err,
    };

    if (root) {
        /* A run that is out of memory ends at once: not between a name and what it replaces. */
        make_report_room(closing.report, count_steps(closing.report, root));
        close_node(&closing, root);
    }
    blk_close_report_free(&own);
    return closing.ret;
}

void blk_close_report_taken_back(struct blk_close_report *report)
{
    for (size_t i = 0; i < report->count; i++) {
        struct blk_close_entry *entry = &report->entries[i];
        if (entry->step == step_names[BLK_STEP_PUBLISH] && entry->outcome == BLK_OUTCOME_OK)
            entry_skipped(entry, "taken back: another step failed");
    }
}

static bool gives_name(const struct blk_node *node)
{
    bool gives = node->driver->kind == BLK_PROTOCOL && node->unnamed;

    for (int role = 0; role < BLK_ROLE_COUNT && !gives; role++)
        gives = node->children[role] && gives_name(node->children[role]);
    return gives;
}

/* The failure for which names were taken back says what is there now. */
static void say_what_is_left(struct blk_close_report *report, struct blk_error *err,
                             const char *left)
{
    if (err && !err->left[0])
        blk_left_behind(err, "%s", left);
    for (size_t i = 0; i < report->count; i++) {
        struct blk_close_entry *entry = &report->entries[i];
        if (entry->outcome != BLK_OUTCOME_FAILED)
            continue;
        char *message = blk_xasprintf("%s (%s)", entry->message, left);
        free(entry->message);
        entry->message = message;
        return;
    }
}

/* All names are given and everything else is closed, or no name is given. */
static int close_all_or_none(struct blk_node *root, struct blk_close_report *report,
                             struct blk_error *err)
{
    struct blk_published published = BLK_PUBLISHED_INIT;
    BLK_AUTOFREE char *name = blk_xstrdup(root->name);
    const struct blk_driver *driver = root->driver;
    struct blk_error end_err = BLK_ERROR_INIT;

    int ret = blk_close_held(root, &published, report, err);
    if (ret < 0)
        blk_close_report_taken_back(report);
    int end_ret = ret == 0 ? blk_published_keep(&published, &end_err)
                           : blk_published_take_back(&published, &end_err);
    if (end_ret < 0) {
        entry_failed(report, new_entry(report, name, driver, BLK_STEP_PUBLISH), &end_err);
        if (ret == 0 && err)
            *err = end_err;
    } else if (end_err.left[0]) {
        say_what_is_left(report, err, end_err.left);
    }
    return ret < 0 ? ret : end_ret;
}

int blk_close(struct blk_node *root, struct blk_close_report *report, struct blk_error *err)
{
    struct blk_close_report own = BLK_CLOSE_REPORT_INIT;

    if (!root || !gives_name(root))
        return blk_close_held(root, NULL, report, err);
    int ret = close_all_or_none(root, report ? report : &own, err);
    blk_close_report_free(&own);
    return ret;
}

void blk_abandon(struct blk_node *root)
{
    root->abandoned = true;
    for (int role = 0; role < BLK_ROLE_COUNT; role++)
        if (root->children[role])
            blk_abandon(root->children[role]);
}

/* Releases without a word: the run has failed already and says so. */
static void drop_node(struct blk_node *node)
{
    if (--node->refs > 0)
        return;
    node->abandoned = true;
    if (node->driver->release)
        node->driver->release(node, NULL);
    for (int role = 0; role < BLK_ROLE_COUNT; role++) {
        struct blk_node *child = node->children[role];
        node->children[role] = NULL;
        if (child)
            drop_node(child);
    }
    blk_bitmaps_free(node);
    blk_node_free(node);
}

void blk_drop(struct blk_node *root)
{
    if (root)
        drop_node(root);
}

int blk_close_after(struct blk_node *root, int ret, struct blk_error *err)
{
    int closed = blk_close(root, NULL, ret < 0 ? NULL : err);
    return ret < 0 ? ret : closed;
}
