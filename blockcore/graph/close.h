/* SPDX-License-Identifier: MIT */
/* Closing a graph, which can fail, and the report of how it went. */
#ifndef BLOCKCORE_GRAPH_CLOSE_H
#define BLOCKCORE_GRAPH_CLOSE_H

#include <stdbool.h>
#include <stddef.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/published.h"

enum blk_close_step {
    BLK_STEP_FLUSH,   /* everything written reaches the medium */
    BLK_STEP_STORE,   /* changed bitmaps are stored */
    BLK_STEP_PUBLISH, /* a file made by this run gets its name, or its first sector in place */
    BLK_STEP_RELEASE, /* memory, locks, descriptors */
    BLK_STEP_COUNT,
};

enum blk_outcome { BLK_OUTCOME_OK, BLK_OUTCOME_FAILED, BLK_OUTCOME_SKIPPED };

struct blk_close_entry {
    const char *node; /* name of the node, owned by the report */
    const char *driver_name;
    const char *step; /* "flush", "store", ... */
    char *detail;     /* what within the step (a bitmap's name), or NULL */
    enum blk_outcome outcome;
    int code; /* errno when failed */
    /* Why it failed or a step was skipped. NULL when all is well, and for a bitmap left out. */
    char *message;
};

struct blk_close_report {
    struct blk_close_entry *entries;
    size_t count;
    size_t room;  /* entries that there is memory for */
    char **names; /* of the nodes, each kept once */
    size_t name_count;
    bool failed; /* any entry failed */
};

#define BLK_CLOSE_REPORT_INIT ((struct blk_close_report){ .entries = NULL })

/*
 * Drops the caller's reference to `root`. Nodes that lose their last one are closed, parents before
 * children; every one is reached whatever fails. After a failed step, steps that would call an
 * image complete (store, publish) are skipped, and a name that was given before is taken back:
 * after a failure there is no target, or the old one, and the failure says which. Bitmaps that
 * could not be stored for that reason are a failure, too. Returns 0, or the first failure as -errno
 * with `err` filled. `report` (may be NULL) gets an entry for each step of each node.
 */
int blk_close(struct blk_node *root, struct blk_close_report *report, struct blk_error *err);

/*
 * blk_close() of a graph that served some larger action. `ret` is the outcome of that action so
 * far, with `err` filled if it failed. Returns `ret` if it is a failure, else the outcome of the
 * close. `root` may be NULL.
 */
int blk_close_after(struct blk_node *root, int ret, struct blk_error *err);

/*
 * As blk_close(), but the names that it gives become final only by blk_published_keep(). After a
 * failure it is the caller who takes back what is in `published`, which may be NULL only for a
 * graph that gives no name.
 */
int blk_close_held(struct blk_node *root, struct blk_published *published,
                   struct blk_close_report *report, struct blk_error *err);

/* Corrects the report of a close whose names were taken back: publishing counts as skipped. */
void blk_close_report_taken_back(struct blk_close_report *report);

/*
 * For early error paths: releases the graph without storing bitmaps and without publishing
 * anything. What was written but not flushed may be lost; a file made by this run disappears. A
 * NULL root does nothing.
 */
void blk_drop(struct blk_node *root);

/*
 * Marks a graph as failed: a later blk_close() flushes, stores and closes all, but gives no name.
 */
void blk_abandon(struct blk_node *root);

void blk_close_report_add(struct blk_close_report *report, const struct blk_node *node,
                          enum blk_close_step step, const char *detail, enum blk_outcome outcome,
                          const struct blk_error *err);
void blk_close_report_free(struct blk_close_report *report);
const char *blk_outcome_name(enum blk_outcome outcome);

#endif
