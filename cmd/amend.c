/*
 * blkimg amend: changes the format options of an image that exists.
 */
#include <errno.h>

#include "cmd/common/common.h"
#include "cmd/common/dependents.h"

static int run(int argc, char **argv);

const struct command cmd_amend = {
    "amend",
    "Change the format options of an image",
    "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] [--output=ofmt] "
    "[--trust] [--lock-wait=seconds] -o options filename",
    run,
};

struct request {
    struct image_args image;
    struct cmd_list texts; /* -o */
    bool show_progress;
};

/* The options that `driver` can change. -ENOTSUP when there are none. */
static int amend_tables(const struct blk_driver *driver, struct option_tables *tables,
                        struct blk_error *err)
{
    *tables = (struct option_tables){ .format = driver->name, .own = driver->amend_options };
    if (driver->amend)
        return 0;
    return blk_fail_why(err, ENOTSUP, "the format has no options that can be changed",
                        "format '%s'", driver->name);
}

static int print_help(const struct blk_driver *driver)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct option_tables tables;

    if (amend_tables(driver, &tables, &err) < 0)
        return report_error(&err);
    amend_options_help(&tables);
    return EXIT_OK;
}

static int change(struct blk_node *node, struct blk_options *options, const struct request *request,
                  struct progress *shown, struct blk_error *err)
{
    const struct blk_progress progress = { progress_update, shown };
    int ret = node->driver->amend(node, options, request->image.force, &progress, err);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "amending '%s'", node->name);

    const char *unused = blk_options_first_unused(options);
    if (unused)
        return blk_fail_why(err, ENOTSUP, "this option cannot be changed",
                            "amending '%s': option '%s'", node->name, unused);
    return 0;
}

static int amend(struct blk_node *root, const struct request *request)
{
    struct blk_node *node = blk_skip_filters(root);
    struct blk_error err = BLK_ERROR_INIT;
    struct option_tables tables;

    if (create_options_want_help(&request->texts))
        return print_help(node->driver);
    struct blk_options *options = blk_options_new();
    int ret = amend_tables(node->driver, &tables, &err);
    if (ret < 0)
        blk_context(&err, "'%s'", node->name);
    else
        ret = create_options_parse(&request->texts, &tables, options, &err);
    if (ret == 0)
        ret = check_file_no_dependents(&request->image, blk_options_peek(options, "data_file"),
                                       &err);
    if (ret == 0) {
        struct progress progress;
        progress_start(&progress, request->show_progress);
        ret = change(node, options, request, &progress, &err);
        progress_finish(&progress, ret == 0);
    }
    blk_options_free(options);
    return ret < 0 ? report_error(&err) : EXIT_OK;
}

static int run(int argc, char **argv)
{
    struct request request = { .image = IMAGE_ARGS_INIT };
    enum output_format format = OUTPUT_HUMAN;
    const char *cache = NULL;
    bool quiet = false;
    const struct cmd_option options[] = {
        { 'o', "options", CMD_LIST, &request.texts, "NAME=VALUE,...",
          "options to change; -o help lists them" },
        { 0, "force", CMD_FLAG, &request.image.force, NULL, "allow changes that may lose data" },
        { 'p', "progress", CMD_FLAG, &request.show_progress, NULL, "show the progress" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        { 't', "cache", CMD_STRING, &cache, "CACHE", "cache mode" },
        IMAGE_OPTIONS(&request.image),
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
        const struct blk_driver *driver = image_driver(request.image.format, &err);
        return driver ? print_help(driver) : report_error(&err);
    }
    if (operands.count != 1)
        return report_usage(&cmd_amend, "expects one image");

    request.show_progress = request.show_progress && !quiet && format == OUTPUT_HUMAN;
    struct blk_node *root;
    unsigned flags = help ? BLK_NO_BACKING | BLK_NO_IO : BLK_WRITABLE;
    if (image_open(&request.image, operands.items[0], flags, cache, &root, &err) < 0)
        return report_error(&err);
    json_t *result = help ? NULL : result_new(format, &cmd_amend, operands.items[0]);
    return finish_result(amend(root, &request), &root, 1, result);
}
