/* SPDX-License-Identifier: MIT */
/* blkimg amend: changes the format options of an image that exists. */
#include <errno.h>

#include "cmd/common/common.h"
#include "cmd/common/dependents.h"

static int amend_main(int argc, char **argv);

const struct command cmd_amend = {
    .name = "amend",
    .summary = "Change the format options of an image",
    .usage = "-o filename",
    .run = amend_main,
};

struct amend_request {
    struct image_args image;
    struct cmd_list texts; /* -o */
    bool show_progress;
};

/* The options that `driver` can change. */
static struct option_tables amend_tables(const struct blk_driver *driver)
{
    return (struct option_tables){
        .format = driver->name,
        .own = BLK_OP(driver, upkeep, amend_options),
    };
}

static int print_amend_help(const struct blk_driver *driver)
{
    struct blk_error err = BLK_ERROR_INIT;
    const struct option_tables tables = amend_tables(driver);

    if (blk_driver_require(driver, BLK_AMENDING, &err, "-o help") < 0)
        return report_error(&err);
    amend_options_help(&tables);
    return EXIT_OK;
}

static int amend_node(struct blk_node *node, struct blk_options *options,
                      const struct amend_request *request, struct progress *shown,
                      struct blk_error *err)
{
    const struct blk_progress progress = { progress_update, shown };
    int ret = blk_amend(node, options, request->image.force, &progress, err);
    if (ret < 0)
        return ret;

    const char *unused = blk_options_first_unused(options);
    if (unused)
        return blk_fail_why(err, ENOTSUP, "this option cannot be changed",
                            "amending '%s': option '%s'", node->name, unused);
    return 0;
}

static int amend(struct blk_node *root, const struct amend_request *request)
{
    struct blk_node *node = blk_skip_filters(root);
    struct blk_error err = BLK_ERROR_INIT;
    const struct blk_driver *driver = blk_driver_find(blk_format_name(node));
    const struct option_tables tables = amend_tables(driver);

    if (create_options_want_help(&request->texts))
        return print_amend_help(driver);
    struct blk_options *options = blk_options_new();
    int ret = blk_require(node, BLK_AMENDING, &err, "amending '%s'", node->name);
    if (ret == 0)
        ret = create_options_parse(&request->texts, &tables, options, &err);
    if (ret == 0)
        ret =
            check_file_no_dependents(&request->image, blk_options_peek(options, "data_file"), &err);
    if (ret == 0) {
        struct progress progress;
        progress_start(&progress, request->show_progress);
        ret = amend_node(node, options, request, &progress, &err);
        progress_finish(&progress, ret == 0);
    }
    blk_options_free(options);
    return ret < 0 ? report_error(&err) : EXIT_OK;
}

static int amend_main(int argc, char **argv)
{
    struct amend_request request = { .image = IMAGE_ARGS_INIT };
    enum output_format format = OUTPUT_HUMAN;
    const char *cache = NULL;
    bool quiet = false;
    const struct cmd_option options[] = {
        { 'o', "options", CMD_LIST, &request.texts, "OPTIONS",
          "options to change; -o help lists them" },
        { 0, "force", CMD_FLAG, &request.image.force, NULL, "allow changes that may lose data" },
        { 'p', "progress", CMD_FLAG, &request.show_progress, NULL, "show the progress" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        { 't', "cache", CMD_STRING, &cache, "CACHE", "cache mode" },
        WRITTEN_IMAGE_OPTIONS(&request.image),
        RESULT_OPTION(&format),
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;
    struct blk_error err = BLK_ERROR_INIT;

    int status = cmd_parse(&cmd_amend, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (!request.texts.count)
        return report_usage(&cmd_amend, "expects options (-o)");
    bool help = create_options_want_help(&request.texts);
    if (help && request.image.format) {
        const struct blk_driver *driver = blk_driver_find(request.image.format);
        if (driver)
            return print_amend_help(driver);
        image_unknown_format(request.image.format, &err);
        return report_error(&err);
    }
    if (operands.count != 1)
        return report_usage(&cmd_amend, "expects one image");

    request.show_progress = request.show_progress && !quiet && format == OUTPUT_HUMAN;
    struct blk_node *root;
    unsigned flags = help ? BLK_NO_BACKING | BLK_NO_IO : BLK_WRITABLE;
    if (image_open(&request.image, operands.items[0], flags, cache, &root, &err) < 0)
        return report_error(&err);
    json_t *result = help ? NULL : result_new(format, &cmd_amend, operands.items[0]);
    return finish(amend(root, &request), &root, 1, result);
}
