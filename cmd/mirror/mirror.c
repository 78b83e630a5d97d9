/* SPDX-License-Identifier: MIT */
/*
 * `blkimg mirror`: the copy has no name until it is complete, it is proved once it has been closed,
 * and only then do overlays move to it.
 */
#include "cmd/mirror/mirror.h"

#include <errno.h>
#include <string.h>

#include "cmd/common/same_file.h"
#include "cmd/pivot/pivot.h"

#define DEFAULT_WORKERS 4
#define MAX_WORKERS 16

static int mirror_main(int argc, char **argv);

const struct command cmd_mirror = {
    .name = "mirror",
    .summary = "Copy an image, verify the copy, and move overlays to it",
    .usage = "source target",
    .run = mirror_main,
    .needs_a_moment = true,
};

/* ---- the work ---- */

/*
 * What overlays there are is opened and locked before anything is copied: that one of them is in
 * use should not come out when all the rest is done.
 */
static int open_all(struct mirror *mirror, struct pivot *pivot, struct blk_error *err)
{
    const struct mirror_request *request = mirror->request;

    int ret =
        image_open(&request->source, request->source_name, request->guest_io ? BLK_WRITABLE : 0,
                   request->source_cache, &mirror->source, err);
    if (ret < 0)
        return ret;
    mirror->format = blk_skip_filters(mirror->source);
    ret = pivot_open(pivot, blk_bottom(mirror->format)->name, request->target_name, err);
    return ret < 0 ? ret : pivot_prove_old(pivot, mirror->source, err);
}

static int make_copy(struct mirror *mirror, struct blk_error *err)
{
    const struct mirror_request *request = mirror->request;

    int ret = mirror_make_target(mirror, err);
    if (ret < 0)
        return ret;
    progress_start(&mirror->progress, request->show_progress);
    ret = request->guest_io ? mirror_copy_live(mirror, err) : mirror_copy(mirror, NULL, err);
    progress_finish(&mirror->progress, ret == 0);
    return ret == 0 ? check_not_shrunk(mirror->source, err) : ret;
}

/* A failure that says at once what it leaves. */
static int report_with_target(struct mirror *mirror, struct blk_error *err, const char *left)
{
    blk_left_behind(err, "'%s' is %s", mirror->request->target_name, left);
    mirror->left = NULL;
    return report_error(err);
}

/*
 * After the target got its name. It is left whatever fails from here on: it took long to make, and
 * nothing refers to it yet.
 */
static int prove_and_pivot(struct mirror *mirror, struct pivot *pivot)
{
    struct blk_error err = BLK_ERROR_INIT;

    if (mirror_prove_target(mirror, &err) < 0)
        return report_with_target(mirror, &err, "complete, but was not verified");
    mirror->left = "a complete and verified copy";
    if (mirror_carry_identity(mirror, &err) < 0)
        return report_with_target(mirror, &err,
                                  "a verified copy, but may not say which backup it is");
    if (!pivot->count)
        return EXIT_OK;
    if (pivot_plan(pivot, mirror->request->target_name, mirror->target, &err) < 0)
        return report_with_target(mirror, &err, "a verified copy; no overlay was changed");
    return pivot_run(pivot);
}

static int do_mirror(struct mirror *mirror, struct pivot *pivot)
{
    struct blk_error err = BLK_ERROR_INIT;

    int ret = open_all(mirror, pivot, &err);
    if (ret == 0)
        ret = make_copy(mirror, &err);
    int status = ret < 0 ? report_error(&err) : EXIT_OK;
    status = close_roots(status, ret == 0, &mirror->target, 1, pivot->result);
    if (status != EXIT_OK)
        return status;
    mirror->left = "complete, but was not verified";
    return prove_and_pivot(mirror, pivot);
}

static json_t *mirror_describe(enum output_format format, const struct mirror_request *request)
{
    json_t *result = result_new(format, &cmd_mirror, request->source_name);

    result_set_text(result, "target", request->target_name);
    result_set_text(result, "mode", request->top ? "top" : "full");
    result_set_bytes(result, "overlays", request->overlays.count);
    return result;
}

static int mirror_image(const struct mirror_request *request, enum output_format format)
{
    struct mirror mirror = { .request = request };
    struct pivot pivot;
    json_t *result = mirror_describe(format, request);

    pivot_init(&pivot, request->overlays.items, request->overlays.count);
    pivot.compared[0] = &mirror.source;
    pivot.compared[1] = &mirror.target;
    pivot.witness = request->witness;
    pivot.image.lock_wait = request->source.lock_wait;
    pivot.image.trust = request->source.trust;
    pivot.cache = request->target_cache;
    pivot.source_cache = request->source_cache;
    pivot.workers = request->workers;
    pivot.result = result;
    int status = do_mirror(&mirror, &pivot);
    pivot_free(&pivot);
    if (!request->guest_io)
        result_set_bytes(result, "bytes", mirror.bytes_moved);

    /* A guest's writes are kept, bitmaps included, whatever became of the copy. */
    status = close_roots(status, status == EXIT_OK || request->guest_io, &mirror.source, 1, result);
    status = close_roots(status, status == EXIT_OK, &mirror.target, 1, result);
    if (status != EXIT_OK && mirror.left)
        report_failure("mirror: '%s' is %s", request->target_name, mirror.left);
    return finish(status, NULL, 0, result);
}

/* ---- the command ---- */

/* Returns what does not go together, or NULL. */
static const char *mirror_find_conflict(const struct mirror_request *request)
{
    if (request->witness && !request->overlays.count)
        return "--witness needs --pivot";
    if (request->guest_io && request->overlays.count)
        return "--guest-io and --pivot exclude each other: nothing may write to a backing file";
    if (request->guest_io && request->compressed)
        return "--guest-io and -c exclude each other";
    if (request->source.force_share && (request->overlays.count || request->guest_io))
        return "-U excludes --pivot and --guest-io: no other process may change the source";
    return NULL;
}

static int mirror_main(int argc, char **argv)
{
    struct mirror_request request = { .workers = DEFAULT_WORKERS };
    struct cmd_size workers = { .value = DEFAULT_WORKERS }, rate = { .given = false };
    const char *mode = "full";
    enum output_format format = OUTPUT_HUMAN;
    bool quiet = false;
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&request.source),
        { 0, "mode", CMD_STRING, &mode, "full|top", "copy all, or only this layer" },
        { 0, "pivot", CMD_LIST, &request.overlays, "FILE",
          "an overlay of the source to move to the target" },
        { 0, "witness", CMD_STRING, &request.witness, "FILE", "journal of the pivot" },
        { 0, "guest-io", CMD_STRING, &request.guest_io, "FILE",
          "io commands to run on the source during the copy" },
        { 'O', "target-format", CMD_STRING, &request.target.format, "FMT",
          "format of the target (that of the source)" },
        { 'o', "options", CMD_LIST, &request.creation, "OPTIONS",
          "options for creating the target" },
        FORCE_OPTION(&request.target),
        { 'c', "compress", CMD_FLAG, &request.compressed, NULL, "write compressed clusters" },
        IN_PLACE_OPTION(&request.target),
        { 't', "target-cache", CMD_STRING, &request.target_cache, "CACHE",
          "cache mode of what is written" },
        { 'T', "source-cache", CMD_STRING, &request.source_cache, "CACHE",
          "cache mode of what is read" },
        { 'm', "parallel", CMD_UINT, &workers, "N", "worker threads (4)" },
        { 'r', "rate-limit", CMD_SIZE, &rate, "BYTES",
          "limit the copy to this many bytes per second" },
        { 'p', "progress", CMD_FLAG, &request.show_progress, NULL, "show the progress" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        RESULT_OPTION(&format),
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
        return report_usage(&cmd_mirror, "-m takes a number from 1 to %d", MAX_WORKERS);
    const char *conflict = mirror_find_conflict(&request);
    if (conflict)
        return report_usage(&cmd_mirror, "%s", conflict);
    request.source_name = operands.items[0];
    request.target_name = operands.items[1];
    request.target.lock_wait = request.source.lock_wait;
    request.target.trust = request.source.trust;
    request.workers = (unsigned)workers.value;
    request.bytes_per_second = rate.value;
    request.show_progress = request.show_progress && !quiet && format == OUTPUT_HUMAN;
    return mirror_image(&request, format);
}
