#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/memory.h"
#include "cmd/common/backing_name.h"
#include "cmd/common/same_file.h"
#include "cmd/mirror/mirror.h"

#define PROVING_WORKERS 4

/* ---- preparing ---- */

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static int open_overlay(const struct pivot *pivot, struct pivot_overlay *overlay,
                        struct blk_error *err)
{
    int ret = image_open(&pivot->image, overlay->filename, BLK_WRITABLE | BLK_NO_BACKING,
                         pivot->cache, &overlay->root, err);
    if (ret < 0)
        return ret;
    struct blk_node *node = blk_skip_filters(overlay->root);
    if (!node->driver->change_backing)
        return blk_fail_why(err, ENOTSUP, "its format has no backing files", "'%s' (%s)",
                            overlay->filename, node->driver->name);
    if (!node->backing_name)
        return blk_fail_why(err, EINVAL, "it has no backing file", "'%s'", overlay->filename);
    return 0;
}

static int prepare_overlay(const struct pivot *pivot, struct pivot_overlay *overlay,
                           const char *from, const char *to, const char *to_format,
                           struct blk_error *err)
{
    int ret = open_overlay(pivot, overlay, err);
    if (ret < 0)
        return ret;
    const struct blk_node *node = blk_skip_filters(overlay->root);
    BLK_AUTOFREE char *backing = blk_resolve_backing_name(overlay->filename, node->backing_name);
    if (from && !is_same_file(backing, from))
        return blk_fail_why(err, EINVAL, "its backing file is another one", "'%s' over '%s'",
                            overlay->filename, from);
    if (is_same_file(overlay->filename, to))
        return blk_fail_why(err, EINVAL, "an image cannot be its own backing file", "'%s'",
                            overlay->filename);
    overlay->old_name = blk_xstrdup(node->backing_name);
    overlay->old_format = blk_xstrdup(node->backing_format);
    overlay->new_name = backing_name_for_header(overlay->filename, to);
    overlay->new_format = blk_xstrdup(to_format);
    return 0;
}

int pivot_prepare(struct pivot *pivot, const char *from, const char *to, const char *to_format,
                  struct blk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < pivot->count && ret == 0; i++)
        ret = prepare_overlay(pivot, &pivot->overlays[i], from, to, to_format, err);
    return ret;
}

void pivot_drop(struct pivot *pivot)
{
    for (size_t i = 0; i < pivot->count; i++) {
        blk_drop(pivot->overlays[i].root);
        pivot->overlays[i].root = NULL;
    }
}

void pivot_free(struct pivot *pivot)
{
    for (size_t i = 0; i < pivot->count; i++) {
        blk_drop(pivot->overlays[i].backing); /* only read from */
        free(pivot->overlays[i].old_name);
        free(pivot->overlays[i].old_format);
        free(pivot->overlays[i].new_name);
        free(pivot->overlays[i].new_format);
    }
    free(pivot->overlays);
}

/* ---- the switch ---- */

static int set_backing(struct pivot_overlay *overlay, const char *name, const char *format,
                       struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(overlay->root);
    int ret = node->driver->change_backing(node, name, format, err);
    return ret < 0 ? blk_fail_if_unset(err, -ret, "giving '%s' the backing file '%s'",
                                       overlay->filename, name) : 0;
}

static int switch_all(struct pivot *pivot, struct blk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < pivot->count && ret == 0; i++) {
        struct pivot_overlay *overlay = &pivot->overlays[i];
        /* Once the write has been tried nobody knows: it counts as switched and gets put back. */
        overlay->switched = true;
        ret = set_backing(overlay, overlay->new_name, overlay->new_format, err);
    }
    return ret;
}

/* A header whose write failed is poisoned in this process: it is opened anew to be put back. */
static int put_back_one(struct pivot *pivot, struct pivot_overlay *overlay, struct blk_error *err)
{
    blk_drop(overlay->root);
    overlay->root = NULL;
    int ret = open_overlay(pivot, overlay, err);
    if (ret == 0 && !same_text(blk_skip_filters(overlay->root)->backing_name, overlay->old_name))
        ret = set_backing(overlay, overlay->old_name, overlay->old_format, err);
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
        blk_left_behind(&err, "'%s' may name its old or its new backing file; both hold the same",
                        overlay->filename);
        report_error(&err);
        all = false;
    }
    return all;
}

static int close_all(struct pivot *pivot)
{
    struct blk_node **roots = blk_xcalloc(pivot->count, sizeof(*roots));

    for (size_t i = 0; i < pivot->count; i++) {
        roots[i] = pivot->overlays[i].root;
        pivot->overlays[i].root = NULL;
    }
    int status = finish(EXIT_OK, roots, pivot->count);
    free(roots);
    return status;
}

int pivot_run(struct pivot *pivot)
{
    struct blk_error err = BLK_ERROR_INIT;
    int status = EXIT_FAILED;

    int ret = witness_begin(pivot, &err);
    if (ret == 0)
        ret = switch_all(pivot, &err);
    if (ret == 0) {
        status = close_all(pivot);
        if (status == EXIT_OK)
            ret = witness_done(pivot, &err);
        if (ret < 0)
            status = report_error(&err);
        if (status == EXIT_OK)
            return EXIT_OK;
    } else {
        report_error(&err);
    }

    /* Where something could not be put back the witness keeps its "begin", for --recover. */
    blk_error_clear(&err);
    if (put_back(pivot) && witness_undone(pivot, &err) < 0)
        report_error(&err);
    pivot_drop(pivot);
    return status;
}

/* ---- the command ---- */

struct request {
    struct image_args image, to_image;
    const char *to, *cache, *source_cache, *witness, *recover;
    bool trust, undo;
};

/*
 * Proves that what the overlay stands on shows the same as `to`. The overlay is open for writing and the old backing file
 * stays open too, so that neither changes before the switch.
 */
static int prove_overlay(const struct request *request, struct pivot_overlay *overlay,
                         struct blk_node *to, struct blk_error *err)
{
    struct image_args args = { .format = overlay->old_format, .lock_wait = request->image.lock_wait };
    BLK_AUTOFREE char *name = blk_resolve_backing_name(overlay->filename, overlay->old_name);

    int ret = image_open(&args, name, 0, request->source_cache, &overlay->backing, err);
    return ret < 0 ? ret : mirror_prove(overlay->backing, to, PROVING_WORKERS, err);
}

static int prepare_and_prove(const struct request *request, struct pivot *pivot,
                             struct blk_node *to, struct blk_error *err)
{
    int ret = pivot_prepare(pivot, NULL, request->to, blk_skip_filters(to)->driver->name, err);
    for (size_t i = 0; i < pivot->count && ret == 0 && !request->trust; i++)
        ret = prove_overlay(request, &pivot->overlays[i], to, err);
    return ret;
}

static int pivot_overlays(const struct request *request, const struct cmd_operands *operands)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *to = NULL;
    struct pivot pivot = {
        .overlays = blk_xcalloc(operands->count, sizeof(*pivot.overlays)),
        .count = operands->count,
        .witness = request->witness,
        .image = request->image,
        .cache = request->cache,
    };

    for (size_t i = 0; i < operands->count; i++)
        pivot.overlays[i].filename = operands->items[i];
    int ret = image_open(&request->to_image, request->to, 0, request->source_cache, &to, &err);
    if (ret == 0)
        ret = prepare_and_prove(request, &pivot, to, &err);
    int status;
    if (ret < 0) {
        pivot_drop(&pivot);
        status = report_error(&err);
    } else {
        status = pivot_run(&pivot);
    }
    pivot_free(&pivot);
    blk_drop(to); /* only read from */
    return status;
}

/* Finishes (or, with --undo, takes back) what a witness says was begun. */
static int recover(const struct request *request)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct pivot pivot = { .witness = request->recover, .image = request->image,
                           .cache = request->cache };
    bool begun = false, done = false;
    int status = EXIT_OK;

    int ret = witness_read(request->recover, &pivot, &begun, &done, &err);
    for (size_t i = 0; i < pivot.count && ret == 0 && begun && !done; i++) {
        struct pivot_overlay *overlay = &pivot.overlays[i];
        const char *name = request->undo ? overlay->old_name : overlay->new_name;
        const char *format = request->undo ? overlay->old_format : overlay->new_format;
        ret = open_overlay(&pivot, overlay, &err);
        if (ret == 0 && !same_text(blk_skip_filters(overlay->root)->backing_name, name))
            ret = set_backing(overlay, name, format, &err);
    }
    if (ret < 0) {
        pivot_drop(&pivot);
        status = report_error(&err);
    } else if (begun && !done) {
        status = close_all(&pivot);
        if (status == EXIT_OK)
            ret = request->undo ? witness_undone(&pivot, &err) : witness_done(&pivot, &err);
        if (ret < 0)
            status = report_error(&err);
    }
    for (size_t i = 0; i < pivot.count; i++)
        free((char *)pivot.overlays[i].filename); /* the witness's own here */
    pivot_free(&pivot);
    return status;
}

static int run(int argc, char **argv);

const struct command cmd_pivot = {
    "pivot",
    "Give several overlays another backing file of the same content",
    "[--object objectdef] [--image-opts] [-f fmt] [-F to_fmt] [-t cache] [-T src_cache] [--trust] "
    "[--witness=file] [--lock-wait=seconds] --to=new overlay... | --recover=witness [--undo]",
    run,
};

static int run(int argc, char **argv)
{
    struct request request = { .image = IMAGE_ARGS_INIT, .to_image = IMAGE_ARGS_INIT };
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&request.image),
        { 0, "to", CMD_STRING, &request.to, "FILE", "the new backing file" },
        { 'F', "to-format", CMD_STRING, &request.to_image.format, "FMT", "its format" },
        { 't', NULL, CMD_STRING, &request.cache, "CACHE", "cache mode of the overlays" },
        { 'T', NULL, CMD_STRING, &request.source_cache, "CACHE", "cache mode of the backing files" },
        { 0, "trust", CMD_FLAG, &request.trust, NULL, "do not compare old and new backing file" },
        { 0, "witness", CMD_STRING, &request.witness, "FILE", "journal of the switch" },
        { 0, "recover", CMD_STRING, &request.recover, "FILE", "finish what this witness says was begun" },
        { 0, "undo", CMD_FLAG, &request.undo, NULL, "with --recover: take it back instead" },
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    int status = cmd_parse(&cmd_pivot, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (request.undo && !request.recover)
        return report_usage(&cmd_pivot, "--undo goes with --recover");
    if (request.recover)
        return operands.count || request.to
                   ? report_usage(&cmd_pivot, "--recover takes all from its witness")
                   : recover(&request);
    if (!operands.count || !request.to)
        return report_usage(&cmd_pivot, "expects overlays and --to");
    request.to_image.lock_wait = request.image.lock_wait;
    return pivot_overlays(&request, &operands);
}
