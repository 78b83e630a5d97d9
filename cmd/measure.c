/* SPDX-License-Identifier: MIT */
/* blkimg measure: the file size that a new image needs. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/common/common.h"

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static void print_measure(const struct blk_measure *result, enum output_format format)
{
    if (format == OUTPUT_HUMAN) {
        printf("required size: %" PRIu64 "\n", result->required_bytes);
        printf("fully allocated size: %" PRIu64 "\n", result->fully_allocated_bytes);
        if (result->has_bitmaps)
            printf("bitmaps size: %" PRIu64 "\n", result->bitmaps_bytes);
        return;
    }
    json_t *object = json_object();
    if (result->has_bitmaps)
        json_object_set_new(object, "bitmaps", number(result->bitmaps_bytes));
    json_object_set_new(object, "required", number(result->required_bytes));
    json_object_set_new(object, "fully-allocated", number(result->fully_allocated_bytes));
    json_print(stdout, object);
    json_decref(object);
}

/* The format to measure and its options; `size` may be absent when there is a source. */
static int read_target(const char *format, const struct cmd_list *texts,
                       const struct cmd_size *size, const struct blk_driver **driver,
                       struct blk_options *options, struct blk_error *err)
{
    struct option_tables tables;

    *driver = blk_driver_find(format);
    if (!*driver)
        return image_unknown_format(format, err);
    int ret = blk_driver_require(*driver, BLK_MEASURING, err, "measuring a new image");
    if (ret < 0)
        return ret;
    /* A target is usually a file: the options of its driver (preallocation for raw) count, too. */
    ret = create_tables(*driver, "file", &tables, err);
    if (ret < 0)
        return ret;
    ret = create_options_parse(texts, &tables, options, err);
    if (ret < 0)
        return ret;
    if (size->given)
        blk_options_setf(options, "size", "%" PRIu64, size->value);
    return 0;
}

static int measure_image(const struct blk_driver *driver, struct blk_options *options,
                         struct blk_node *source, enum output_format format)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_measure result = { 0 };

    if (blk_measure(driver, options, source, &result, &err) < 0)
        return report_error(&err);
    print_measure(&result, format);
    return EXIT_OK;
}

static int measure_main(int argc, char **argv);

const struct command cmd_measure = {
    .name = "measure",
    .summary = "Compute the file size that a new image needs",
    .usage = "[-O] [-o]... [--output] filename\n"
             "--size [-O] [-o]... [--output]",
    .run = measure_main,
};

static int measure_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    struct cmd_list texts = { 0 };
    struct cmd_size size = { 0 };
    const char *target_format = "raw", *snapshot = NULL;
    enum output_format format = OUTPUT_HUMAN;
    const struct cmd_option table[] = {
        IMAGE_OPTIONS(&image),
        { 'O', "target-format", CMD_STRING, &target_format, "FMT",
          "format of the new image (raw)" },
        { 'o', "options", CMD_LIST, &texts, "OPTIONS", "options of the format, as for create" },
        { 0, "size", CMD_SIZE, &size, "SIZE", "measure an empty image of this size" },
        { 'l', "snapshot", CMD_STRING, &snapshot, "SNAPSHOT",
          "measure this snapshot of the image" },
        OUTPUT_OPTION(&format),
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    int status = cmd_parse(&cmd_measure, table, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (operands.count > 1)
        return report_usage(&cmd_measure, "expects at most one image");
    if (operands.count == 0 && (image.image_opts || image.format || snapshot))
        return report_usage(&cmd_measure, "--image-opts, -f and -l need an image");
    if ((operands.count == 1) == size.given)
        return report_usage(&cmd_measure, "expects either --size or one image");

    struct blk_error err = BLK_ERROR_INIT;
    struct blk_options *options = blk_options_new();
    struct blk_node *source = NULL;
    const struct blk_driver *driver;
    if (read_target(target_format, &texts, &size, &driver, options, &err) < 0 ||
        (operands.count && image_open(&image, operands.items[0], 0, NULL, &source, &err) < 0) ||
        (snapshot && image_load_snapshot(source, snapshot, &err) < 0))
        status = report_error(&err);
    else
        status = measure_image(driver, options, source, format);
    blk_options_free(options);
    return finish(status, &source, 1, NULL);
}
