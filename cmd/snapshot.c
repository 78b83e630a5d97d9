/*
 * blkimg snapshot: lists, creates, applies and deletes internal snapshots.
 */
#include <errno.h>
#include <string.h>

#include "cmd/common/common.h"
#include "cmd/common/snapshot_list.h"

static int run(int argc, char **argv);

const struct command cmd_snapshot = {
    "snapshot",
    "List, create, apply or delete internal snapshots",
    "[--object objectdef] [--image-opts] [-f fmt] [-U] [-q] [--output=ofmt] [--trust] "
    "[--lock-wait=seconds] [-l | -a snapshot | -c snapshot | -d snapshot] filename",
    run,
};

/* What one of -a, -c and -d does to the image. */
typedef int snapshot_fn(struct blk_node *node, const char *name, struct blk_error *err);

struct request {
    char action;      /* the letter; 0: none given */
    const char *name; /* of the snapshot */
    const char *verb; /* for messages */
};

/* Called for each of -l, -a, -c and -d. */
static int choose(void *opaque, const struct cmd_option *option, const char *text)
{
    static const char *const verbs[] = {
        ['a'] = "applying",
        ['c'] = "creating",
        ['d'] = "deleting",
    };
    struct request *request = opaque;

    if (request->action)
        return report_usage(&cmd_snapshot, "-l, -a, -c and -d exclude each other");
    request->action = option->letter;
    request->name = text;
    if (text)
        request->verb = verbs[(unsigned char)option->letter];
    return 0;
}

static int list(struct blk_node *root, json_t *result)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct snapshot_list snapshots;

    if (snapshot_list_get(root, &snapshots, &err) < 0)
        return report_error(&err);
    if (result) {
        json_t *items = json_array();
        for (size_t i = 0; i < snapshots.count; i++)
            json_array_append_new(items, snapshot_list_item(&snapshots, i));
        json_object_set_new(result, "snapshots", items);
    } else if (snapshots.count) {
        snapshot_list_print(&snapshots);
    }
    snapshot_list_free(&snapshots);
    return EXIT_OK;
}

static int change(struct blk_node *root, const struct request *request)
{
    struct blk_node *node = blk_skip_filters(root);
    struct blk_error err = BLK_ERROR_INIT;
    snapshot_fn *function = request->action == 'a'   ? node->driver->snapshot_apply
                            : request->action == 'c' ? node->driver->snapshot_create
                                                     : node->driver->snapshot_delete;

    int ret = function ? function(node, request->name, &err)
                       : blk_fail_why(&err, ENOTSUP, "its format has no snapshots",
                                      "%s snapshot '%s' of '%s'", request->verb, request->name,
                                      node->name);
    if (ret == 0)
        return EXIT_OK;
    blk_fail_if_unset(&err, -ret, "%s snapshot '%s' of '%s'", request->verb, request->name,
                      node->name);
    return report_error(&err);
}

static json_t *describe(enum output_format format, const char *filename,
                        const struct request *request)
{
    static const char *const actions[] = {
        ['a'] = "apply", ['c'] = "create", ['d'] = "delete", ['l'] = "list",
    };
    json_t *result = result_new(format, &cmd_snapshot, filename);

    result_set_text(result, "action", actions[(unsigned char)request->action]);
    result_set_text(result, "snapshot", request->name);
    return result;
}

static int run(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    struct request request = { 0 };
    struct cmd_call call = { choose, &request };
    enum output_format format = OUTPUT_HUMAN;
    bool quiet = false;
    const struct cmd_option options[] = {
        { 'l', "list", CMD_MARK, &call, NULL, "list the snapshots" },
        { 'a', "apply", CMD_CALL, &call, "SNAPSHOT", "revert the disk to a snapshot" },
        { 'c', "create", CMD_CALL, &call, "SNAPSHOT", "create a snapshot" },
        { 'd', "delete", CMD_CALL, &call, "SNAPSHOT", "delete a snapshot" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors and the list" },
        RESULT_OPTION(&format),
        IMAGE_OPTIONS(&image),
        CMD_OPTIONS_END,
    };
    const char *filename;

    int status = cmd_parse_image(&cmd_snapshot, options, argc, argv, &filename);
    if (status != CMD_RUN)
        return status;

    bool changes = request.action && request.action != 'l';
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;
    /* A snapshot is of one layer: its backing file is not needed. */
    unsigned flags = BLK_NO_BACKING | (changes ? BLK_WRITABLE : BLK_NO_IO);
    if (image_open(&image, filename, flags, NULL, &root, &err) < 0)
        return report_error(&err);
    json_t *result = describe(format, filename, &request);
    status = changes ? change(root, &request) : request.action ? list(root, result) : EXIT_OK;
    return finish_result(status, &root, 1, result);
}
