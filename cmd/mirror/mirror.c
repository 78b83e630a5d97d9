#include "cmd/mirror/mirror.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/bytes.h"
#include "blockcore/copy.h"
#include "blockcore/difference.h"
#include "blockcore/memory.h"
#include "cmd/common/backing_name.h"
#include "cmd/common/create_options.h"
#include "cmd/common/same_file.h"

#define DEFAULT_WORKERS 4
#define MAX_WORKERS 16
#define PROOF_GRANULARITY_BITS 20

/* What the command line says. */
struct request {
    struct image_args source, target;
    const char *source_name, *target_name;
    bool top; /* copy only what the source itself holds */
    struct cmd_list creation, overlays;
    const char *source_cache, *target_cache, *witness;
    unsigned workers;
    uint64_t bytes_per_second;
    bool compressed, show_progress;
};

struct mirror {
    const struct request *request;
    struct blk_node *source, *target;
    struct blk_node *format; /* the source without filters */
    struct progress progress;
};

/* ---- the proof ---- */

int mirror_prove(struct blk_node *source, struct blk_node *target, unsigned workers,
                 struct blk_error *err)
{
    const struct blk_difference_params params = {
        .first = source,
        .second = target,
        .bytes = u64_max(blk_size(source), blk_size(target)),
        .workers = workers,
    };
    struct blk_dirty_bitmap *marks;
    uint64_t start, bytes;

    if (!params.bytes)
        return 0;
    int ret = blk_dirty_bitmap_new("differences", params.bytes, PROOF_GRANULARITY_BITS, &marks, err);
    if (ret < 0)
        return ret;
    ret = blk_difference_mark(&params, marks, err);
    if (ret == 0 && blk_dirty_bitmap_next(marks, 0, params.bytes, &start, &bytes))
        ret = blk_fail_why(err, EIO, "they differ", "comparing '%s' with '%s' from offset %" PRIu64,
                           target->name, source->name, start);
    blk_dirty_bitmap_free(marks);
    return ret;
}

/* ---- the copy ---- */

/* A copy of the top layer stands on what the source stands on. */
static void name_backing(const struct mirror *mirror, struct blk_options *creation)
{
    const struct request *request = mirror->request;
    struct blk_node *backing = blk_child(mirror->format, BLK_ROLE_BACKING);
    if (!request->top || !backing)
        return;
    BLK_AUTOFREE char *path = blk_resolve_backing_name(blk_bottom(mirror->format)->name,
                                                       mirror->format->backing_name);
    BLK_AUTOFREE char *name = backing_name_for_header(request->target_name, path);
    blk_options_set(creation, "backing_file", name);
    blk_options_set(creation, "backing_fmt", blk_skip_filters(backing)->driver->name);
}

static int make_target(struct mirror *mirror, struct blk_error *err)
{
    const struct request *request = mirror->request;
    struct blk_create create = {
        .filename = request->target_name,
        .driver = image_driver(request->target.format ? request->target.format
                                                      : mirror->format->driver->name, err),
        .flags = BLK_WRITABLE | BLK_UNMAP,
    };
    struct option_tables tables;

    int ret = create.driver ? image_cache(request->target_cache, &create.cache, err) : -EINVAL;
    if (ret == 0)
        ret = create_tables(create.driver, request->target_name, &tables, err);
    if (ret < 0)
        return ret;
    if (request->top && !create_options_has(&tables, "backing_file"))
        return blk_fail_why(err, ENOTSUP, "the format has no backing files", "creating '%s' (%s)",
                            request->target_name, create.driver->name);

    create.options = blk_options_new();
    struct blk_options *defaults = image_defaults(&request->target);
    create.defaults = defaults;
    ret = create_options_parse(&request->creation, &tables, create.options, err);
    if (ret == 0) {
        name_backing(mirror, create.options);
        blk_options_setf(create.options, "size", "%" PRIu64, blk_size(mirror->source));
        ret = blk_create(&create, &mirror->target, err);
    }
    blk_options_free(defaults);
    blk_options_free(create.options);
    return ret;
}

static int copy(struct mirror *mirror, struct blk_error *err)
{
    const struct request *request = mirror->request;
    const struct blk_copy_params params = {
        .source = mirror->source,
        .target = mirror->target,
        .bytes = blk_size(mirror->source),
        .only_allocated = request->top,
        .base = blk_child(mirror->format, BLK_ROLE_BACKING),
        .target_reads_zero = mirror->target->reads_zero,
        .sparse_bytes = 4096,
        .compressed = request->compressed,
        .workers = request->workers,
        .bytes_per_second = request->bytes_per_second,
        .progress = progress_update,
        .opaque = &mirror->progress,
    };

    progress_start(&mirror->progress, request->show_progress);
    int ret = params.bytes ? blk_copy_run(&params, err) : 0;
    progress_finish(&mirror->progress, ret == 0);
    return ret == 0 ? check_not_shrunk(mirror->source, err) : ret;
}

/* Opens the finished target as anybody would, and compares. The source stays open and locked all the time. */
static int prove_target(struct mirror *mirror, struct blk_error *err)
{
    const struct request *request = mirror->request;
    int ret = image_open(&request->target, request->target_name, 0, request->source_cache,
                         &mirror->target, err);
    return ret < 0 ? ret : mirror_prove(mirror->source, mirror->target, request->workers, err);
}

/* ---- the command ---- */

/*
 * Makes the target and proves it. On EXIT_OK both images are open, read-only. A target that turns out wrong
 * after it got its name is left for whoever wants to know why; nothing refers to it.
 */
static int make_and_prove(struct mirror *mirror)
{
    const struct request *request = mirror->request;
    struct blk_error err = BLK_ERROR_INIT;

    int ret = image_open(&request->source, request->source_name, 0, request->source_cache,
                         &mirror->source, &err);
    if (ret < 0)
        return report_error(&err);
    mirror->format = blk_skip_filters(mirror->source);
    ret = check_apart(mirror->source, request->target_name, false, &err);
    if (ret == 0)
        ret = make_target(mirror, &err);
    if (ret == 0)
        ret = copy(mirror, &err);
    if (ret < 0)
        return finish(report_error(&err), &mirror->target, 1);

    int status = finish(EXIT_OK, &mirror->target, 1);
    if (status != EXIT_OK)
        return status;
    if (prove_target(mirror, &err) < 0) {
        blk_left_behind(&err, "'%s' is not a true copy", request->target_name);
        return report_error(&err);
    }
    return EXIT_OK;
}

static int pivot_to_target(struct mirror *mirror)
{
    const struct request *request = mirror->request;
    struct blk_error err = BLK_ERROR_INIT;
    struct pivot pivot = {
        .overlays = blk_xcalloc(request->overlays.count, sizeof(*pivot.overlays)),
        .count = request->overlays.count,
        .witness = request->witness,
        .image = { .lock_wait = request->source.lock_wait },
        .cache = request->target_cache,
    };

    for (size_t i = 0; i < pivot.count; i++)
        pivot.overlays[i].filename = request->overlays.items[i];
    int status;
    if (pivot_prepare(&pivot, request->source_name, request->target_name,
                      blk_skip_filters(mirror->target)->driver->name, &err) < 0) {
        pivot_drop(&pivot);
        blk_left_behind(&err, "'%s' is a proven copy; no overlay was changed",
                        request->target_name);
        status = report_error(&err);
    } else {
        status = pivot_run(&pivot);
    }
    pivot_free(&pivot);
    return status;
}

static int run(int argc, char **argv);

const struct command cmd_mirror = {
    "mirror",
    "Copy an image, prove the copy, and move overlays over to it",
    "[--mode=full|top] [--pivot=overlay]... [--witness=file] [-f fmt] [-O output_fmt] "
    "[-o options] [-c] [-t cache] [-T src_cache] [-m workers] [-r rate_limit] [-p] [-q] "
    "[--object objectdef] [--image-opts] [--lock-wait=seconds] source target",
    run,
};

static int run(int argc, char **argv)
{
    struct request request = { .workers = DEFAULT_WORKERS };
    struct cmd_size workers = { .value = DEFAULT_WORKERS }, rate = { .given = false };
    const char *mode = "full";
    bool quiet = false;
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&request.source),
        { 0, "mode", CMD_STRING, &mode, "MODE", "full, or top: only this layer" },
        { 0, "pivot", CMD_LIST, &request.overlays, "OVERLAY", "an overlay of SOURCE, to stand on TARGET" },
        { 0, "witness", CMD_STRING, &request.witness, "FILE", "journal of the pivot" },
        { 'O', "target-format", CMD_STRING, &request.target.format, "FMT",
          "format of the target; the source's if not given" },
        { 'o', "options", CMD_LIST, &request.creation, "OPTIONS", "options for creating the target" },
        { 'c', "compress", CMD_FLAG, &request.compressed, NULL, "write compressed clusters" },
        { 't', NULL, CMD_STRING, &request.target_cache, "CACHE", "cache mode of what is written" },
        { 'T', NULL, CMD_STRING, &request.source_cache, "CACHE", "cache mode of what is read" },
        { 'm', NULL, CMD_UINT, &workers, "N", "worker threads (4)" },
        { 'r', NULL, CMD_SIZE, &rate, "BYTES", "copy at most so much in a second" },
        { 'p', "progress", CMD_FLAG, &request.show_progress, NULL, "show progress" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    int status = cmd_parse(&cmd_mirror, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    request.top = strcmp(mode, "top") == 0;
    if (!request.top && strcmp(mode, "full") != 0)
        return report_failure("--mode: '%s' is neither full nor top", mode);
    if (operands.count != 2)
        return report_usage(&cmd_mirror, "expects a source and a target");
    if (workers.value < 1 || workers.value > MAX_WORKERS)
        return report_usage(&cmd_mirror, "-m must be 1 to %d", MAX_WORKERS);
    if (request.witness && !request.overlays.count)
        return report_usage(&cmd_mirror, "--witness goes with --pivot");
    request.source_name = operands.items[0];
    request.target_name = operands.items[1];
    request.target.lock_wait = request.source.lock_wait;
    request.workers = (unsigned)workers.value;
    request.bytes_per_second = rate.value;
    request.show_progress = request.show_progress && !quiet;

    struct mirror mirror = { .request = &request };
    status = make_and_prove(&mirror);
    if (status == EXIT_OK && request.overlays.count)
        status = pivot_to_target(&mirror);
    struct blk_node *roots[] = { mirror.source, mirror.target };
    return finish(status, roots, 2);
}
