/* SPDX-License-Identifier: MIT */
/*
 * blkimg bench: how long a number of requests takes.
 *
 * Drivers are synchronous, so a depth of N means N threads with one request in flight each. The
 * mutex guards the choice of the next request, so that they go through the image in order.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/clock.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "cmd/common/common.h"

static int bench_main(int argc, char **argv);

const struct command cmd_bench = {
    .name = "bench",
    .summary = "Benchmark requests to an image",
    .usage = "filename",
    .run = bench_main,
};

/* The command line. */
struct bench_request {
    struct image_args image;
    const char *filename, *cache;
    bool native; /* -n */
    bool write, no_drain;
    uint64_t count, depth, offset, bytes, step, flush_interval; /* flush_interval 0: no flushes */
    uint64_t pattern;
    enum output_format format;
};

struct bench {
    const struct bench_request *request;
    struct blk_node *root;
    const void *data; /* what is written */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    uint64_t left; /* requests not begun */
    uint64_t next; /* offset of the next one */
    uint64_t in_flight;
    bool flushing; /* and nobody may begin a request */
    int ret;       /* the first failure */
    struct blk_error err;
    uint64_t nanoseconds; /* that the requests took */
};

/* ---- a thread of requests ---- */

static void fail(struct bench *bench, int ret, const struct blk_error *err)
{
    if (bench->ret == 0) {
        bench->ret = ret;
        bench->err = *err;
    }
    pthread_cond_broadcast(&bench->changed);
}

/* [mutex] Flushes; unless --no-drain is given, alone. */
static void flush(struct bench *bench)
{
    struct blk_error err = BLK_ERROR_INIT;
    bool alone = !bench->request->no_drain;

    bench->flushing = alone;
    while (alone && bench->in_flight)
        pthread_cond_wait(&bench->changed, &bench->mutex);
    pthread_mutex_unlock(&bench->mutex);
    int ret = blk_flush(bench->root, &err);
    pthread_mutex_lock(&bench->mutex);
    bench->flushing = false;
    if (ret < 0)
        fail(bench, ret, &err);
    pthread_cond_broadcast(&bench->changed);
}

/* [mutex] One request; the mutex is released meanwhile. */
static void send(struct bench *bench, void *buf)
{
    const struct bench_request *request = bench->request;
    struct blk_error err = BLK_ERROR_INIT;
    uint64_t offset = bench->next, size = blk_size(bench->root);

    bench->left--;
    bench->in_flight++;
    bench->next = size ? (offset + request->step) % size : 0;
    bool flush_is_due = request->flush_interval && bench->left % request->flush_interval == 0;
    bench->flushing = flush_is_due && !request->no_drain;
    pthread_mutex_unlock(&bench->mutex);

    int ret = request->write ? blk_pwrite(bench->root, offset, request->bytes, bench->data, 0, &err)
                             : blk_pread(bench->root, offset, request->bytes, buf, &err);

    pthread_mutex_lock(&bench->mutex);
    bench->in_flight--;
    if (ret == 0 && blk_cancelled())
        ret = blk_fail_why(&err, ECANCELED, "stopped by a signal", "requests to '%s'",
                           bench->root->name);
    if (ret < 0)
        fail(bench, ret, &err);
    pthread_cond_broadcast(&bench->changed);
    if (flush_is_due && bench->ret == 0)
        flush(bench);
    else if (flush_is_due)
        bench->flushing = false;
}

static void *bench_worker(void *argument)
{
    struct bench *bench = argument;
    struct blk_error err = BLK_ERROR_INIT;
    void *buf = bench->request->write ? NULL : blk_buffer_alloc(u64_max(bench->request->bytes, 1));

    pthread_mutex_lock(&bench->mutex);
    if (!buf && !bench->request->write)
        fail(bench, blk_fail(&err, ENOMEM, "requests to '%s'", bench->root->name), &err);
    while (bench->left && bench->ret == 0) {
        if (bench->flushing)
            pthread_cond_wait(&bench->changed, &bench->mutex);
        else
            send(bench, buf);
    }
    pthread_mutex_unlock(&bench->mutex);
    free(buf);
    return NULL;
}

/* ---- all of them ---- */

/* Exactly as many threads as are asked for: with fewer it would be another benchmark. */
static int run_threads(struct bench *bench, struct blk_error *err)
{
    uint64_t wanted = u64_min(bench->request->depth, bench->request->count), started = 0;
    pthread_t *threads = calloc(wanted ? wanted : 1, sizeof(*threads));
    int error = threads ? 0 : ENOMEM;

    pthread_mutex_lock(&bench->mutex);
    while (!error && started < wanted) {
        error = pthread_create(&threads[started], NULL, bench_worker, bench);
        if (!error)
            started++;
    }
    if (error) {
        blk_fail(&bench->err, error, "starting %" PRIu64 " threads", wanted);
        bench->ret = -error;
    }
    pthread_mutex_unlock(&bench->mutex);
    for (uint64_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    free(threads);
    if (bench->ret < 0)
        *err = bench->err;
    return bench->ret;
}

static void announce(const struct bench_request *request)
{
    if (request->format == OUTPUT_JSON)
        return;
    printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %" PRIu64 " in parallel "
           "(starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
           request->count, request->write ? "write" : "read", request->bytes, request->depth,
           request->offset, request->step);
    if (request->flush_interval)
        printf("Sending flush every %" PRIu64 " requests\n", request->flush_interval);
}

static int bench_measure(struct bench *bench, struct blk_error *err)
{
    const struct bench_request *request = bench->request;

    void *data = blk_buffer_alloc(u64_max(request->bytes, 1));
    if (!data)
        return blk_fail(err, ENOMEM, "requests of %" PRIu64 " bytes", request->bytes);
    memset(data, (int)request->pattern, request->bytes);
    bench->data = data;
    bench->left = request->count;
    bench->next = request->offset;
    pthread_mutex_init(&bench->mutex, NULL);
    pthread_cond_init(&bench->changed, NULL);

    announce(request);
    uint64_t start = blk_now_ns();
    int ret = run_threads(bench, err);
    bench->nanoseconds = blk_now_ns() - start;
    if (ret == 0 && request->format == OUTPUT_HUMAN)
        printf("Run completed in %3.3f seconds.\n", (double)bench->nanoseconds / 1e9);

    pthread_cond_destroy(&bench->changed);
    pthread_mutex_destroy(&bench->mutex);
    free(data);
    return ret;
}

/* ---- the command ---- */

/* There is no Linux AIO here, and timing threads under that name would be a lie. */
static int bench_check_aio(const struct bench_request *request)
{
    const char *aio = request->native && !request->image.aio ? "native" : request->image.aio;

    if (!aio || strcmp(aio, "threads") == 0 || strcmp(aio, "io_uring") == 0)
        return EXIT_OK;
    if (strcmp(aio, "native") == 0)
        return report_failure("bench: AIO 'native' is not supported; use threads or io_uring");
    return report_failure("bench: AIO '%s' is not one of threads, native, io_uring", aio);
}

static int bench_check_request(const struct bench_request *request)
{
    if (request->count > INT_MAX)
        return report_failure("-c: '%" PRIu64 "' is too large (the limit is %d)", request->count,
                              INT_MAX);
    if (request->depth < 1 || request->depth > INT_MAX)
        return report_failure("-d: the depth must be from 1 to %d", INT_MAX);
    if (request->bytes > INT_MAX || request->step > INT_MAX)
        return report_failure(
            "%s is too large (the limit is %d bytes)",
            request->bytes > INT_MAX ? "the buffer size (-s)" : "the step size (-S)", INT_MAX);
    if (request->pattern > 255)
        return report_failure("--pattern: '%" PRIu64 "' is not a byte (0 to 255)",
                              request->pattern);
    if (request->flush_interval && !request->write)
        return report_failure("--flush-interval is for write tests (-w)");
    if (request->no_drain && request->flush_interval && request->flush_interval < request->depth)
        return report_failure("with --no-drain the flush interval cannot be smaller than the "
                              "depth (-d)");
    return bench_check_aio(request);
}

static int bench_image(const struct bench_request *request)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct bench bench = { .request = request };

    int ret = image_open(&request->image, request->filename, request->write ? BLK_WRITABLE : 0,
                         request->cache, &bench.root, &err);
    if (ret == 0)
        ret = bench_measure(&bench, &err);
    json_t *result = result_new(request->format, &cmd_bench, request->filename);
    result_set_text(result, "mode", request->write ? "write" : "read");
    result_set_bytes(result, "requests", request->count);
    result_set_bytes(result, "bytes", ret < 0 ? 0 : request->count * request->bytes);
    result_set_bytes(result, "nanoseconds", bench.nanoseconds);
    return finish(ret < 0 ? report_error(&err) : EXIT_OK, &bench.root, 1, result);
}

static int bench_main(int argc, char **argv)
{
    struct bench_request request = { .image = IMAGE_ARGS_INIT };
    struct cmd_size count = { 75000, false }, depth = { 64, false }, offset = { 0, false };
    struct cmd_size bytes = { 4096, false }, step = { 0, false }, interval = { 0, false };
    struct cmd_size pattern = { 0, false };
    bool quiet = false;
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&request.image),
        { 'c', "count", CMD_UINT, &count, "N", "number of requests (75000)" },
        { 'd', "depth", CMD_UINT, &depth, "N", "requests in flight (64)" },
        { 'o', "offset", CMD_SIZE, &offset, "OFFSET", "offset of the first one (0)" },
        { 's', "buffer-size", CMD_SIZE, &bytes, "SIZE", "bytes per request (4k)" },
        { 'S', "step-size", CMD_SIZE, &step, "SIZE", "offset from one to the next (-s)" },
        { 'w', "write", CMD_FLAG, &request.write, NULL, "write, which destroys the content" },
        { 0, "pattern", CMD_UINT, &pattern, "BYTE", "byte to write (0)" },
        { 0, "flush-interval", CMD_UINT, &interval, "N", "flush after this many writes" },
        { 0, "no-drain", CMD_FLAG, &request.no_drain, NULL,
          "do not wait for all writes before a flush" },
        { 'i', "aio", CMD_STRING, &request.image.aio, "threads|io_uring",
          "how requests are submitted (threads)" },
        { 'n', "native", CMD_FLAG, &request.native, NULL, "as -i native, which is not supported" },
        { 't', "cache", CMD_STRING, &request.cache, "CACHE", "cache mode" },
        RESULT_OPTION(&request.format),
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "accepted, but the result is printed anyway" },
        CMD_OPTIONS_END,
    };

    int status = cmd_parse_image(&cmd_bench, options, argc, argv, &request.filename);
    if (status != CMD_RUN)
        return status;
    request.count = count.value;
    request.depth = depth.value;
    request.offset = offset.value;
    request.bytes = bytes.value;
    request.step = step.value ? step.value : bytes.value;
    request.flush_interval = interval.value;
    request.pattern = pattern.value;
    status = bench_check_request(&request);
    return status ? status : bench_image(&request);
}
