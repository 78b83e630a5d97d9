/* SPDX-License-Identifier: MIT */
/*
 * blkimg checksum: the digest of what a guest sees in an image; blockcore/jobs/digest.h defines it.
 */
#include <inttypes.h>
#include <stdio.h>

#include "blockcore/base/bytes.h"
#include "blockcore/jobs/checksum.h"
#include "cmd/common/common.h"

static int checksum_main(int argc, char **argv);

const struct command cmd_checksum = {
    .name = "checksum",
    .summary = "Compute a digest of the content of an image",
    .usage = "filename",
    .run = checksum_main,
};

#define DEFAULT_WORKERS 4
#define MAX_WORKERS 16

static void print_digest(const char *name, const char *hex)
{
    printf("%s  ", hex);
    print_escaped(stdout, name);
    putchar('\n');
}

/* Returns the exit status; `hex` is filled when that is EXIT_OK. */
static int compute(struct blk_node *root, unsigned workers, bool show_progress,
                   char hex[BLK_DIGEST_HEX_BYTES])
{
    struct blk_error err = BLK_ERROR_INIT;
    struct progress progress;
    uint8_t digest[BLK_DIGEST_BYTES];
    const struct blk_checksum_params params = {
        .node = root,
        .workers = workers,
        .progress = progress_update,
        .opaque = &progress,
    };

    progress_start(&progress, show_progress);
    int ret = blk_checksum(&params, digest, &err);
    progress_finish(&progress, ret == 0);
    if (ret < 0)
        return report_error(&err);
    blk_digest_to_hex(digest, hex);
    return EXIT_OK;
}

static int checksum_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    enum output_format format = OUTPUT_HUMAN;
    struct cmd_size workers = { .value = DEFAULT_WORKERS };
    const char *cache = NULL;
    bool progress = false;
    const struct cmd_option table[] = {
        IMAGE_OPTIONS(&image),
        { 'T', "cache", CMD_STRING, &cache, "CACHE", "cache mode" },
        { 'm', "parallel", CMD_UINT, &workers, "N", "number of threads (4)" },
        RESULT_OPTION(&format),
        { 'p', "progress", CMD_FLAG, &progress, NULL, "show the progress" },
        CMD_OPTIONS_END,
    };
    const char *filename;

    int status = cmd_parse_image(&cmd_checksum, table, argc, argv, &filename);
    if (status != CMD_RUN)
        return status;
    if (workers.value < 1 || workers.value > MAX_WORKERS)
        return report_usage(&cmd_checksum, "-m takes a number from 1 to %d", MAX_WORKERS);

    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;
    char hex[BLK_DIGEST_HEX_BYTES];
    if (image_open(&image, filename, 0, cache, &root, &err) < 0)
        return report_error(&err);
    uint64_t size = blk_size(root);
    status = compute(root, (unsigned)workers.value, progress && format == OUTPUT_HUMAN, hex);
    json_t *result = result_new(format, &cmd_checksum, filename);
    result_set_bytes(result, "virtual-size", size);
    if (status == EXIT_OK) {
        result_set_text(result, "algorithm", BLK_DIGEST_NAME);
        result_set_text(result, "digest", hex);
    }
    status = finish(status, &root, 1, result);
    if (status == EXIT_OK && format == OUTPUT_HUMAN)
        print_digest(filename, hex);
    return status;
}
