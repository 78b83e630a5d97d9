/* SPDX-License-Identifier: MIT */
/*
 * blkimg compare: whether two images have the same content.
 *
 * An iterator walks the block status of both under a mutex; worker threads read and compare what is
 * not known to be zero on both sides. What is reported is the finding with the lowest offset, as if
 * one thread had gone through the images from the start: the workers go on until all before it is
 * done.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/workers.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"
#include "cmd/common/common.h"

/* Exit statuses other than 0 and 1 (images differ). */
enum compare_status {
    COMPARE_OPEN_FAILED = 2,
    COMPARE_MAP_FAILED = 3,
    COMPARE_READ_FAILED = 4,
};

static int compare_main(int argc, char **argv);

const struct command cmd_compare = {
    .name = "compare",
    .summary = "Compare the content of two images",
    .usage = "filename1 filename2",
    .run = compare_main,
    .error_status = COMPARE_OPEN_FAILED, /* 1 says that the images differ */
};

/* Small enough that what was read is still in the processor's cache when it is compared. */
#define CHUNK_BYTES (512 * KIB)
#define WORKERS 2

/* What strict mode wants to be the same. */
#define STRICT_FLAGS (BLK_EXT_DATA | BLK_EXT_ZERO | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID)

enum verdict { SAME, CONTENT_DIFFERS, STATUS_DIFFERS, MAP_UNREADABLE, UNREADABLE };

struct finding {
    enum verdict verdict;
    uint64_t offset;
    struct blk_error err; /* why, when something failed */
};

struct chunk {
    uint64_t offset, bytes;
    bool zero[2]; /* known to read as zeroes */
};

struct compare_job {
    struct blk_node *roots[2];
    uint64_t common, total; /* bytes that both and that the longer one has, in whole sectors */
    bool strict;

    pthread_mutex_t mutex;        /* guards what follows */
    uint64_t next;                /* everything before has been handed out */
    struct blk_extent extents[2]; /* at `next`; bytes 0: unknown */
    struct finding finding;
    uint64_t done;
    struct progress progress;
};

/* ---- findings ---- */

/* Keeps the finding with the lowest offset. The mutex is held. */
static void found(struct compare_job *job, enum verdict verdict, uint64_t offset,
                  const struct blk_error *err)
{
    if (job->finding.verdict != SAME && job->finding.offset <= offset)
        return;
    job->finding.verdict = verdict;
    job->finding.offset = offset;
    if (err)
        job->finding.err = *err;
}

static void found_by_worker(struct compare_job *job, enum verdict verdict, uint64_t offset,
                            const struct blk_error *err)
{
    pthread_mutex_lock(&job->mutex);
    found(job, verdict, offset, err);
    pthread_mutex_unlock(&job->mutex);
}

/* ---- the iterator; the mutex is held ---- */

static bool look_at_side(struct compare_job *job, int side)
{
    struct blk_error err = BLK_ERROR_INIT;
    if (job->extents[side].bytes)
        return true;
    if (blk_block_status_above(blk_layers(job->roots[side], NULL), job->next,
                               job->total - job->next, BLK_WANT_ZERO | BLK_WANT_HOLES,
                               &job->extents[side], &err) == 0)
        return true;
    found(job, MAP_UNREADABLE, job->next, &err);
    return false;
}

static bool status_differs(const struct compare_job *job)
{
    /* Within the last sector one image may end before the other. */
    bool inside = job->next < blk_size(job->roots[0]) && job->next < blk_size(job->roots[1]);
    return job->strict && inside && (job->extents[0].flags ^ job->extents[1].flags) & STRICT_FLAGS;
}

/* Takes the next range that must be read. False when there is none, or it is behind a finding. */
static bool next_chunk(struct compare_job *job, struct chunk *chunk)
{
    for (;;) {
        uint64_t end = job->finding.verdict == SAME ? job->total : job->finding.offset;
        if (job->next >= end || blk_cancelled() || !look_at_side(job, 0) || !look_at_side(job, 1))
            return false;
        if (status_differs(job)) {
            found(job, STATUS_DIFFERS, job->next, NULL);
            return false;
        }

        *chunk = (struct chunk){ .offset = job->next };
        chunk->bytes = u64_min(job->extents[0].bytes, job->extents[1].bytes);
        for (int side = 0; side < 2; side++)
            chunk->zero[side] = job->extents[side].flags & BLK_EXT_ZERO;
        bool known = chunk->zero[0] && chunk->zero[1];
        if (!known)
            chunk->bytes = u64_min(chunk->bytes, CHUNK_BYTES);

        job->next += chunk->bytes;
        job->extents[0].bytes -= chunk->bytes;
        job->extents[1].bytes -= chunk->bytes;
        if (!known)
            return true;
        job->done += chunk->bytes;
    }
}

/* ---- comparing one chunk ---- */

/*
 * The offset of the first sector in [offset, offset + bytes) that differs, or UINT64_MAX. With a
 * NULL `b`, that is not zero. Sectors are the image's: one that begins before `offset` was the same
 * up to there, and is the answer.
 */
static uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t bytes,
                                 uint64_t offset)
{
    if (b ? memcmp(a, b, bytes) == 0 : bytes_are_zero(a, bytes))
        return UINT64_MAX;
    uint64_t at = 0;
    for (;;) {
        uint64_t piece = u64_min(BLK_SECTOR_BYTES - (offset + at) % BLK_SECTOR_BYTES, bytes - at);
        if (b ? memcmp(a + at, b + at, piece) != 0 : !bytes_are_zero(a + at, piece))
            return round_down(offset + at, BLK_SECTOR_BYTES);
        at += piece;
    }
}

static void compare_chunk(struct compare_job *job, const struct chunk *chunk, uint8_t *buffers[2])
{
    const uint8_t *read[2];
    int count = 0;

    for (int side = 0; side < 2; side++) {
        struct blk_error err = BLK_ERROR_INIT;
        if (chunk->zero[side])
            continue;
        if (blk_pread(job->roots[side], chunk->offset, chunk->bytes, buffers[side], &err) < 0) {
            found_by_worker(job, UNREADABLE, chunk->offset, &err);
            return;
        }
        read[count++] = buffers[side];
    }
    uint64_t at =
        first_difference(read[0], count == 2 ? read[1] : NULL, chunk->bytes, chunk->offset);
    if (at != UINT64_MAX)
        found_by_worker(job, CONTENT_DIFFERS, at, NULL);
}

/* ---- workers ---- */

static void *compare_worker(void *argument)
{
    struct compare_job *job = argument;
    struct chunk chunk = { .bytes = 0 };
    uint8_t *memory = blk_buffer_alloc(2 * CHUNK_BYTES);

    pthread_mutex_lock(&job->mutex);
    if (!memory) {
        struct blk_error err = BLK_ERROR_INIT;
        blk_fail(&err, ENOMEM, "comparing '%s'", job->roots[0]->name);
        found(job, UNREADABLE, job->next, &err);
    }
    while (memory && next_chunk(job, &chunk)) {
        pthread_mutex_unlock(&job->mutex);
        compare_chunk(job, &chunk, (uint8_t *[2]){ memory, memory + CHUNK_BYTES });
        pthread_mutex_lock(&job->mutex);
        job->done += chunk.bytes;
        progress_update(&job->progress, job->done, job->total);
    }
    pthread_mutex_unlock(&job->mutex);
    free(memory);
    return NULL;
}

static void compare_content(struct compare_job *job)
{
    pthread_mutex_init(&job->mutex, NULL);
    blk_run_workers(WORKERS, compare_worker, job);
    pthread_mutex_destroy(&job->mutex);

    if (blk_cancelled() && job->next < job->total && job->finding.verdict == SAME) {
        struct blk_error err = BLK_ERROR_INIT;
        blk_fail_why(&err, ECANCELED, "stopped by a signal", "comparing '%s' and '%s'",
                     job->roots[0]->name, job->roots[1]->name);
        found(job, UNREADABLE, job->next, &err);
    }
}

/* ---- the command ---- */

static void describe_finding(const struct finding *finding, json_t *result)
{
    static const char *const differences[] = {
        [CONTENT_DIFFERS] = "content",
        [STATUS_DIFFERS] = "status",
        [UNREADABLE] = NULL,
    };
    const char *difference = differences[finding->verdict];

    if (finding->verdict == SAME || difference)
        result_set_flag(result, "identical", !difference);
    result_set_text(result, "difference", difference);
    if (difference)
        result_set_bytes(result, "offset", finding->offset);
}

/* Says what was found. Returns the exit status. */
static int report_finding(const struct compare_job *job, bool quiet, json_t *result)
{
    const struct finding *finding = &job->finding;
    bool reached_end = finding->verdict == SAME || finding->offset >= job->common;

    if (!quiet && reached_end && job->common != job->total)
        puts("Warning: Image size mismatch!");
    describe_finding(finding, result);
    switch (finding->verdict) {
    case SAME:
        if (!quiet)
            puts("Images are identical.");
        return EXIT_OK;
    case CONTENT_DIFFERS:
        if (!quiet)
            printf("Content mismatch at offset %" PRIu64 "!\n", finding->offset);
        return EXIT_FAILED;
    case STATUS_DIFFERS:
        if (!quiet)
            printf("Strict mode: Offset %" PRIu64 " block status mismatch!\n", finding->offset);
        return EXIT_FAILED;
    case MAP_UNREADABLE:
        return report_error_as(COMPARE_MAP_FAILED, &finding->err);
    case UNREADABLE:
        break;
    }
    return report_error_as(COMPARE_READ_FAILED, &finding->err);
}

static int compare_images(struct blk_node *roots[2], bool strict, bool progress, bool quiet,
                          json_t *result)
{
    uint64_t first = round_up(blk_size(roots[0]), BLK_SECTOR_BYTES);
    uint64_t second = round_up(blk_size(roots[1]), BLK_SECTOR_BYTES);
    struct compare_job job = {
        .roots = { roots[0], roots[1] },
        .common = u64_min(first, second),
        .total = u64_max(first, second),
        .strict = strict,
    };

    progress_start(&job.progress, progress);
    int status = EXIT_FAILED;
    if (strict && first != second) {
        if (!quiet)
            puts("Strict mode: Image size mismatch!");
        result_set_flag(result, "identical", false);
        result_set_text(result, "difference", "size");
    } else {
        compare_content(&job);
        if (job.finding.verdict == SAME)
            progress_reach_end(&job.progress);
        status = report_finding(&job, quiet, result);
    }
    progress_finish(&job.progress, false);
    return status;
}

static int compare_main(int argc, char **argv)
{
    struct image_args images[2] = { IMAGE_ARGS_INIT, IMAGE_ARGS_INIT };
    enum output_format format = OUTPUT_HUMAN;
    const char *cache = NULL;
    bool strict = false, progress = false, quiet = false;
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&images[0]),
        { 'F', "second-format", CMD_STRING, &images[1].format, "FMT",
          "format of the second image" },
        { 'T', "cache", CMD_STRING, &cache, "CACHE", "cache mode of both images" },
        { 's', "strict", CMD_FLAG, &strict, NULL, "sizes and allocation must match, too" },
        { 'p', "progress", CMD_FLAG, &progress, NULL, "show the progress" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        RESULT_OPTION(&format),
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    int status = cmd_parse(&cmd_compare, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (operands.count != 2)
        return report_usage(&cmd_compare, "expects two images");

    const char *second_format = images[1].format;
    images[1] = images[0];
    images[1].format = second_format;

    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *roots[2] = { NULL, NULL };
    for (int i = 0; i < 2; i++) {
        if (image_open(&images[i], operands.items[i], 0, cache, &roots[i], &err) < 0)
            return finish(report_error_as(COMPARE_OPEN_FAILED, &err), roots, 2, NULL);
    }
    json_t *result = result_new(format, &cmd_compare, operands.items[0]);
    result_set_text(result, "other-filename", operands.items[1]);
    quiet = quiet || format == OUTPUT_JSON;
    status = compare_images(roots, strict, progress && !quiet, quiet, result);
    return status > EXIT_FAILED ? finish(status, roots, 2, result)
                                : finish_answered(status, roots, 2, result);
}
