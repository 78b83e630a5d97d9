/* SPDX-License-Identifier: MIT */
/*
 * One read, write or discard as typed: what the words of the command ask for, and its buffer.
 * Shared by the synchronous commands (rw.c) and the asynchronous ones (aio.c).
 */
#ifndef CMD_IO_REQUEST_H
#define CMD_IO_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "cmd/io/io.h"

/* What is between a length argument and a request: QEMU's largest request, 2^31 - 512 bytes. */
#define IO_MAX_REQUEST_BYTES UINT64_C(2147483136)

/* What a command accepts. */
struct io_request_form {
    const char *options; /* in getopt()'s notation */
    bool write;          /* -s names a source file, not an offset */
    bool vectored;       /* several lengths, which add up */
};

struct io_request {
    const char *command; /* name as typed; not valid once the command has returned */
    uint64_t offset, bytes;

    bool compact;     /* -C: one line of values as the report */
    bool compressed;  /* -c */
    bool dump;        /* -v */
    bool fua;         /* -f */
    bool invalid;     /* -i: only pretend */
    bool no_fallback; /* -n */
    bool quiet;       /* -q: no report */
    bool unmap;       /* -u */
    bool vmstate;     /* -b */
    bool zero;        /* -z */

    bool has_pattern; /* -P: to write, or to compare with what was read */
    uint8_t pattern;
    const char *source; /* -s of writes: a file that holds the pattern, repeated; or NULL */
    uint64_t verify_offset, verify_bytes; /* what to compare; relative to the request */

    void *memory;  /* the allocation that `data` is in; io_request_free() */
    uint8_t *data; /* `bytes` of it; NULL for zero writes and discards */
};

/*
 * Fills `request` from the words of a command, and checks them. Returns 0, or -errno after having
 * said what is wrong. There is no buffer yet.
 */
int io_request_parse(struct io_request *request, const struct io_request_form *form, int argc,
                     char **argv);

/* Gives the request a buffer filled with `fill`. Returns 0 or -ENOMEM, with a message. */
int io_request_alloc(struct io_request *request, const struct io_session *session, uint8_t fill);

/* Gives a write its buffer and fills it with the pattern or from the source file. */
int io_request_alloc_write(struct io_request *request, const struct io_session *session);

void io_request_free(struct io_request *request);

/* The flags of blk_pwrite() and blk_write_zeroes() that the request's options mean. */
unsigned io_request_flags(const struct io_request *request);

/*
 * Says what became of a read: failed verification, dump and report, unless quiet. Returns 0, or
 * -EINVAL when the content is not the pattern. Safe on any thread: the lines stay together.
 */
int io_request_report_read(const struct io_request *request, uint64_t nanoseconds);

/*
 * "WHAT failed: ..." of a request that failed with `ret`. What is known beyond that, such as the
 * damage that a read has met, goes to standard error. Safe on any thread.
 */
void io_request_failed(const struct blk_node *node, const struct io_request *request,
                       const char *what, int ret, const struct blk_error *err);

/* The report of a write (verb "wrote") or discard. Safe on any thread. */
void io_request_report(const struct io_request *request, const char *verb, uint64_t nanoseconds);

#endif
