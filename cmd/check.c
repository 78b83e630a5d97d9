/* SPDX-License-Identifier: MIT */
/*
 * blkimg check: looks for errors in the metadata of an image, and repairs them if asked.
 *
 * Findings go to stderr, except what a repair fixed, which goes to stdout. After a repair the image
 * is checked again, and the exit status is that of the second check.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "cmd/common/common.h"

enum check_status {
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
    CHECK_UNSUPPORTED = 63,
};

static int check_main(int argc, char **argv);

const struct command cmd_check = {
    .name = "check",
    .summary = "Check the metadata of an image, and repair it",
    .usage = "filename",
    .run = check_main,
};

struct check_request {
    enum output_format format;
    bool quiet;
    unsigned repair; /* enum blk_repair */
};

/* ---- output ---- */

static void print_check_line(FILE *to, bool is_error, const char *text)
{
    fputs(is_error ? "ERROR " : "", to);
    print_escaped(to, text);
    putc('\n', to);
}

static void print_finding(void *opaque, bool is_error, const char *text)
{
    (void)opaque;
    print_check_line(stderr, is_error, text);
}

static void print_while_repairing(void *opaque, bool is_error, const char *text)
{
    const struct check_request *request = opaque;
    if (!request->quiet && request->format == OUTPUT_HUMAN)
        print_check_line(stdout, is_error, text);
}

static void print_check(const struct blk_check *check)
{
    if (!check->corruptions && !check->leaks)
        printf("No errors were found on the image.\n");
    if (check->corruptions)
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               check->corruptions);
    if (check->leaks)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               check->leaks);
    if (check->lost_bytes)
        printf("\n%" PRIu64 " bytes of guest data are lost: copy the image, and see '-r lost' in "
               "blkimg-check(1).\n",
               check->lost_bytes);
    if (check->total_clusters && check->allocated_clusters) {
        double allocated = (double)check->allocated_clusters;
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, "
               "%0.2f%% compressed clusters\n",
               check->allocated_clusters, check->total_clusters,
               allocated * 100.0 / (double)check->total_clusters,
               (double)check->fragmented_clusters * 100.0 / allocated,
               (double)check->compressed_clusters * 100.0 / allocated);
    }
    if (check->image_end_offset)
        printf("Image end offset: %" PRIu64 "\n", check->image_end_offset);
}

/*
 * Members that are zero are left out, but for check-errors: qemu-img counts there what kept it from
 * looking at all of the image, which makes a check fail here.
 */
static void print_check_json(const struct blk_node *node, const struct blk_check *check)
{
    const struct {
        const char *key;
        uint64_t value;
        bool always;
    } members[] = {
        { "image-end-offset", check->image_end_offset, false },
        { "compressed-clusters", check->compressed_clusters, false },
        { "total-clusters", check->total_clusters, false },
        { "corruptions", check->corruptions, false },
        { "corruptions-fixed", check->corruptions_fixed, false },
        { "check-errors", 0, true },
        { "lost-bytes", check->lost_bytes, false },
        { "leaks", check->leaks, false },
        { "leaks-fixed", check->leaks_fixed, false },
        { "allocated-clusters", check->allocated_clusters, false },
        { "fragmented-clusters", check->fragmented_clusters, false },
    };
    json_t *object = json_object();

    json_object_set_new(object, "filename", json_text(node->name));
    json_object_set_new(object, "format", json_text(blk_format_name(node)));
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        if (members[i].value || members[i].always)
            json_object_set_new(object, members[i].key, json_integer((json_int_t)members[i].value));
    }
    json_print(stdout, object);
    json_decref(object);
}

/* ---- checking ---- */

static int look(struct blk_node *node, struct blk_check *check, struct blk_error *err)
{
    *check = (struct blk_check){ .message = print_finding };
    return blk_check(node, 0, check, err);
}

/* Repairs, then looks at what is left. */
static int repair(struct blk_node *node, struct check_request *request, struct blk_check *check,
                  struct blk_error *err)
{
    struct blk_check first = { .message = print_while_repairing, .opaque = request };

    int ret = blk_check(node, request->repair, &first, err);
    if (ret < 0)
        return ret;
    bool fixed = first.corruptions_fixed || first.leaks_fixed;
    if (fixed && !request->quiet && request->format == OUTPUT_HUMAN)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n"
               "Double checking the fixed image now...\n",
               first.leaks_fixed, first.corruptions_fixed);
    *check = first;
    if (fixed || first.corruptions || first.leaks)
        ret = look(node, check, err);
    check->leaks_fixed = first.leaks_fixed;
    check->corruptions_fixed = first.corruptions_fixed;
    return ret;
}

static int check(struct blk_node *root, struct check_request *request)
{
    struct blk_node *node = blk_skip_filters(root);
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_check result;

    int ret = request->repair ? repair(node, request, &result, &err) : look(node, &result, &err);
    if (ret < 0) {
        int status = report_error(&err);
        return ret == -ENOTSUP ? CHECK_UNSUPPORTED : status;
    }

    if (!request->quiet && request->format == OUTPUT_JSON)
        print_check_json(node, &result);
    else if (!request->quiet)
        print_check(&result);
    return result.corruptions ? CHECK_CORRUPT : result.leaks ? CHECK_LEAKS : EXIT_OK;
}

/* ---- the command ---- */

/* The text of -r. Returns an exit status. */
static int parse_repair(const char *text, unsigned *repair)
{
    *repair = 0;
    if (!text)
        return EXIT_OK;
    static const struct {
        const char *name;
        unsigned repair;
    } ways[] = {
        { "leaks", BLK_REPAIR_LEAKS },
        { "all", BLK_REPAIR_LEAKS | BLK_REPAIR_ERRORS },
        { "lost", BLK_REPAIR_LEAKS | BLK_REPAIR_ERRORS | BLK_REPAIR_LOST },
    };
    for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
        if (strcmp(text, ways[i].name) != 0)
            continue;
        *repair = ways[i].repair;
        return EXIT_OK;
    }
    return report_failure("-r: '%s' is not one of leaks, all, lost", text);
}

static int check_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    struct check_request request = { .quiet = false };
    const char *repair = NULL, *cache = NULL;
    const struct cmd_option options[] = {
        { 'r', "repair", CMD_STRING, &repair, "leaks|all|lost",
          "repair leaks, all errors, or also turn lost data into zeroes" },
        OUTPUT_OPTION(&request.format),
        { 'T', "cache", CMD_STRING, &cache, "CACHE", "cache mode" },
        { 'q', "quiet", CMD_FLAG, &request.quiet, NULL, "print nothing but errors" },
        IMAGE_OPTIONS(&image),
        CMD_OPTIONS_END,
    };
    const char *filename;

    int status = cmd_parse_image(&cmd_check, options, argc, argv, &filename);
    if (status != CMD_RUN)
        return status;
    if (parse_repair(repair, &request.repair))
        return EXIT_FAILED;

    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;
    unsigned flags = BLK_NO_BACKING | BLK_IN_CHECK | (request.repair ? BLK_WRITABLE : 0);
    if (image_open(&image, filename, flags, cache, &root, &err) < 0)
        return report_error(&err);
    status = check(root, &request);
    bool failed = status == EXIT_FAILED || exit_is_by_signal(status);
    return failed ? finish(status, &root, 1, NULL) : finish_answered(status, &root, 1, NULL);
}
