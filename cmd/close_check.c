/* SPDX-License-Identifier: MIT */
/*
 * blkimg close-check: opens an image for writing and closes it again by the strict path, and
 * reports how each step went; or, with --read-only, reports from the image alone whether it was
 * closed cleanly.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/bitmap/bitmaps.h"
#include "cmd/common/common.h"

static int close_check_main(int argc, char **argv);

const struct command cmd_close_check = {
    .name = "close-check",
    .summary = "Close an image step by step, or check whether it was closed cleanly",
    .usage = "[-r [-U]] filename",
    .run = close_check_main,
};

enum { NOT_CLEAN = 2 };

/* ---- output ---- */

/* `why`: what is wrong, or NULL. */
static json_t *close_check_describe(enum output_format format, const char *filename,
                                    const char *why)
{
    json_t *result = result_new(format, &cmd_close_check, filename);

    result_set_flag(result, "clean", !why);
    result_set_text(result, "message", why);
    return result;
}

static void print_steps(const struct blk_close_report *report)
{
    for (size_t i = 0; i < report->count; i++) {
        const struct blk_close_entry *entry = &report->entries[i];
        print_escaped(stdout, entry->node);
        printf(" (%s): %s%s%s: %s", entry->driver_name, entry->step, entry->detail ? " " : "",
               entry->detail ? entry->detail : "", blk_outcome_name(entry->outcome));
        if (entry->message) {
            fputs(": ", stdout);
            print_escaped(stdout, entry->message);
        }
        putchar('\n');
    }
}

/* ---- the two ways ---- */

static int close_strictly(struct blk_node *root, const char *filename, enum output_format format,
                          bool quiet)
{
    struct blk_close_report report = BLK_CLOSE_REPORT_INIT;
    struct blk_error err = BLK_ERROR_INIT;

    int ret = blk_close(root, &report, &err);
    json_t *result = close_check_describe(format, filename, ret < 0 ? err.why : NULL);
    if (!result && !quiet)
        print_steps(&report);
    int status = ret < 0 ? report_close(&report, &err) : EXIT_OK;
    if (result) {
        json_t *steps = json_array();
        report_close_json(&report, steps);
        json_object_set_new(result, "close", steps);
    }
    blk_close_report_free(&report);
    return finish(status, NULL, 0, result);
}

/*
 * Finds out what in the image says that it was not closed cleanly: *why is malloc()ed text, or NULL
 * if nothing does. -ENOTSUP where the format has nothing that could say so.
 */
static int find_unclean(struct blk_node *root, char **why, struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(root);
    BLK_AUTO_INFO struct blk_info info = { .dirty = false };

    *why = NULL;
    if (!blk_supports(node, BLK_CHECKS))
        return blk_fail_why(err, ENOTSUP, "this format does not record it",
                            "finding out whether '%s' (%s) was closed cleanly", root->name,
                            blk_format_name(node));
    int ret = blk_get_info(node, &info, err);
    if (ret < 0)
        return ret;

    const struct blk_dirty_bitmap *bitmap = node->bitmaps ? node->bitmaps->first : NULL;
    while (bitmap && !bitmap->inconsistent)
        bitmap = bitmap->next;
    if (info.corrupt)
        *why = blk_xstrdup("it is marked as corrupt");
    else if (info.dirty)
        *why = blk_xstrdup("its dirty bit is set");
    else if (bitmap)
        *why = blk_xasprintf("bitmap '%s' was in use", bitmap->name);
    return 0;
}

static int look_only(struct blk_node *root, const char *filename, enum output_format format,
                     bool quiet)
{
    struct blk_error err = BLK_ERROR_INIT;
    BLK_AUTOFREE char *why = NULL;

    if (find_unclean(root, &why, &err) < 0)
        return finish(report_error(&err), &root, 1, NULL);
    if (format == OUTPUT_HUMAN && !quiet) {
        print_escaped(stdout, filename);
        fputs(why ? ": not closed cleanly: " : ": closed cleanly", stdout);
        print_escaped(stdout, why ? why : "");
        putchar('\n');
    }
    return finish_answered(why ? NOT_CLEAN : EXIT_OK, &root, 1,
                           close_check_describe(format, filename, why));
}

static int close_check_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    enum output_format format = OUTPUT_HUMAN;
    const char *cache = NULL;
    bool read_only = false, quiet = false;
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&image),
        { 'r', "read-only", CMD_FLAG, &read_only, NULL,
          "write nothing; only report whether it was closed cleanly" },
        { 't', "cache", CMD_STRING, &cache, "CACHE", "cache mode" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        RESULT_OPTION(&format),
        CMD_OPTIONS_END,
    };
    const char *filename;

    int status = cmd_parse_image(&cmd_close_check, options, argc, argv, &filename);
    if (status != CMD_RUN)
        return status;

    /* As it is: a mark that an ordinary opening would repair or refuse is what is asked for. */
    unsigned flags = read_only ? BLK_NO_BACKING | BLK_NO_IO | BLK_IN_CHECK : BLK_WRITABLE;
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;
    if (image_open(&image, filename, flags, cache, &root, &err) < 0)
        return report_error(&err);
    return read_only ? look_only(root, filename, format, quiet)
                     : close_strictly(root, filename, format, quiet);
}
