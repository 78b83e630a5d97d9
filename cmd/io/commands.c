/* SPDX-License-Identifier: MIT */
/* The list of commands, looking one up, and help, which shows the list. */
#include <stdio.h>
#include <string.h>

#include "cmd/io/io.h"

#define ANY (-1)

#define REPORT_OPTIONS \
    "  -C   report as one line: bytes,requests,time,bytes/s,requests/s\n" \
    "  -q   no report\n"
#define WRITE_OPTIONS \
    "  -P BYTE  what to write (0xcd unless given)\n" \
    "  -f   with FUA: on stable storage before it completes\n"
#define ZERO_OPTIONS \
    "  -z   write zeroes without sending data\n" \
    "  -u   with -z: space may be given back\n"
#define ASYNC_NOTE \
    "Runs in the background; its result is printed when it completes. aio_flush waits for it.\n" \
    "  -i   announce the request, but do not make it\n"

static int io_help(struct io_session *session, int argc, char **argv);
static int io_quit(struct io_session *session, int argc, char **argv);

/* All commands in alphabetical order; an entry without name ends the table. */
static const struct io_command io_commands[] = {
    { "abort", NULL, io_abort, 0, 0, 0, NULL, "end as if the program had crashed", NULL },
    { "aio_flush", NULL, io_aio_flush, 0, 0, IO_NEEDS_IMAGE, NULL,
      "wait for all requests in the background", NULL },
    { "aio_read", NULL, io_aio_read, 2, ANY, IO_NEEDS_IMAGE, "[-Ciqv] [-P pattern] off len [len..]",
      "read in the background",
      ASYNC_NOTE REPORT_OPTIONS "  -P BYTE  what the content must be\n"
                                "  -v   show the content\n" },
    { "aio_write", NULL, io_aio_write, 2, ANY, IO_NEEDS_WRITABLE,
      "[-Cfiquz] [-P pattern] off len [len..]", "write in the background",
      ASYNC_NOTE REPORT_OPTIONS WRITE_OPTIONS ZERO_OPTIONS },
    { "alloc", "a", io_alloc, 1, 2, IO_NEEDS_IMAGE, "offset [count]",
      "count the allocated bytes of a range",
      "The range is one sector unless count is given. Backing files do not count.\n" },
    { "break", NULL, io_break, 2, 2, IO_NEEDS_IMAGE, "event tag",
      "stop the next request that comes to an event",
      "Needs a blkdebug node. The tag is for resume, remove_break and wait_break.\n" },
    { "close", "c", io_close, 0, 0, IO_NEEDS_IMAGE, NULL, "close the image", NULL },
    { "discard", "d", io_discard, 2, ANY, IO_NEEDS_WRITABLE, "[-Cq] off len", "discard a range",
      REPORT_OPTIONS },
    { "flush", "f", io_flush, 0, 0, IO_NEEDS_IMAGE, NULL,
      "make what was written survive, as far as the cache mode says", NULL },
    { "help", "?", io_help, 0, 1, 0, "[command]", "show all commands, or one in detail", NULL },
    { "info", "i", io_info, 0, 0, IO_NEEDS_IMAGE, NULL, "show the format of the image", NULL },
    { "length", "l", io_length, 0, 0, IO_NEEDS_IMAGE, NULL, "show the size of the image", NULL },
    { "map", NULL, io_map, 0, 0, IO_NEEDS_IMAGE, NULL, "list which ranges are allocated", NULL },
    { "open", "o", io_open, 1, ANY, 0,
      "[-rsCnkU] [-t cache] [-d discard] [-i aio] [-o options] [path]", "open an image",
      "  -r   read-only\n"
      "  -n   as -t none\n"
      "  -t MODE  cache mode: none, writeback (default), unsafe, writethrough, directsync\n"
      "  -d MODE  discards reach the medium: unmap or on (default), or not: ignore or off\n"
      "  -o OPTIONS  node options, as driver=qcow2,file.locking=off\n"
      "  -U   although another process writes to it; with -r\n"
      "  -k, -i MODE  accepted; requests run on threads\n"
      "  -s   write to a temporary overlay, which is thrown away\n"
      "  -C   keep what reads bring from backing files\n" },
    { "quit", "q", io_quit, 0, 0, 0, NULL, "wait for all requests, close the image, and end",
      NULL },
    { "read", "r", io_read, 2, ANY, IO_NEEDS_IMAGE,
      "[-bCqv] [-P pattern [-s off] [-l len]] off len", "read a range",
      REPORT_OPTIONS "  -P BYTE  what the content must be\n"
                     "  -s OFF, -l LEN  verify only this part of what was read\n"
                     "  -v   show the content\n"
                     "  -b   the VM state, which qcow2 keeps behind the disk; multiples of 512\n"
                     "  -p   has no meaning\n" },
    { "readv", NULL, io_readv, 2, ANY, IO_NEEDS_IMAGE, "[-Cqv] [-P pattern] off len [len..]",
      "read a range given by several lengths",
      REPORT_OPTIONS "  -P BYTE  what the content must be\n"
                     "  -v   show the content\n" },
    { "remove_break", NULL, io_remove_break, 1, 1, IO_NEEDS_IMAGE, "tag",
      "remove breakpoints and let go what they hold", NULL },
    { "reopen", NULL, io_reopen, 0, ANY, IO_NEEDS_IMAGE, "[(-r|-w)] [-c cache] [-o options]",
      "change how the image is open",
      "  -r, -w  read-only, writable\n"
      "  -c MODE  cache mode\n"
      "  -o OPTIONS  options to change, as cache.direct=on; see blkimg-io(1)\n" },
    { "resume", NULL, io_resume, 1, 1, IO_NEEDS_IMAGE, "tag", "let a stopped request go on", NULL },
    { "sigraise", NULL, io_sigraise, 1, 1, 0, "signal", "send a signal, by number, to this process",
      NULL },
    { "sleep", NULL, io_sleep, 1, 1, 0, "milliseconds", "wait", NULL },
    { "truncate", "t", io_truncate, 1, 3, IO_NEEDS_WRITABLE, "[-m prealloc_mode] off",
      "change the size of the image",
      "  -m MODE  how new space is allocated: off, metadata, falloc, full\n" },
    { "wait_break", NULL, io_wait_break, 1, 1, IO_NEEDS_IMAGE, "tag",
      "wait until a request has stopped", NULL },
    { "write", "w", io_write, 2, ANY, IO_NEEDS_WRITABLE,
      "[-bcCfnquz] [-P pattern | -s source_file] off len", "write a range",
      REPORT_OPTIONS WRITE_OPTIONS
      "  -s FILE  write the content of a file, repeated\n" ZERO_OPTIONS
      "  -n   with -z: only if that is fast\n"
      "  -c   compressed\n"
      "  -b   the VM state, which qcow2 keeps behind the disk; multiples of 512\n"
      "  -p   has no meaning\n" },
    { "writev", NULL, io_writev, 2, ANY, IO_NEEDS_WRITABLE, "[-Cfq] [-P pattern] off len [len..]",
      "write a range given by several lengths", REPORT_OPTIONS WRITE_OPTIONS },
    { .name = NULL },
};

const struct io_command *io_command_find(const char *name)
{
    for (const struct io_command *command = io_commands; command->name; command++) {
        if (strcmp(command->name, name) == 0 ||
            (command->alias && strcmp(command->alias, name) == 0))
            return command;
    }
    return NULL;
}

static void print_command(const struct io_command *command, const char *name)
{
    printf("%s%s%s -- %s\n", name, command->arguments ? " " : "",
           command->arguments ? command->arguments : "", command->summary);
}

static int io_help(struct io_session *session, int argc, char **argv)
{
    (void)session;
    if (argc < 2) {
        for (const struct io_command *command = io_commands; command->name; command++)
            print_command(command, command->name);
        printf("\n'help COMMAND' shows the options of one.\n");
        return 0;
    }

    const struct io_command *command = io_command_find(argv[1]);
    if (!command)
        return io_misuse(argv[0], "there is no command '%s'", argv[1]);
    print_command(command, argv[1]);
    if (command->details)
        printf("\n%s", command->details);
    return 0;
}

static int io_quit(struct io_session *session, int argc, char **argv)
{
    (void)argc, (void)argv;
    session->quit = true;
    return 0;
}
