/* SPDX-License-Identifier: MIT */
/*
 * blkimg commit: writes the changes of an overlay to a base of its backing chain.
 *
 * The overlay hides the base where it has data of its own, so its guest view does not change while
 * the base is written. It is emptied only after the base is flushed and its bitmaps are stored;
 * if the run is killed before that, both are intact and it can be run again.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/clock.h"
#include "blockcore/base/memory.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/reopen.h"
#include "blockcore/jobs/copy/copy.h"
#include "cmd/common/common.h"

#define WORKERS 4

struct commit {
    struct image_args image;
    const char *filename, *cache, *base_name;

    struct blk_node *root; /* what is committed; writable */
    struct blk_node *top;  /* root without filters */
    struct blk_node *base; /* what it is committed into */
    bool keep_top;         /* -d, or base is not the immediate backing file */
    bool merge_bitmaps;
    uint64_t bytes_per_second;
    struct progress progress;
    uint64_t bytes_moved; /* read and written */
};

/* ---- finding the base ---- */

/*
 * Whether the backing file of `overlay` is what the user calls `name`: as in the header, or a path
 * to it.
 */
static bool is_named(struct blk_node *overlay, struct blk_node *backing, const char *name)
{
    if (overlay->backing_name && strcmp(overlay->backing_name, name) == 0)
        return true;
    BLK_AUTOFREE char *beside = blk_resolve_backing_name(blk_bottom(overlay)->name, name);
    return blk_same_file(blk_bottom(backing)->name, name) ||
           blk_same_file(blk_bottom(backing)->name, beside);
}

/* The base named `name` (NULL: the immediate backing file). */
static int find_base(struct commit *commit, const char *name, struct blk_error *err)
{
    struct blk_node *node = commit->top;

    if (!blk_child(node, BLK_ROLE_BACKING))
        return blk_fail_why(err, EINVAL, "Image does not have a backing file", "committing '%s'",
                            node->name);
    for (;;) {
        struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
        if (!backing) {
            BLK_AUTOFREE char *why = blk_xasprintf("Did not find '%s' in the backing chain of '%s'",
                                                   name, commit->top->name);
            return blk_fail_why(err, ENOENT, why, "committing '%s'", commit->top->name);
        }
        if (!name || is_named(node, backing, name)) {
            commit->base = blk_skip_filters(backing);
            if (node != commit->top)
                commit->keep_top = true;
            return 0;
        }
        node = blk_skip_filters(backing);
    }
}

/* ---- bitmaps ---- */

/* Checks, before anything is written, that the bitmaps can be merged. */
static int check_bitmaps(const struct commit *commit, struct blk_error *err)
{
    struct blk_node *top = commit->top, *base = commit->base;
    int ret = blk_bitmaps_check_usable(top, err);

    for (struct blk_dirty_bitmap *b = top->bitmaps ? top->bitmaps->first : NULL; b && ret == 0;
         b = b->next) {
        struct blk_dirty_bitmap *usable;
        ret = blk_bitmaps_find(base, b->name) ? blk_bitmaps_get_usable(base, b->name, &usable, err)
                                              : blk_bitmaps_can_add(base, err);
    }
    return ret;
}

static int merge_bitmaps(const struct commit *commit, struct blk_error *err)
{
    struct blk_dirty_bitmaps *bitmaps = commit->top->bitmaps;
    int ret = 0;

    for (struct blk_dirty_bitmap *b = bitmaps ? bitmaps->first : NULL; b && ret == 0; b = b->next)
        ret = blk_bitmaps_merge_same(commit->base, b, err);
    if (ret < 0)
        blk_context(err, "merging the bitmaps of '%s'", commit->top->name);
    return ret;
}

/* ---- the work ---- */

static int copy_down(struct commit *commit, struct blk_error *err)
{
    const struct blk_copy_params params = {
        .source = commit->root,
        .target = commit->base,
        .bytes = blk_size(commit->root),
        .only_allocated = true,
        .base = commit->base,
        .sparse_bytes = 4096,
        .workers = WORKERS,
        .moved = &commit->bytes_moved,
        .bytes_per_second = commit->bytes_per_second,
        .progress = progress_update,
        .opaque = &commit->progress,
    };
    return params.bytes ? blk_copy_run(&params, err) : 0;
}

static bool is_direct(const struct commit *commit)
{
    struct blk_node *backing = blk_child(commit->top, BLK_ROLE_BACKING);
    return backing && blk_skip_filters(backing) == commit->base;
}

/* The base now has the content of the overlay, so it becomes the backup that the overlay was. */
static int pass_identity_on(const struct commit *commit, struct blk_error *err)
{
    struct blk_node *base = blk_skip_filters(commit->base);
    struct blk_identity from, to;

    int ret = blk_identity_of(commit->top, &from, err);
    if (ret < 0 || blk_id_is_none(&from.backup) || !blk_supports(base, BLK_IDENTITY) ||
        blk_size(base) != blk_size(commit->top))
        return ret;
    ret = blk_identity_of(base, &to, err);
    if (ret < 0)
        return ret;
    to.backup = from.backup;
    blk_identity_set(base, &to);
    return 0;
}

/*
 * What the overlay was made on, its direct backing file, loses its id with the first write and gets
 * another at the end. In between the overlay says that it was made on what has no id: it shows the
 * same all the time, and whoever finds it after a kill must be able to read it.
 */
static int loosen_parent(const struct commit *commit, struct blk_error *err)
{
    struct blk_identity above;

    int ret = blk_identity_of(commit->top, &above, err);
    if (ret < 0 || !is_direct(commit) || !blk_id_is_known(&above.parent))
        return ret;
    return blk_identity_put_parent(commit->top, &blk_id_unknown, err);
}

/* The base is stable, and says which backup it is. */
static int tie_parent(const struct commit *commit, struct blk_error *err)
{
    struct blk_identity above, below;

    int ret = blk_identity_of(commit->top, &above, err);
    if (ret == 0)
        ret = blk_identity_of(commit->base, &below, err);
    if (ret < 0 || !is_direct(commit) || blk_id_is_none(&below.backup) ||
        blk_id_is_none(&above.parent))
        return ret;
    return blk_identity_put_parent(commit->top, &below.backup, err);
}

static int commit_into_base(struct commit *commit, struct blk_error *err)
{
    struct blk_node *base = commit->base;
    int ret = commit->merge_bitmaps ? check_bitmaps(commit, err) : 0;

    if (ret < 0)
        return ret;
    ret = loosen_parent(commit, err);

    if (ret < 0)
        return ret;
    ret = blk_reopen(base, true, base->cache, err);
    if (ret < 0)
        return ret;
    if (blk_size(commit->root) > blk_size(base))
        ret = blk_truncate(base, blk_size(commit->root), BLK_PREALLOC_OFF, false, err);
    if (ret < 0)
        return ret;
    ret = copy_down(commit, err);
    if (ret < 0)
        return ret;
    if (commit->merge_bitmaps)
        ret = merge_bitmaps(commit, err);
    if (ret < 0)
        return ret;
    ret = pass_identity_on(commit, err);
    if (ret < 0)
        return ret;
    /* Back to read-only: flushes, and stores the bitmaps. What follows may rely on the base. */
    ret = blk_reopen(base, false, base->cache, err);
    if (ret < 0)
        return ret;
    return tie_parent(commit, err);
}

static int empty_top(const struct commit *commit, struct blk_error *err)
{
    return commit->keep_top ? 0 : blk_make_empty(commit->root, err);
}

static int open_chain(struct commit *commit, struct blk_error *err)
{
    return image_open(&commit->image, commit->filename, BLK_WRITABLE | BLK_UNMAP, commit->cache,
                      &commit->root, err);
}

/* The work on the open chain. -EDEADLK: as after a kill, it can be done again. */
static int commit_chain(struct commit *commit, bool show_progress, struct blk_error *err)
{
    commit->top = blk_skip_filters(commit->root);
    int ret = find_base(commit, commit->base_name, err);
    if (ret < 0)
        return ret;
    progress_start(&commit->progress, show_progress);
    ret = commit_into_base(commit, err);
    if (ret == 0)
        ret = empty_top(commit, err);
    progress_finish(&commit->progress, ret == 0);
    return ret;
}

/* `result`: what --output=json prints, or NULL. */
static int do_commit(struct commit *commit, bool show_progress, json_t *result)
{
    struct blk_error err = BLK_ERROR_INIT;
    uint64_t start = blk_now_ns();

    int ret = commit_chain(commit, show_progress, &err);
    while (ret == -EDEADLK) {
        commit->base = NULL;
        ret = image_give_way(&commit->image, start, &commit->root, &err);
        if (ret == 0)
            ret = open_chain(commit, &err);
        if (ret == 0)
            ret = commit_chain(commit, show_progress, &err);
    }
    int status = ret < 0 ? report_error(&err) : EXIT_OK;
    result_set_text(result, "base", commit->base ? blk_bottom(commit->base)->name : NULL);
    result_set_bytes(result, "bytes", commit->bytes_moved);
    result_set_flag(result, "emptied", ret == 0 && !commit->keep_top);
    return finish(status, &commit->root, 1, result);
}

static int commit_main(int argc, char **argv);

const struct command cmd_commit = {
    .name = "commit",
    .summary = "Write the changes of an overlay to its backing file",
    .usage = "filename",
    .run = commit_main,
};

static int commit_main(int argc, char **argv)
{
    struct commit commit = { .image = IMAGE_ARGS_INIT };
    struct cmd_size rate = { .given = false };
    enum output_format format = OUTPUT_HUMAN;
    bool quiet = false, show_progress = false;
    const struct cmd_option options[] = {
        WRITTEN_IMAGE_OPTIONS(&commit.image),
        { 't', "cache", CMD_STRING, &commit.cache, "CACHE", "cache mode of the images" },
        { 'b', "base", CMD_STRING, &commit.base_name, "FILE",
          "image of the chain to commit into; implies -d" },
        { 'r', "rate-limit", CMD_SIZE, &rate, "BYTES",
          "limit the copy to this many bytes per second" },
        { 'd', "drop", CMD_FLAG, &commit.keep_top, NULL, "keep the content of the overlay" },
        { 0, "bitmaps", CMD_FLAG, &commit.merge_bitmaps, NULL,
          "merge the overlay's bitmaps into those of the base" },
        { 'p', "progress", CMD_FLAG, &show_progress, NULL, "show the progress" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        RESULT_OPTION(&format),
        CMD_OPTIONS_END,
    };

    int status = cmd_parse_image(&cmd_commit, options, argc, argv, &commit.filename);
    if (status != CMD_RUN)
        return status;

    struct blk_error err = BLK_ERROR_INIT;
    if (open_chain(&commit, &err) < 0)
        return report_error(&err);
    commit.bytes_per_second = rate.value;
    if (commit.base_name)
        commit.keep_top = true;
    bool human = format == OUTPUT_HUMAN;
    status = do_commit(&commit, show_progress && !quiet && human,
                       result_new(format, &cmd_commit, commit.filename));
    if (status == EXIT_OK && !quiet && human)
        printf("Image committed.\n");
    return status;
}
