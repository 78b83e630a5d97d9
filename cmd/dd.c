/* SPDX-License-Identifier: MIT */
/*
 * blkimg dd: copies a range of an image, with dd's operands. Blocks are only a unit for them: the
 * copy engine moves the data in pieces of its own.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "blockcore/base/bytes.h"
#include "blockcore/graph/options.h"
#include "blockcore/jobs/copy/copy.h"
#include "cmd/common/common.h"
#include "cmd/common/same_file.h"

static int dd_main(int argc, char **argv);

const struct command cmd_dd = {
    .name = "dd",
    .summary = "Copy a range of an image to a new one",
    .usage = "[bs=block_size] [count=blocks] [skip=blocks] [seek=blocks] if=input of=output",
    .run = dd_main,
};

#define DEFAULT_BLOCK_BYTES 512
#define WORKERS 4
/* Zeroes of this length are left out, as convert does by default: the content is what counts. */
#define SPARSE_BYTES (4 * KIB)

struct dd_request {
    const char *input, *output;
    uint64_t block_bytes;
    uint64_t count, skip, seek; /* blocks; count UINT64_MAX: all */
    struct image_args source, target;
    enum output_format format;
};

/* The bytes to copy, and from where to where. */
struct part {
    uint64_t from, bytes, to;
    uint64_t target_bytes;
    bool past_end;  /* more is skipped than there is: a warning, as in every dd, and no failure */
    uint64_t moved; /* bytes read and written */
};

/* ---- operands ---- */

static int parse_block_size(const char *text, uint64_t *bytes)
{
    int status = cmd_size_parse("bs", text, bytes);
    if (status == 0 && (*bytes < 1 || *bytes > INT_MAX))
        return report_failure("bs: '%s' is not between 1 and %d", text, INT_MAX);
    return status;
}

/* "name=value". Returns an exit status. */
static int parse_operand(const char *operand, struct dd_request *request)
{
    struct {
        const char *name;
        const char **text;
        uint64_t *blocks;
    } names[] = {
        { "if", &request->input, NULL },    { "of", &request->output, NULL },
        { "count", NULL, &request->count }, { "skip", NULL, &request->skip },
        { "seek", NULL, &request->seek },
    };
    size_t length = strcspn(operand, "=");
    const char *value = operand + length + (operand[length] == '=');

    if (length == 2 && strncmp(operand, "bs", 2) == 0)
        return parse_block_size(value, &request->block_bytes);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strlen(names[i].name) != length || strncmp(operand, names[i].name, length) != 0)
            continue;
        if (names[i].blocks)
            return cmd_size_parse(names[i].name, value, names[i].blocks);
        *names[i].text = value;
        return EXIT_OK;
    }
    return report_usage(&cmd_dd, "unknown operand '%s'", operand);
}

/* Blocks as bytes; too many become an offset past the end of every image. */
static uint64_t blocks_to_bytes(uint64_t blocks, uint64_t block_bytes)
{
    return blocks > BLK_MAX_BYTES / block_bytes ? BLK_MAX_BYTES : blocks * block_bytes;
}

/* As in qemu-img, blocks are counted from the start of the input: skipped ones are among them. */
static struct part choose_part(const struct dd_request *request, uint64_t input_bytes)
{
    uint64_t skip = blocks_to_bytes(request->skip, request->block_bytes);
    uint64_t end = u64_min(input_bytes, blocks_to_bytes(request->count, request->block_bytes));
    struct part part = {
        .from = skip,
        .bytes = skip < end ? end - skip : 0,
        .to = blocks_to_bytes(request->seek, request->block_bytes),
        .past_end = skip > end,
    };
    part.target_bytes = part.bytes ? part.to + part.bytes : 0;
    return part;
}

/* ---- copying ---- */

static int create_output(const struct dd_request *request, uint64_t bytes, struct blk_node **target,
                         struct blk_error *err)
{
    const struct blk_driver *driver = image_driver_of_new(request->target.format, err);
    if (!driver)
        return -EINVAL;
    const struct image_creation creation = {
        .name = request->output,
        .driver = driver,
        .options = blk_options_new(),
        .flags = BLK_WRITABLE | BLK_UNMAP,
    };
    blk_options_setf(creation.options, "size", "%" PRIu64, round_up(bytes, BLK_SECTOR_BYTES));
    int ret = image_create(&request->target, &creation, target, err);
    blk_options_free(creation.options);
    return ret;
}

static int copy(struct blk_node *source, struct blk_node *target, struct part *part,
                struct blk_error *err)
{
    struct blk_copy_params params = {
        .source = source,
        .source_offset = part->from,
        .target = target,
        .target_offset = part->to,
        .bytes = part->bytes,
        .target_reads_zero = target->reads_zero,
        .sparse_bytes = SPARSE_BYTES,
        .in_order = true,
        .moved = &part->moved,
        .workers = WORKERS,
    };
    int ret = part->bytes ? blk_copy_run(&params, err) : 0;
    return ret < 0 ? ret : check_not_shrunk(source, err);
}

static int dd(const struct dd_request *request)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *roots[2] = { NULL, NULL }; /* source and target */

    int ret = image_open(&request->source, request->input, 0, NULL, &roots[0], &err);
    if (ret < 0)
        return report_error(&err);
    struct part part = choose_part(request, round_up(blk_size(roots[0]), BLK_SECTOR_BYTES));
    if (part.past_end)
        report_failure("%s: cannot skip to specified offset", request->input);
    if (part.target_bytes > BLK_MAX_BYTES)
        ret = blk_fail(&err, EFBIG, "creating '%s'", request->output);
    if (ret == 0)
        ret = create_output(request, part.target_bytes, &roots[1], &err);
    if (ret == 0)
        ret = copy(roots[0], roots[1], &part, &err);
    if (ret < 0)
        blk_fail_if_unset(&err, -ret, "copying to '%s'", request->output);
    json_t *result = result_new(request->format, &cmd_dd, request->output);
    if (roots[1])
        result_set_bytes(result, "virtual-size", blk_size(roots[1]));
    result_set_bytes(result, "bytes", part.moved);
    return finish(ret < 0 ? report_error(&err) : EXIT_OK, roots, 2, result);
}

static int dd_main(int argc, char **argv)
{
    struct dd_request request = { .block_bytes = DEFAULT_BLOCK_BYTES, .count = UINT64_MAX };
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&request.source),
        { 'O', "target-format", CMD_STRING, &request.target.format, "FMT",
          "format of the output (raw)" },
        IN_PLACE_OPTION(&request.target),
        RESULT_OPTION(&request.format),
        FORCE_OPTION(&request.target),
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    request.target.format = "raw";
    int status = cmd_parse(&cmd_dd, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    for (size_t i = 0; i < operands.count; i++) {
        status = parse_operand(operands.items[i], &request);
        if (status)
            return status;
    }
    if (!request.input || !request.output)
        return report_usage(&cmd_dd, "expects both if=INPUT and of=OUTPUT");
    request.target.lock_wait = request.source.lock_wait;
    return dd(&request);
}
