/* SPDX-License-Identifier: MIT */
/* `blkimg convert`: its command line. */
#include <errno.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "blockcore/base/bytes.h"
#include "blockcore/graph/options.h"
#include "cmd/convert/convert.h"

#define DEFAULT_SPARSE_BYTES (4 * KIB)
#define MAX_SPARSE_BYTES (16 * MIB)
#define DEFAULT_WORKERS 4
#define MAX_WORKERS 16

static int convert_main(int argc, char **argv);

const struct command cmd_convert = {
    .name = "convert",
    .summary = "Copy an image, converting its format",
    .usage = "[-B [-F]] [--bitmaps [--skip-broken-bitmaps]] "
             "filename [filename2 [...]] output_filename",
    .run = convert_main,
};

/* Needed only until the options have been checked. */
struct given {
    struct cmd_size sparse, rate, workers;
    const char *format; /* -O */
};

/* Pairs that exclude each other, or need each other. Returns an exit status. */
static int check_combinations(const struct convert_options *o, const struct given *given)
{
    const struct {
        bool wrong;
        const char *text;
    } rules[] = {
        { o->skip_broken_bitmaps && !o->bitmaps, "--skip-broken-bitmaps needs --bitmaps" },
        { o->input_count > 1 && o->bitmaps, "--bitmaps needs a single input" },
        { o->copy_range && o->compressed, "-C and -c exclude each other" },
        { o->copy_range && given->sparse.given, "-C and -S exclude each other" },
        { o->copy_range && o->salvage, "-C and --salvage exclude each other" },
        { o->target.image_opts && !o->no_create, "--target-image-opts needs -n" },
        { o->target.image_opts && given->format, "--target-image-opts and -O exclude each other" },
        { o->no_create && o->creation.count, "-o has no effect with -n" },
        { o->target_is_zero && !o->no_create, "--target-is-zero needs -n" },
        { o->target_is_zero && o->backing,
          "--target-is-zero and a backing file exclude each other" },
        { o->source.image_opts && o->source.format, "--image-opts and -f exclude each other" },
        { o->input_count > 1 && o->snapshot, "-l needs a single input" },
        { o->input_count > 1 && o->backing, "a backing file needs a single input" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        if (rules[i].wrong)
            return report_usage(&cmd_convert, "%s", rules[i].text);
    }
    return EXIT_OK;
}

static int check_numbers(struct convert_options *o, const struct given *given)
{
    o->sparse_bytes = given->sparse.given ? given->sparse.value : DEFAULT_SPARSE_BYTES;
    o->workers = given->workers.given ? (unsigned)u64_min(given->workers.value, MAX_WORKERS + 1)
                                      : DEFAULT_WORKERS;
    o->bytes_per_second = given->rate.value;
    /* Who gives -S wants zeroes to be looked for, and who salvages wants all that can be read. */
    o->share = !given->sparse.given && !o->salvage;

    if (o->sparse_bytes % BLK_SECTOR_BYTES || o->sparse_bytes > MAX_SPARSE_BYTES)
        return report_usage(&cmd_convert, "-S takes a multiple of 512 up to 16M, or 0");
    if (o->workers < 1 || o->workers > MAX_WORKERS)
        return report_usage(&cmd_convert, "-m takes a number from 1 to %d", MAX_WORKERS);
    return EXIT_OK;
}

/* With `-o help` the operands do not matter. */
static int take_operands(struct convert_options *o, const struct cmd_operands *operands)
{
    if (operands->count >= 2) {
        o->inputs = operands->items;
        o->input_count = operands->count - 1;
    }
    if (operands->count >= 1)
        o->output = operands->items[operands->count - 1];
    if (operands->count < 2 && !create_options_want_help(&o->creation))
        return report_usage(&cmd_convert, "expects an image and a target");
    return EXIT_OK;
}

/* Returns CMD_RUN, or the exit status with which the command ends here. */
static int convert_parse(int argc, char **argv, struct convert_options *o)
{
    struct given given = { .format = NULL };
    const struct cmd_option table[] = {
        IMAGE_OPTIONS(&o->source),
        { 'O', "target-format", CMD_STRING, &given.format, "FMT", "format of the target (raw)" },
        { 'o', "options", CMD_LIST, &o->creation, "OPTIONS",
          "options of the target's format; -o help lists them" },
        { 'B', "backing", CMD_STRING, &o->backing, "FILE", "backing file of the target" },
        { 'F', "backing-format", CMD_STRING, &o->backing_format, "FMT",
          "format of the backing file" },
        { 'c', "compress", CMD_FLAG, &o->compressed, NULL, "compress the target" },
        { 'C', "copy-range", CMD_FLAG, &o->copy_range, NULL, "let the kernel copy where it can" },
        { 'l', "snapshot", CMD_STRING, &o->snapshot, "SNAPSHOT", "copy this snapshot" },
        { 'm', "parallel", CMD_UINT, &given.workers, "N", "number of parallel requests (4)" },
        { 'n', "no-create", CMD_FLAG, &o->no_create, NULL, "write into a target that exists" },
        IN_PLACE_OPTION(&o->target),
        { 0, "target-is-zero", CMD_FLAG, &o->target_is_zero, NULL,
          "with -n: the target reads as zeroes everywhere" },
        { 0, "target-image-opts", CMD_FLAG, &o->target.image_opts, NULL,
          "with -n: the target is given as driver=...,option=value" },
        FORCE_OPTION(&o->target),
        { 'p', "progress", CMD_FLAG, &o->progress, NULL, "show the progress" },
        { 'q', "quiet", CMD_FLAG, &o->quiet, NULL, "print nothing but errors" },
        { 'r', "rate-limit", CMD_SIZE, &given.rate, "BYTES",
          "limit the copy to this many bytes per second" },
        { 'S', "sparse-size", CMD_SIZE, &given.sparse, "SIZE",
          "leave out zeroes of this length (4k); 0: write them all" },
        { 't', "target-cache", CMD_STRING, &o->target_cache, "CACHE", "cache mode of the target" },
        { 'T', "source-cache", CMD_STRING, &o->source_cache, "CACHE", "cache mode of the inputs" },
        { 'W', "out-of-order", CMD_FLAG, &o->out_of_order, NULL,
          "write in any order, which compresses in parallel" },
        { 0, "salvage", CMD_FLAG, &o->salvage, NULL, "write zeroes for what cannot be read" },
        { 0, "bitmaps", CMD_FLAG, &o->bitmaps, NULL, "copy persistent bitmaps too" },
        RESULT_OPTION(&o->format),
        { 0, "skip-broken-bitmaps", CMD_FLAG, &o->skip_broken_bitmaps, NULL,
          "with --bitmaps: skip inconsistent ones" },
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    int status = cmd_parse(&cmd_convert, table, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    status = take_operands(o, &operands);
    if (status == EXIT_OK)
        status = check_combinations(o, &given);
    if (status == EXIT_OK)
        status = check_numbers(o, &given);
    if (status)
        return status;

    o->progress = o->progress && !o->quiet && o->format == OUTPUT_HUMAN;
    o->target.format = given.format || o->target.image_opts ? given.format : "raw";
    o->target.lock_wait = o->source.lock_wait;
    o->target.trust = o->source.trust;
    o->target.objects = o->source.objects;
    return CMD_RUN;
}

static int print_creation_help(const struct convert_options *o)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct option_tables tables;
    const struct blk_driver *driver = image_driver_of_new(o->target.format, &err);

    if (!driver || create_tables(driver, o->output, &tables, &err) < 0)
        return report_error(&err);
    create_options_help(&tables, o->output);
    return EXIT_OK;
}

static int convert_main(int argc, char **argv)
{
    struct convert_options options = { .source = IMAGE_ARGS_INIT, .target = IMAGE_ARGS_INIT };

    int status = convert_parse(argc, argv, &options);
    if (status != CMD_RUN)
        return status;
    if (create_options_want_help(&options.creation))
        return print_creation_help(&options);
    return convert_run(&cmd_convert, &options);
}
