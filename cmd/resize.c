/* SPDX-License-Identifier: MIT */
/* blkimg resize: changes the virtual size of an image. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/graph/io.h"
#include "cmd/common/common.h"

/* The size that "10G", "+1G" or "-1G" means for the image. Returns 0 or an exit status. */
static int new_size(const struct blk_node *root, const char *text, uint64_t *size)
{
    uint64_t old = blk_size(root);
    char sign = *text == '+' || *text == '-' ? *text : 0;
    uint64_t bytes;

    int status = cmd_size_parse("size", sign ? text + 1 : text, &bytes);
    if (status)
        return status;
    if (sign == '-' && bytes >= old)
        return report_failure("size: '%s' would leave nothing of '%s', which has %" PRIu64 " bytes",
                              text, root->name, old);
    *size = !sign ? bytes : sign == '+' ? old + bytes : old - bytes;
    if (*size > BLK_MAX_BYTES)
        return report_failure("size: '%s' would make '%s' larger than 8 EiB", text, root->name);
    if (*size == 0)
        return report_failure("size: '%s' is not a size for '%s'; it must be positive", text,
                              root->name);
    return 0;
}

static int resize(struct blk_node *root, const char *text, enum blk_prealloc prealloc, bool shrink)
{
    struct blk_error err = BLK_ERROR_INIT;
    uint64_t old = blk_size(root), size = 0;

    int status = new_size(root, text, &size);
    if (status)
        return status;
    if (size <= old && prealloc != BLK_PREALLOC_OFF)
        return report_failure("resizing '%s': --preallocation is for growing only", root->name);
    if (size < old && !shrink)
        return report_failure("resizing '%s' from %" PRIu64 " to %" PRIu64 " bytes: the data "
                              "beyond the new end would be lost; Use the --shrink option to shrink "
                              "it anyway",
                              root->name, old, size);
    if (blk_truncate(root, size, prealloc, true, &err) < 0)
        return report_error(&err);
    return EXIT_OK;
}

static int resize_main(int argc, char **argv);

const struct command cmd_resize = {
    .name = "resize",
    .summary = "Change the size of an image",
    .usage = "filename [+ | -]size",
    .run = resize_main,
};

static int resize_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    const char *prealloc_text = "off";
    enum output_format format = OUTPUT_HUMAN;
    bool quiet = false, shrink = false;
    const struct cmd_option options[] = {
        WRITTEN_IMAGE_OPTIONS(&image),
        { 0, "preallocation", CMD_STRING, &prealloc_text, "off|metadata|falloc|full",
          "how new space is allocated" },
        { 0, "shrink", CMD_FLAG, &shrink, NULL, "allow the data beyond the new end to be lost" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        RESULT_OPTION(&format),
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;
    enum blk_prealloc prealloc;

    int status = cmd_parse(&cmd_resize, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (blk_prealloc_parse(prealloc_text, &prealloc) < 0)
        return report_failure("--preallocation: '%s' is not one of off, metadata, falloc, full",
                              prealloc_text);
    if (operands.count != 2)
        return report_usage(&cmd_resize, "expects an image and a size");
    if (cmd_operands_swapped(operands.items[0], operands.items[1]))
        return report_failure("resizing '%s': '%s' is not a size; the image comes first: resize "
                              "... %s %s",
                              operands.items[0], operands.items[1], operands.items[1],
                              operands.items[0]);

    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;
    if (image_open(&image, operands.items[0], BLK_WRITABLE, NULL, &root, &err) < 0)
        return report_error(&err);
    json_t *result = result_new(format, &cmd_resize, operands.items[0]);
    result_set_bytes(result, "old-virtual-size", blk_size(root));
    status = resize(root, operands.items[1], prealloc, shrink);
    result_set_bytes(result, "virtual-size", blk_size(root));
    status = finish(status, &root, 1, result);
    if (status == EXIT_OK && !quiet && format == OUTPUT_HUMAN)
        printf("Image resized.\n");
    return status;
}
