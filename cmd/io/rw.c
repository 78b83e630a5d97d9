/* SPDX-License-Identifier: MIT */
/* read, readv, write, writev and discard: one request, run on the session's own thread. */
#include <errno.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/clock.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/pieces.h"
#include "cmd/io/request.h"

static int rw_run_read(struct io_session *session, const struct io_request *request,
                       struct blk_error *err)
{
    if (!request->vmstate)
        return blk_pread(session->node, request->offset, request->bytes, request->data, err);
    io_pool_wait(session->pool); /* runs alone */
    return blk_vm_state_read(session->node, request->offset, request->bytes, request->data, err);
}

static int read_request(struct io_session *session, const struct io_request_form *form, int argc,
                        char **argv)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct io_request request;
    int ret = io_request_parse(&request, form, argc, argv);
    if (ret < 0)
        return ret;
    /* Not zeroes: bytes that a driver failed to fill in must be seen. */
    ret = io_request_alloc(&request, session, 0xab);
    if (ret < 0)
        return ret;

    uint64_t start = blk_now_ns();
    ret = rw_run_read(session, &request, &err);
    uint64_t elapsed = blk_now_ns() - start;
    if (ret < 0)
        io_request_failed(session->node, &request, form->vectored ? "readv" : "read", ret, &err);
    else
        ret = io_request_report_read(&request, elapsed);
    io_request_free(&request);
    return ret;
}

int io_read(struct io_session *session, int argc, char **argv)
{
    static const struct io_request_form form = { .options = "bCl:pP:qs:v" };
    return read_request(session, &form, argc, argv);
}

int io_readv(struct io_session *session, int argc, char **argv)
{
    static const struct io_request_form form = { .options = "CP:qv", .vectored = true };
    return read_request(session, &form, argc, argv);
}

/* Whether all parts of a compressed write can be written: whole ones, but for the image's last. */
static int check_compressed(const struct io_session *session, const struct io_request *request)
{
    uint64_t size = blk_size(session->node), part = session->compressed_bytes;

    if (!range_within(request->offset, request->bytes, size))
        return -EIO;
    if (!part)
        return -ENOTSUP;
    bool ends = request->offset + request->bytes == size;
    return request->offset % part || (request->bytes % part && !ends) ? -EINVAL : 0;
}

/* A compressed write is one cluster at a time: that is what a driver can do at once. */
static int write_compressed(struct io_session *session, const struct io_request *request,
                            struct blk_error *err)
{
    uint64_t part = session->compressed_bytes;
    int ret = check_compressed(session, request);

    for (uint64_t done = 0; done < request->bytes && ret == 0; done += part) {
        uint64_t bytes = u64_min(part, request->bytes - done);
        ret = blk_write_compressed(session->node, request->offset + done, bytes,
                                   request->data + done, err);
    }
    return ret;
}

static int rw_run_write(struct io_session *session, const struct io_request *request,
                        struct blk_error *err)
{
    struct blk_node *node = session->node;
    unsigned flags = io_request_flags(request);

    if (request->vmstate) {
        io_pool_wait(session->pool); /* runs alone */
        return blk_vm_state_write(node, request->offset, request->bytes, request->data, err);
    }
    if (request->zero)
        return blk_write_zeroes(node, request->offset, request->bytes, flags, err);
    if (request->compressed)
        return write_compressed(session, request, err);
    return blk_pwrite(node, request->offset, request->bytes, request->data, flags, err);
}

static int write_request(struct io_session *session, const struct io_request_form *form, int argc,
                         char **argv)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct io_request request;
    int ret = io_request_parse(&request, form, argc, argv);
    if (ret == 0 && !request.zero)
        ret = io_request_alloc_write(&request, session);
    if (ret == 0) {
        uint64_t start = blk_now_ns();
        ret = rw_run_write(session, &request, &err);
        uint64_t elapsed = blk_now_ns() - start;
        if (ret < 0)
            io_request_failed(session->node, &request, form->vectored ? "writev" : "write", ret,
                              &err);
        else
            io_request_report(&request, "wrote", elapsed);
    }
    io_request_free(&request);
    return ret;
}

int io_write(struct io_session *session, int argc, char **argv)
{
    static const struct io_request_form form = { .options = "bcCfnpP:qs:uz", .write = true };
    return write_request(session, &form, argc, argv);
}

int io_writev(struct io_session *session, int argc, char **argv)
{
    static const struct io_request_form form = {
        .options = "CfqP:",
        .write = true,
        .vectored = true,
    };
    return write_request(session, &form, argc, argv);
}

int io_discard(struct io_session *session, int argc, char **argv)
{
    static const struct io_request_form form = { .options = "Cq" };
    struct blk_error err = BLK_ERROR_INIT;
    struct io_request request;
    int ret = io_request_parse(&request, &form, argc, argv);
    if (ret < 0)
        return ret;

    uint64_t start = blk_now_ns();
    ret = blk_discard(session->node, request.offset, request.bytes, &err);
    uint64_t elapsed = blk_now_ns() - start;
    if (ret < 0)
        io_request_failed(session->node, &request, "discard", ret, &err);
    else
        io_request_report(&request, "discard", elapsed);
    return ret;
}
