/* SPDX-License-Identifier: MIT */
/* blkimg create: creates a new image. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/names.h"
#include "cmd/common/backing.h"
#include "cmd/common/common.h"

static int create_main(int argc, char **argv);

const struct command cmd_create = {
    .name = "create",
    .summary = "Create a new image",
    .usage = "[-b [-F]] filename [size]",
    .run = create_main,
};

/* The command line. */
struct create_request {
    const char *filename;
    const char *size_text; /* or NULL */
    const char *format;
    const char *backing_file, *backing_format; /* -b, -F, or NULL */
    struct cmd_list texts;                     /* -o */
    bool quiet, unsafe;
    enum output_format output;
    struct image_args backing; /* how the backing file is opened */
};

/* ---- the backing file ---- */

/*
 * Opens the backing file, to see that it is an image and that the new one will not replace any
 * layer of its chain, and takes its size if none is given. It asks for no lock: a running machine
 * may be using it. Returns an exit status.
 */
static int create_look_at_backing(const struct create_request *request, const char *name,
                                  const char *format, struct blk_options *options)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct image_args args = request->backing;
    struct blk_node *backing;
    int status = EXIT_OK;

    args.format = format;
    args.force_share = true;
    if (backing_open(&args, name, BLK_NO_IO, request->filename, &backing, &err) < 0)
        return report_error(&err);
    if (!format) {
        status = report_failure("creating '%s': Backing file specified without backing format "
                                "(-F); '%s' looks like %s",
                                request->filename, name, blk_format_name(backing));
    } else if (!blk_options_peek(options, "size")) {
        blk_options_setf(options, "size", "%" PRIu64,
                         round_up(blk_size(backing), BLK_SECTOR_BYTES));
    }
    return finish(status, &backing, 1, NULL);
}

/* Returns an exit status. */
static int check_backing(const struct create_request *request, const struct option_tables *tables,
                         struct blk_options *options)
{
    if (request->backing_file)
        blk_options_set(options, "backing_file", request->backing_file);
    if (request->backing_format)
        blk_options_set(options, "backing_fmt", request->backing_format);

    const char *file = blk_options_peek(options, "backing_file");
    const char *format = blk_options_peek(options, "backing_fmt");
    struct blk_error err = BLK_ERROR_INIT;
    if ((file || format) && blk_driver_require(blk_driver_find(tables->format), BLK_BACKING, &err,
                                               "creating '%s'", request->filename) < 0)
        return report_error(&err);
    if (!file)
        return !format ? EXIT_OK
                       : report_failure("creating '%s': a backing format was given, but no backing "
                                        "file",
                                        request->filename);
    if (!*file)
        return report_failure("creating '%s': the name of the backing file is empty",
                              request->filename);
    if (format && !image_driver(format, &err))
        return report_error(&err);

    BLK_AUTOFREE char *name = blk_resolve_backing_name(request->filename, file);
    if (blk_same_file(request->filename, name))
        return report_failure("creating '%s': it cannot be its own backing file",
                              request->filename);
    if (!request->unsafe)
        return create_look_at_backing(request, name, format, options);
    return format ? EXIT_OK
                  : report_failure("creating '%s': Backing file specified without backing format "
                                   "(-F)",
                                   request->filename);
}

/* ---- creating ---- */

/* Collects everything that was asked for in `options`. Returns an exit status. */
static int read_options(const struct create_request *request, const struct option_tables *tables,
                        struct blk_options *options)
{
    struct blk_error err = BLK_ERROR_INIT;
    uint64_t size;

    if (create_options_parse(&request->texts, tables, options, &err) < 0)
        return report_error(&err);
    if (request->size_text && cmd_operands_swapped(request->filename, request->size_text))
        return report_failure("creating '%s': '%s' is not a size; the image comes first: create "
                              "... %s %s",
                              request->filename, request->size_text, request->size_text,
                              request->filename);
    if (request->size_text) {
        int status = cmd_size_parse("size", request->size_text, &size);
        if (status)
            return status;
        if (blk_options_peek(options, "size"))
            return report_failure("creating '%s': the size is given twice", request->filename);
        blk_options_setf(options, "size", "%" PRIu64, size);
    }
    int status = check_backing(request, tables, options);
    if (status)
        return status;
    if (!blk_options_peek(options, "size"))
        return report_failure("creating '%s': the image needs a size", request->filename);
    return EXIT_OK;
}

/* Sizes are whole sectors, as in qemu-img. */
static void round_size(struct blk_options *options)
{
    uint64_t size = 0;
    if (blk_parse_size(blk_options_peek(options, "size"), &size) == 0)
        blk_options_setf(options, "size", "%" PRIu64, round_up(size, BLK_SECTOR_BYTES));
}

static int create(const struct create_request *request, const struct blk_driver *driver,
                  struct blk_options *options)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;
    const struct image_creation creation = {
        .name = request->filename,
        .driver = driver,
        .options = options,
        .flags = BLK_NO_BACKING,
    };

    round_size(options);
    int ret = image_create(&request->backing, &creation, &root, &err);

    json_t *result = result_new(request->output, &cmd_create, request->filename);
    result_set_text(result, "format", request->format);
    result_set_text(result, "backing-filename", blk_options_peek(options, "backing_file"));
    result_set_text(result, "backing-filename-format", blk_options_peek(options, "backing_fmt"));
    if (ret == 0)
        result_set_bytes(result, "virtual-size", blk_size(root));
    return finish(ret < 0 ? report_error(&err) : EXIT_OK, &root, 1, result);
}

static int prepare_and_create(const struct create_request *request, const struct blk_driver *driver)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct option_tables tables;

    if (create_tables(driver, request->filename, &tables, &err) < 0 ||
        image_check_objects(&request->backing.objects, &err) < 0)
        return report_error(&err);
    if (create_options_want_help(&request->texts)) {
        create_options_help(&tables, request->filename);
        return EXIT_OK;
    }
    if (!request->filename)
        return report_usage(&cmd_create, "expects the name of the image");

    struct blk_options *options = blk_options_new();
    int status = read_options(request, &tables, options);
    if (status == EXIT_OK) {
        if (!request->quiet && request->output == OUTPUT_HUMAN) {
            printf("Formatting '%s', fmt=%s", request->filename, request->format);
            create_options_print(&tables, options);
            putchar('\n');
        }
        status = create(request, driver, options);
    }
    blk_options_free(options);
    return status;
}

static int create_main(int argc, char **argv)
{
    struct create_request request = { .format = "raw" };
    const struct cmd_option options[] = {
        { 'f', "format", CMD_STRING, &request.format, "FMT", "format of the new image (raw)" },
        { 'b', "backing", CMD_STRING, &request.backing_file, "FILE", "backing file" },
        { 'F', "backing-format", CMD_STRING, &request.backing_format, "FMT",
          "format of the backing file" },
        { 'u', "unsafe", CMD_FLAG, &request.unsafe, NULL, "do not open the backing file" },
        { 'o', "options", CMD_LIST, &request.texts, "OPTIONS",
          "options of the format; -o help lists them" },
        { 'q', "quiet", CMD_FLAG, &request.quiet, NULL, "print nothing but errors" },
        IN_PLACE_OPTION(&request.backing),
        RESULT_OPTION(&request.output),
        FORCE_OPTION(&request.backing),
        { 0, "trust", CMD_FLAG, &request.backing.trust, NULL,
          "take a backing file whose own chain does not fit" },
        { 0, "lock-wait", CMD_UINT, &request.backing.lock_wait, "SECONDS",
          "how long to wait for an image that is in use" },
        { 0, "object", CMD_LIST, &request.backing.objects, "TYPE,id=ID",
          "declare an object such as a secret" },
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    int status = cmd_parse(&cmd_create, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (operands.count > 2)
        return report_usage(&cmd_create, "'%s' is one operand too many", operands.items[2]);
    request.filename = operands.count > 0 ? operands.items[0] : NULL;
    request.size_text = operands.count > 1 ? operands.items[1] : NULL;

    struct blk_error err = BLK_ERROR_INIT;
    const struct blk_driver *driver = image_driver_of_new(request.format, &err);
    if (!driver)
        return report_error(&err);
    return prepare_and_create(&request, driver);
}
