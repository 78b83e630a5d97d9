/* SPDX-License-Identifier: MIT */
/* flush, truncate, and the commands that are about the process: sleep, abort, sigraise. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "cmd/io/io.h"

int io_flush(struct io_session *session, int argc, char **argv)
{
    (void)argc, (void)argv;
    struct blk_error err = BLK_ERROR_INIT;
    return blk_flush(session->node, &err) < 0 ? io_report_error(&err) : 0;
}

int io_truncate(struct io_session *session, int argc, char **argv)
{
    enum blk_prealloc prealloc = BLK_PREALLOC_OFF;
    struct blk_error err = BLK_ERROR_INIT;
    uint64_t size;

    optind = 0; /* glibc: start over */
    opterr = 0;
    for (int letter = getopt(argc, argv, "m:"); letter != -1; letter = getopt(argc, argv, "m:")) {
        if (letter != 'm')
            return io_bad_option(argv[0]);
        if (blk_prealloc_parse(optarg, &prealloc) < 0)
            return io_misuse(argv[0], "'%s' is none of off, metadata, falloc, full", optarg);
    }
    if (optind != argc - 1)
        return io_misuse(argv[0], "one size is needed");
    if (io_parse_bytes(argv[optind], &size) < 0)
        return -EINVAL;
    /* What was submitted before comes before, even if its thread has not begun yet. */
    io_pool_wait(session->pool);
    if (blk_truncate(session->node, size, prealloc, false, &err) < 0)
        return io_report_error(&err);
    return 0;
}

int io_sleep(struct io_session *session, int argc, char **argv)
{
    (void)session, (void)argc;
    uint64_t milliseconds;
    if (blk_parse_uint(argv[1], &milliseconds) < 0 || milliseconds > INT64_MAX / 1000000) {
        printf("%s is not a valid number\n", argv[1]);
        return -EINVAL;
    }

    struct timespec left = {
        .tv_sec = (time_t)(milliseconds / 1000),
        .tv_nsec = (long)(milliseconds % 1000) * 1000000,
    };
    while (!blk_cancelled() && nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
    return 0;
}

int io_abort(struct io_session *session, int argc, char **argv)
{
    (void)session, (void)argc, (void)argv;
    abort();
}

int io_sigraise(struct io_session *session, int argc, char **argv)
{
    (void)session, (void)argc;
    uint64_t number;
    if (io_parse_bytes(argv[1], &number) < 0)
        return -EINVAL;
    if (number > INT_MAX || raise((int)number) != 0)
        return io_misuse(argv[0], "there is no signal %s", argv[1]);
    return 0;
}
