/* SPDX-License-Identifier: MIT */
/*
 * blkimg pivot: overlays get another backing file with the same content. The new one is compared
 * with the old one of each overlay; all of them stay locked from then on.
 */
#include "blockcore/base/memory.h"
#include "cmd/pivot/pivot.h"

static int pivot_main(int argc, char **argv);

const struct command cmd_pivot = {
    .name = "pivot",
    .summary = "Move overlays to another backing file with the same content",
    .usage = "[--trust] [--output] --to overlay...\n"
             "--recover [--undo] [--trust] [--output]",
    .run = pivot_main,
};

struct pivot_request {
    struct image_args image, to_image;
    const char *to, *cache, *source_cache, *witness, *recover;
    bool undo;
};

static int prepare_pivot(const struct pivot_request *request, struct pivot *pivot,
                         struct blk_node **to, struct blk_error *err)
{
    int ret = image_open(&request->to_image, request->to, 0, request->source_cache, to, err);
    if (ret == 0)
        ret = pivot_open(pivot, NULL, request->to, err);
    if (ret == 0)
        ret = pivot_plan(pivot, request->to, *to, err);
    return ret < 0 || request->image.trust ? ret : pivot_prove_old(pivot, *to, err);
}

static int pivot_overlays(const struct pivot_request *request, const struct cmd_operands *operands,
                          enum output_format format)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *to = NULL;
    struct pivot pivot;
    json_t *result = result_new(format, &cmd_pivot, request->to);

    result_set_bytes(result, "overlays", operands->count);
    pivot_init(&pivot, operands->items, operands->count);
    pivot.witness = request->witness;
    pivot.image = request->image;
    pivot.compared[0] = &to;
    pivot.cache = request->cache;
    pivot.source_cache = request->source_cache;
    pivot.result = result;
    bool ready = prepare_pivot(request, &pivot, &to, &err) == 0;
    int status = ready ? pivot_run(&pivot) : report_error(&err);
    pivot_free(&pivot);
    return finish(status, &to, 1, result);
}

static int recover_pivot(const struct pivot_request *request, enum output_format format)
{
    const struct recover_request what = {
        .witness = request->recover,
        .image = request->image,
        .cache = request->cache,
        .source_cache = request->source_cache,
        .undo = request->undo,
        .trust = request->image.trust,
    };
    json_t *result = result_new(format, &cmd_pivot, request->recover);
    return finish(pivot_recover(&what, result), NULL, 0, result);
}

static int pivot_main(int argc, char **argv)
{
    struct pivot_request request = { .image = IMAGE_ARGS_INIT, .to_image = IMAGE_ARGS_INIT };
    enum output_format format = OUTPUT_HUMAN;
    const struct cmd_option options[] = {
        WRITTEN_IMAGE_OPTIONS(&request.image),
        { 0, "to", CMD_STRING, &request.to, "FILE", "the new backing file" },
        { 'F', "to-format", CMD_STRING, &request.to_image.format, "FMT", "its format" },
        { 't', "cache", CMD_STRING, &request.cache, "CACHE", "cache mode of the overlays" },
        { 'T', "source-cache", CMD_STRING, &request.source_cache, "CACHE",
          "cache mode of the backing files" },
        { 0, "witness", CMD_STRING, &request.witness, "FILE", "journal of the switch" },
        { 0, "recover", CMD_STRING, &request.recover, "FILE",
          "finish the pivot that this witness records" },
        { 0, "undo", CMD_FLAG, &request.undo, NULL, "with --recover: undo it instead" },
        RESULT_OPTION(&format),
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    int status = cmd_parse(&cmd_pivot, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (request.undo && !request.recover)
        return report_usage(&cmd_pivot, "--undo needs --recover");
    if (request.image.force_share)
        return report_usage(&cmd_pivot, "-U is for reading only; no other process may change "
                                        "the images");
    if (request.recover)
        return operands.count || request.to || request.witness
                   ? report_usage(&cmd_pivot, "--recover takes everything from the witness")
                   : recover_pivot(&request, format);
    if (!operands.count || !request.to)
        return report_usage(&cmd_pivot, "expects --to and at least one overlay");
    request.to_image.lock_wait = request.image.lock_wait;
    request.to_image.trust = request.image.trust;
    return pivot_overlays(&request, &operands, format);
}
