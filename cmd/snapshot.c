/* SPDX-License-Identifier: MIT */
/* blkimg snapshot: lists, creates, applies and deletes internal snapshots. */
#include <errno.h>
#include <string.h>

#include "cmd/common/common.h"
#include "cmd/common/snapshot_list.h"

static int snapshot_main(int argc, char **argv);

const struct command cmd_snapshot = {
    .name = "snapshot",
    .summary = "List, create, apply or delete internal snapshots",
    .usage = "[-l | -a | -c | -d] filename",
    .run = snapshot_main,
};

/* What one of -a, -c and -d does to the image. */
typedef int snapshot_fn(struct blk_node *root, const char *name, struct blk_error *err);

struct snapshot_request {
    char action;      /* the letter; 0: none given */
    const char *name; /* of the snapshot */
};

/* Called for each of -l, -a, -c and -d. */
static int choose_action(void *opaque, const struct cmd_option *option, const char *text)
{
    struct snapshot_request *request = opaque;

    if (request->action)
        return report_usage(&cmd_snapshot, "-l, -a, -c and -d exclude each other");
    request->action = option->letter;
    request->name = text;
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

static int change_snapshots(struct blk_node *root, const struct snapshot_request *request)
{
    struct blk_error err = BLK_ERROR_INIT;
    snapshot_fn *function = request->action == 'a'   ? blk_snapshot_apply
                            : request->action == 'c' ? blk_snapshot_create
                                                     : blk_snapshot_delete;

    return function(root, request->name, &err) < 0 ? report_error(&err) : EXIT_OK;
}

static json_t *snapshot_describe(enum output_format format, const char *filename,
                                 const struct snapshot_request *request)
{
    static const char *const actions[] = {
        ['a'] = "apply",
        ['c'] = "create",
        ['d'] = "delete",
        ['l'] = "list",
    };
    json_t *result = result_new(format, &cmd_snapshot, filename);

    result_set_text(result, "action", actions[(unsigned char)request->action]);
    result_set_text(result, "snapshot", request->name);
    return result;
}

static int snapshot_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    struct snapshot_request request = { 0 };
    struct cmd_call call = { choose_action, &request };
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
    json_t *result = snapshot_describe(format, filename, &request);
    if (changes)
        status = change_snapshots(root, &request);
    else
        status = request.action ? list(root, result) : EXIT_OK;
    return finish(status, &root, 1, result);
}
