/* SPDX-License-Identifier: MIT */
/* Requests as typed: their options, words and buffers. */
#include "cmd/io/request.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/array.h"
#include "blockcore/base/bytes.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/io.h"
#include "cmd/common/report.h"

/* By how much a misaligned buffer is off (-m). */
#define MISALIGN_BYTES 16

#define DEFAULT_PATTERN 0xcd

/* What was typed and has a meaning only together with other options. */
struct typed {
    const char *verify_offset, *verify_bytes; /* -s and -l of reads */
};

static int parse_pattern(const char *text, uint8_t *pattern)
{
    uint64_t value;
    if (blk_parse_uint(text, &value) < 0 || value > UINT8_MAX) {
        printf("%s is not a valid pattern byte\n", text);
        return -EINVAL;
    }
    *pattern = (uint8_t)value;
    return 0;
}

static int take_option(struct io_request *request, struct typed *typed, bool write, int letter)
{
    const struct {
        int letter;
        bool *flag;
    } flags[] = {
        { 'C', &request->compact }, { 'c', &request->compressed }, { 'v', &request->dump },
        { 'f', &request->fua },     { 'i', &request->invalid },    { 'n', &request->no_fallback },
        { 'q', &request->quiet },   { 'u', &request->unmap },      { 'b', &request->vmstate },
        { 'z', &request->zero },
    };
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        if (flags[i].letter == letter) {
            *flags[i].flag = true;
            return 0;
        }
    }

    switch (letter) {
    case 'P':
        request->has_pattern = true;
        return parse_pattern(optarg, &request->pattern);
    case 's':
        *(write ? &request->source : &typed->verify_offset) = optarg;
        return 0;
    case 'l':
        typed->verify_bytes = optarg;
        return 0;
    case 'p': /* long without a meaning; old scripts pass it */
        return 0;
    default:
        return io_bad_option(request->command);
    }
}

static int take_options(struct io_request *request, struct typed *typed,
                        const struct io_request_form *form, int argc, char **argv)
{
    optind = 0; /* glibc: start over */
    opterr = 0;
    int letter = getopt(argc, argv, form->options);
    for (; letter != -1; letter = getopt(argc, argv, form->options)) {
        int ret = take_option(request, typed, form->write, letter);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* One length of several: each and their sum fit a request. */
static int add_length(struct io_request *request, const char *text)
{
    uint64_t bytes;
    int ret = io_parse_bytes(text, &bytes);
    if (ret < 0)
        return ret;
    if (bytes > IO_MAX_REQUEST_BYTES) {
        printf("Argument '%s' exceeds maximum size %" PRIu64 "\n", text, IO_MAX_REQUEST_BYTES);
        return -EINVAL;
    }
    if (request->bytes + bytes > IO_MAX_REQUEST_BYTES)
        return io_misuse(request->command, "the lengths add up to more than %" PRIu64 " bytes",
                         IO_MAX_REQUEST_BYTES);
    request->bytes += bytes;
    return 0;
}

static int take_length(struct io_request *request, const struct io_request_form *form,
                       const char *text)
{
    int ret = io_parse_bytes(text, &request->bytes);
    if (ret < 0)
        return ret;
    if (request->bytes > IO_MAX_REQUEST_BYTES && !request->no_fallback) {
        const char *unless = strchr(form->options, 'n') ? " without -n" : "";
        printf("length cannot exceed %" PRIu64 "%s, given %s\n", IO_MAX_REQUEST_BYTES, unless,
               text);
        return -EINVAL;
    }
    return 0;
}

static int take_range(struct io_request *request, const struct io_request_form *form, int argc,
                      char **argv)
{
    int lengths = argc - optind - 1;
    if (lengths < 1 || (lengths > 1 && !form->vectored))
        return io_misuse(request->command, "an offset and %s are needed",
                         form->vectored ? "at least one length" : "one length");

    int ret = io_parse_bytes(argv[optind], &request->offset);
    if (ret < 0)
        return ret;
    if (!form->vectored)
        return take_length(request, form, argv[optind + 1]);

    if (request->zero) {
        /* A write of zeroes has no buffer, so its length has no limit but the image's. */
        if (lengths > 1)
            return io_misuse(request->command, "-z takes one length");
        return io_parse_bytes(argv[optind + 1], &request->bytes);
    }
    for (int i = optind + 1; i < argc && ret == 0; i++)
        ret = add_length(request, argv[i]);
    return ret;
}

static int take_verify_range(struct io_request *request, const struct typed *typed)
{
    if ((typed->verify_offset || typed->verify_bytes) && !request->has_pattern)
        return io_misuse(request->command, "-s and -l need a pattern (-P)");

    int ret = 0;
    if (typed->verify_offset)
        ret = io_parse_bytes(typed->verify_offset, &request->verify_offset);
    if (ret == 0 && typed->verify_bytes)
        ret = io_parse_bytes(typed->verify_bytes, &request->verify_bytes);
    if (ret < 0)
        return ret;
    if (!typed->verify_bytes && request->verify_offset <= request->bytes)
        request->verify_bytes = request->bytes - request->verify_offset;
    if (!range_within(request->verify_offset, request->verify_bytes, request->bytes))
        return io_misuse(request->command, "the range to verify is not within what is read");
    return 0;
}

static int check_write_options(const struct io_request *request)
{
    const char *command = request->command;

    if (request->vmstate && (request->compressed || request->zero))
        return io_misuse(command, "-b excludes -c and -z");
    if (request->fua && (request->vmstate || request->compressed))
        return io_misuse(command, "-f excludes -b and -c");
    if (request->no_fallback && !request->zero)
        return io_misuse(command, "-n requires -z to be specified");
    if (request->unmap && !request->zero)
        return io_misuse(command, "-u requires -z to be specified");
    if (request->zero + request->has_pattern + (request->source != NULL) > 1)
        return io_misuse(command, "-z, -P and -s exclude each other");
    return 0;
}

/* Requests that QEMU counts in sectors. */
static int check_sectors(const struct io_request *request)
{
    const struct {
        const char *what;
        uint64_t value;
    } values[] = { { "offset", request->offset }, { "count", request->bytes } };

    for (size_t i = 0; i < 2; i++) {
        if (values[i].value % BLK_SECTOR_BYTES) {
            printf("%" PRIu64 " is not a sector-aligned value for '%s'\n", values[i].value,
                   values[i].what);
            return -EINVAL;
        }
    }
    return 0;
}

int io_request_parse(struct io_request *request, const struct io_request_form *form, int argc,
                     char **argv)
{
    struct typed typed = { NULL, NULL };
    *request = (struct io_request){ .command = argv[0], .pattern = DEFAULT_PATTERN };

    int ret = take_options(request, &typed, form, argc, argv);
    if (ret < 0)
        return ret;
    if (form->write)
        ret = check_write_options(request);
    if (ret < 0)
        return ret;
    ret = take_range(request, form, argc, argv);
    if (ret < 0)
        return ret;
    ret = take_verify_range(request, &typed);
    if (ret < 0)
        return ret;
    if (request->vmstate || request->compressed)
        return check_sectors(request);
    return 0;
}

int io_request_alloc(struct io_request *request, const struct io_session *session, uint8_t fill)
{
    size_t shift = session->misalign ? MISALIGN_BYTES : 0;
    request->memory = blk_buffer_alloc(request->bytes + shift + 1); /* never of 0 bytes */
    if (!request->memory) {
        io_misuse(request->command, "no memory for %" PRIu64 " bytes", request->bytes);
        return -ENOMEM;
    }
    request->data = (uint8_t *)request->memory + shift;
    memset(request->data, fill, request->bytes);
    return 0;
}

void io_request_free(struct io_request *request)
{
    free(request->memory);
    request->memory = NULL;
    request->data = NULL;
}

/* Fills the buffer with the content of a file, again and again. Returns 0 or -errno with `err`. */
static int fill_from(FILE *file, struct io_request *request, struct blk_error *err)
{
    uint64_t got = fread(request->data, 1, request->bytes, file);
    if (ferror(file))
        return blk_fail(err, errno, "reading '%s'", request->source);
    if (got == 0 && request->bytes)
        return blk_fail_why(err, EINVAL, "The file is empty", "reading '%s'", request->source);

    for (uint64_t done = got; done < request->bytes;) {
        uint64_t part = u64_min(done, request->bytes - done);
        /* The repeated part keeps its phase: `done` is a multiple of the file's length. */
        memcpy(request->data + done, request->data, part);
        done += part;
    }
    return 0;
}

static int fill_from_source(struct io_request *request)
{
    struct blk_error err = BLK_ERROR_INIT;
    FILE *file = fopen(request->source, "re");
    if (!file) {
        blk_fail(&err, errno, "Could not open '%s'", request->source);
        return io_report_error(&err);
    }
    int ret = fill_from(file, request, &err);
    fclose(file); /* only read from: nothing can be lost */
    return ret < 0 ? io_report_error(&err) : 0;
}

int io_request_alloc_write(struct io_request *request, const struct io_session *session)
{
    int ret = io_request_alloc(request, session, request->pattern);
    if (ret < 0 || !request->source)
        return ret;
    return fill_from_source(request);
}

unsigned io_request_flags(const struct io_request *request)
{
    return (request->fua ? BLK_REQ_FUA : 0) | (request->unmap ? BLK_REQ_MAY_UNMAP : 0) |
           (request->no_fallback ? BLK_REQ_NO_FALLBACK : 0);
}

/* Whether [offset, offset + bytes) of the data is all pattern; says so where it is not. */
static int verify(const struct io_request *request)
{
    const uint8_t *data = request->data + request->verify_offset;
    for (uint64_t i = 0; i < request->verify_bytes; i++) {
        if (data[i] != request->pattern) {
            printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n",
                   request->offset + request->verify_offset, request->verify_bytes);
            return -EINVAL;
        }
    }
    return 0;
}

int io_request_report_read(const struct io_request *request, uint64_t nanoseconds)
{
    flockfile(stdout);
    int ret = request->has_pattern ? verify(request) : 0;
    if (!request->quiet) {
        if (request->dump)
            io_print_dump(request->data, request->bytes, request->offset);
        io_print_report("read", nanoseconds, request->offset, request->bytes, request->compact);
    }
    funlockfile(stdout);
    return ret;
}

void io_request_report(const struct io_request *request, const char *verb, uint64_t nanoseconds)
{
    if (!request->quiet)
        io_print_report(verb, nanoseconds, request->offset, request->bytes, request->compact);
}

/* Whether the error says more than the result line; not of a request that cannot succeed. */
static bool is_worth_saying(const struct blk_node *node, const struct io_request *request,
                            const struct blk_error *err)
{
    return err->code && err->code != ENOTSUP && strcmp(err->why, strerror(err->code)) != 0 &&
           (request->vmstate || range_within(request->offset, request->bytes, blk_size(node)));
}

void io_request_failed(const struct blk_node *node, const struct io_request *request,
                       const char *what, int ret, const struct blk_error *err)
{
    flockfile(stdout);
    printf("%s failed: %s\n", what, strerror(-ret));
    if (is_worth_saying(node, request, err))
        report_error(err);
    funlockfile(stdout);
}
