/* SPDX-License-Identifier: MIT */
/*
 * A pivot as one transaction: every overlay is opened, locked and compared before the first header
 * is written, and those that were written are put back if a later step fails.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/backing.h"
#include "blockcore/graph/names.h"
#include "cmd/common/backing.h"
#include "cmd/common/same_content.h"
#include "cmd/pivot/pivot.h"

void pivot_init(struct pivot *pivot, const char *const *names, size_t count)
{
    *pivot = (struct pivot){ .workers = PIVOT_WORKERS, .witness_fd = -1 };
    if (!count)
        return;
    pivot->overlays = blk_xcalloc(count, sizeof(*pivot->overlays));
    pivot->count = count;
    for (size_t i = 0; i < count; i++)
        pivot->overlays[i].filename = blk_xstrdup(names[i]);
}

void pivot_free(struct pivot *pivot)
{
    for (size_t i = 0; i < pivot->count; i++) {
        struct pivot_overlay *overlay = &pivot->overlays[i];
        /* What is still open here was not switched, and why has been said. */
        blk_drop(overlay->root);
        blk_drop(overlay->old_backing);
        blk_drop(overlay->new_backing);
        free(overlay->filename);
        free(overlay->old_name);
        free(overlay->old_format);
        free(overlay->new_name);
        free(overlay->new_format);
    }
    free(pivot->overlays);
    witness_close(pivot);
}

/* ---- opening ---- */

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

bool pivot_names(const struct pivot_overlay *overlay, const char *name, const char *format)
{
    const struct blk_node *node = blk_skip_filters(overlay->root);
    return same_text(node->backing_name, name) && same_text(node->backing_format, format);
}

int pivot_open_overlay(const struct pivot *pivot, struct pivot_overlay *overlay,
                       struct blk_error *err)
{
    int ret = image_open(&pivot->image, overlay->filename, BLK_WRITABLE | BLK_NO_BACKING,
                         pivot->cache, &overlay->root, err);
    if (ret < 0)
        return ret;
    const struct blk_node *node = blk_skip_filters(overlay->root);
    ret = blk_require(node, BLK_BACKING, err, "'%s'", overlay->filename);
    if (ret < 0)
        return ret;
    if (!node->backing_name)
        return blk_fail_why(err, EINVAL, "it has no backing file", "'%s'", overlay->filename);
    return 0;
}

/* What the overlay's file is called, whatever was said to open it. */
static const char *file_of(const struct pivot_overlay *overlay)
{
    return blk_bottom(overlay->root)->name;
}

static char *path_of_backing(const struct pivot_overlay *overlay, const char *name)
{
    return blk_resolve_backing_name(file_of(overlay), name);
}

/* Locks would tell that an overlay is given twice, but not say it. */
static int check_once(const struct pivot *pivot, size_t index, struct blk_error *err)
{
    for (size_t i = 0; i < index; i++)
        if (blk_same_file(pivot->overlays[i].filename, pivot->overlays[index].filename))
            return blk_fail_why(err, EINVAL, "it is given twice", "overlay '%s'",
                                pivot->overlays[index].filename);
    return 0;
}

static int pivot_open_one(const struct pivot *pivot, struct pivot_overlay *overlay,
                          const char *from, const char *to, struct blk_error *err)
{
    if (blk_same_file(overlay->filename, to))
        return blk_fail_why(err, EINVAL, "an image cannot be its own backing file", "overlay '%s'",
                            overlay->filename);
    int ret = pivot_open_overlay(pivot, overlay, err);
    if (ret < 0)
        return ret;
    const struct blk_node *node = blk_skip_filters(overlay->root);
    BLK_AUTOFREE char *backing = path_of_backing(overlay, node->backing_name);
    if (from && !blk_same_file(backing, from))
        return blk_fail_why(err, EINVAL, "it has a different backing file", "overlay '%s' of '%s'",
                            overlay->filename, from);
    overlay->old_name = blk_xstrdup(node->backing_name);
    overlay->old_format = blk_xstrdup(node->backing_format);
    return blk_identity_of(blk_skip_filters(overlay->root), &overlay->old_identity, err);
}

int pivot_open(struct pivot *pivot, const char *from, const char *to, struct blk_error *err)
{
    int ret = witness_open(pivot, err);
    for (size_t i = 0; i < pivot->count && ret == 0; i++) {
        ret = check_once(pivot, i, err);
        if (ret == 0)
            ret = pivot_open_one(pivot, &pivot->overlays[i], from, to, err);
    }
    return ret;
}

/* ---- the proofs ---- */

int pivot_open_backing(const struct pivot *pivot, const struct pivot_overlay *overlay,
                       const char *name, const char *format, struct blk_node **backing,
                       struct blk_error *err)
{
    const struct image_args args = {
        .format = format,
        .lock_wait = pivot->image.lock_wait,
        .trust = pivot->image.trust,
    };
    BLK_AUTOFREE char *path = path_of_backing(overlay, name);
    return image_open(&args, path, 0, pivot->source_cache, backing, err);
}

int pivot_check_ids(const struct pivot *pivot, const struct pivot_overlay *overlay,
                    struct blk_node *backing, struct blk_error *err)
{
    return pivot->image.trust ? 0
                              : blk_identity_check(blk_skip_filters(overlay->root), backing, err);
}

int pivot_prove_old(struct pivot *pivot, struct blk_node *node, struct blk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < pivot->count && ret == 0; i++) {
        struct pivot_overlay *overlay = &pivot->overlays[i];
        ret = pivot_open_backing(pivot, overlay, overlay->old_name, overlay->old_format,
                                 &overlay->old_backing, err);
        if (ret == 0)
            ret = pivot_check_ids(pivot, overlay, overlay->old_backing, err);
        if (ret == 0)
            ret = prove_same_content(overlay->old_backing, node, pivot->workers, err);
        if (ret < 0)
            blk_context(err, "overlay '%s'", overlay->filename);
        overlay->proved = ret == 0;
    }
    return ret;
}

static int plan_one(const struct pivot *pivot, struct pivot_overlay *overlay, const char *to,
                    struct blk_node *to_node, struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(overlay->root);

    overlay->new_name = backing_name_for_header(file_of(overlay), to);
    overlay->new_format = blk_xstrdup(blk_format_name(blk_skip_filters(to_node)));
    int ret = blk_can_change_backing(node, overlay->new_name, overlay->new_format, err);
    if (ret < 0)
        return ret;
    ret = pivot_open_backing(pivot, overlay, overlay->new_name, overlay->new_format,
                             &overlay->new_backing, err);
    return ret < 0 ? ret : prove_same_content(overlay->new_backing, to_node, pivot->workers, err);
}

int pivot_plan(struct pivot *pivot, const char *to, struct blk_node *node, struct blk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < pivot->count && ret == 0; i++)
        ret = plan_one(pivot, &pivot->overlays[i], to, node, err);
    return ret;
}

/* ---- the switch ---- */

int pivot_set_backing(struct pivot_overlay *overlay, const char *name, const char *format,
                      struct blk_node *backing, struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(overlay->root);

    int ret = overlay->proved ? 0 : blk_identity_lose(node, false, err);
    if (ret == 0)
        ret = blk_identity_move(node, backing, err);
    return ret < 0 ? ret : blk_change_backing(node, name, format, err);
}

static int pivot_switch_all(struct pivot *pivot, struct blk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < pivot->count && ret == 0; i++) {
        struct pivot_overlay *overlay = &pivot->overlays[i];
        /* Once the write has been tried nobody knows: it counts as switched and gets put back. */
        overlay->switched = true;
        ret = pivot_set_backing(overlay, overlay->new_name, overlay->new_format,
                                overlay->new_backing, err);
    }
    return ret;
}

static struct blk_node *take(struct blk_node **root)
{
    struct blk_node *taken = *root;
    *root = NULL;
    return taken;
}

/* The overlays first: what they were compared with stays locked until they are written. */
int pivot_close(struct pivot *pivot)
{
    size_t count = 3 * pivot->count;
    struct blk_node **roots = blk_xcalloc(count + PIVOT_COMPARED, sizeof(*roots));

    for (size_t i = 0; i < pivot->count; i++) {
        struct pivot_overlay *overlay = &pivot->overlays[i];
        roots[i] = take(&overlay->root);
        roots[pivot->count + i] = take(&overlay->old_backing);
        roots[2 * pivot->count + i] = take(&overlay->new_backing);
    }
    for (size_t i = 0; i < PIVOT_COMPARED; i++)
        if (pivot->compared[i])
            roots[count++] = take(pivot->compared[i]);
    int status = close_roots(EXIT_OK, true, roots, count, pivot->result);
    free(roots);
    return status;
}

/* With the next change of the backing file. */
static void restore_identity(struct pivot_overlay *overlay)
{
    struct blk_node *node = blk_skip_filters(overlay->root);
    if (!blk_id_is_none(&overlay->old_identity.parent) || overlay->old_identity.bitmap_count)
        blk_identity_set(node, &overlay->old_identity);
}

/* A header whose write failed is poisoned in this process: it is reopened to restore it. */
static int put_back_one(struct pivot *pivot, struct pivot_overlay *overlay, struct blk_error *err)
{
    blk_drop(overlay->root);
    overlay->root = NULL;
    int ret = pivot_open_overlay(pivot, overlay, err);
    if (ret == 0 && !pivot_names(overlay, overlay->old_name, overlay->old_format)) {
        restore_identity(overlay);
        ret = blk_change_backing(blk_skip_filters(overlay->root), overlay->old_name,
                                 overlay->old_format, err);
    }
    if (ret < 0)
        return ret;
    ret = blk_close(overlay->root, NULL, err);
    overlay->root = NULL;
    return ret;
}

/* Returns whether all are what they were. */
static bool put_back(struct pivot *pivot)
{
    bool all = true;

    for (size_t i = 0; i < pivot->count; i++) {
        struct pivot_overlay *overlay = &pivot->overlays[i];
        struct blk_error err = BLK_ERROR_INIT;
        if (!overlay->switched || put_back_one(pivot, overlay, &err) == 0)
            continue;
        blk_left_behind(&err, "'%s' names its old or its new backing file; both have the same",
                        overlay->filename);
        report_error(&err);
        all = false;
    }
    return all;
}

static int begin(struct pivot *pivot, struct blk_error *err)
{
    if (blk_cancelled())
        return blk_fail_why(err, ECANCELED, "stopped by a signal", "pivot");
    return witness_begin(pivot, err);
}

int pivot_run(struct pivot *pivot)
{
    struct blk_error err = BLK_ERROR_INIT;

    if (begin(pivot, &err) < 0)
        return report_error(&err);
    int status = pivot_switch_all(pivot, &err) < 0 ? report_error(&err) : pivot_close(pivot);
    if (status != EXIT_OK) {
        /* Where something could not be put back the witness keeps its "begin", for --recover. */
        blk_error_clear(&err);
        if (put_back(pivot)) {
            report_failure("pivot: every overlay has its old backing file");
            if (witness_undone(pivot, &err) < 0)
                report_error(&err);
        }
        return status;
    }
    /* A "done" that failed may still get to the disk: it must stay true. */
    if (witness_done(pivot, &err) == 0)
        return EXIT_OK;
    blk_left_behind(&err, "every overlay has its new backing file; 'blkimg pivot --recover' "
                          "completes the witness");
    return report_error(&err);
}
