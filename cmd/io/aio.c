/* SPDX-License-Identifier: MIT */
/*
 * aio_read and aio_write: requests on the threads of the pool. A result is printed when its request
 * completes, and a request that fails, or reads something else than its pattern, fails the session:
 * the exit status does not depend on when a request ran.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/clock.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "cmd/io/request.h"

/* One request under way; its thread owns it. */
struct aio {
    struct io_session *session;
    struct blk_node *node;
    struct io_request request;
    uint64_t start;
};

static void aio_done(struct aio *aio, int ret)
{
    if (ret < 0)
        atomic_store(&aio->session->failed, true);
    io_request_free(&aio->request);
    free(aio);
}

static void aio_run_read(void *opaque)
{
    struct aio *aio = opaque;
    struct io_request *request = &aio->request;
    struct blk_error err = BLK_ERROR_INIT;

    int ret = blk_pread(aio->node, request->offset, request->bytes, request->data, &err);
    if (ret < 0)
        io_request_failed(aio->node, request, "readv", ret, &err);
    else
        ret = io_request_report_read(request, blk_now_ns() - aio->start);
    aio_done(aio, ret);
}

static void aio_run_write(void *opaque)
{
    struct aio *aio = opaque;
    struct io_request *request = &aio->request;
    unsigned flags = io_request_flags(request);
    struct blk_error err = BLK_ERROR_INIT;

    int ret =
        request->zero
            ? blk_write_zeroes(aio->node, request->offset, request->bytes, flags, &err)
            : blk_pwrite(aio->node, request->offset, request->bytes, request->data, flags, &err);
    if (ret < 0)
        io_request_failed(aio->node, request, "aio_write", ret, &err);
    else
        io_request_report(request, "wrote", blk_now_ns() - aio->start);
    aio_done(aio, ret);
}

/* Hands the request, whose buffer goes with it, to the pool. */
static int submit(struct io_session *session, const struct io_request *request,
                  void (*run)(void *opaque))
{
    struct aio *aio = blk_xcalloc(1, sizeof(*aio));
    *aio = (struct aio){
        .session = session,
        .node = session->node,
        .request = *request,
        .start = blk_now_ns(),
    };
    int ret = io_pool_submit(session->pool, run, aio);
    if (ret < 0) {
        io_misuse(request->command, "starting a thread: %s", strerror(-ret));
        aio_done(aio, ret);
    }
    return ret;
}

int io_aio_read(struct io_session *session, int argc, char **argv)
{
    static const struct io_request_form form = { .options = "CP:iqv", .vectored = true };
    struct io_request request;
    int ret = io_request_parse(&request, &form, argc, argv);
    if (ret < 0)
        return ret;
    if (request.invalid) {
        printf("injecting invalid read request\n");
        return 0;
    }
    ret = io_request_alloc(&request, session, 0xab);
    return ret < 0 ? ret : submit(session, &request, aio_run_read);
}

int io_aio_write(struct io_session *session, int argc, char **argv)
{
    static const struct io_request_form form = {
        .options = "CfiP:quz",
        .write = true,
        .vectored = true,
    };
    struct io_request request;
    int ret = io_request_parse(&request, &form, argc, argv);
    if (ret < 0)
        return ret;
    if (request.invalid) {
        printf("injecting invalid write request\n");
        return 0;
    }
    if (!request.zero)
        ret = io_request_alloc_write(&request, session);
    return ret < 0 ? ret : submit(session, &request, aio_run_write);
}

int io_aio_flush(struct io_session *session, int argc, char **argv)
{
    (void)argc, (void)argv;
    io_pool_wait(session->pool);
    return 0;
}
