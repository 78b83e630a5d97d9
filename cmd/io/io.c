/* SPDX-License-Identifier: MIT */
/*
 * `blkimg io`: its options, and the loop that feeds command lines to the session.
 *
 * Commands come from -c, else from standard input: with a prompt on a terminal, silently from
 * elsewhere. Every command runs whatever became of those before; the exit status is 1 when any of
 * them, or any request in the background, failed, and 5 when a close did.
 */
#include "cmd/io/io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "cmd/common/cmdline.h"
#include "cmd/common/program.h"
#include "cmd/common/report.h"
#include "cmd/version.h"

static int io_main(int argc, char **argv);

const struct command cmd_io = {
    .name = "io",
    .summary = "Read, write and examine an image with commands",
    .usage = "[-f | --image-opts] [file]",
    .run = io_main,
};

/* What the command line asks for. */
struct args {
    struct io_open_how how;
    struct cmd_list commands;
    const char *trace;
    bool no_cache, native_aio, misalign, version;
};

static int check_io_operands(const struct cmd_operands *operands)
{
    if (operands->count > 1)
        return report_usage(&cmd_io, "at most one image can be given");
    return EXIT_OK;
}

/* ---- the loop ---- */

static bool goes_on(const struct io_session *session)
{
    return !session->quit && !blk_cancelled();
}

static void prompt(void)
{
    printf("%s> ", program_called_as() == PROGRAM_QEMU_IO ? "qemu-io" : "blkimg io");
    fflush(stdout);
}

static void run_input(struct io_session *session)
{
    bool interactive = isatty(STDIN_FILENO);
    BLK_AUTOFREE char *line = NULL;
    size_t capacity = 0;

    while (goes_on(session)) {
        if (interactive)
            prompt();
        errno = 0;
        ssize_t length = getline(&line, &capacity, stdin);
        if (length < 0)
            break;
        if (length && line[length - 1] == '\n')
            line[length - 1] = '\0';
        io_run_line(session, line);
    }
    if (interactive && goes_on(session))
        putchar('\n'); /* the user typed the end of input behind the prompt */
    if (ferror(stdin) && !blk_cancelled()) {
        report_failure("io: reading commands: %s", strerror(errno));
        session->failed = true;
    }
}

static void run_commands(struct io_session *session, const struct cmd_list *commands)
{
    if (!commands->count)
        run_input(session);
    for (size_t i = 0; i < commands->count && goes_on(session); i++)
        io_run_line(session, commands->items[i]);
}

/* Everything is done and closed: the exit status. */
static int session_status(const struct io_session *session)
{
    if (blk_cancelled()) {
        struct blk_error err = BLK_ERROR_INIT;
        blk_fail_why(&err, ECANCELED, strsignal(blk_cancelled()), "io: stopped by a signal");
        return report_error(&err);
    }
    if (session->close_failed)
        return EXIT_CLOSE_FAILED;
    return session->failed ? EXIT_FAILED : EXIT_OK;
}

static int run_session(const struct args *args)
{
    struct io_session session = { .misalign = args->misalign };
    struct blk_error err = BLK_ERROR_INIT;

    if (args->how.name && io_session_open(&session, &args->how, &err) < 0)
        return report_error(&err);
    session.pool = io_pool_new();
    run_commands(&session, &args->commands);
    io_session_close(&session);
    io_pool_free(session.pool);
    return session_status(&session);
}

static int io_main(int argc, char **argv)
{
    struct args args = { .how = { .image = IMAGE_ARGS_INIT } };
    const struct cmd_option options[] = {
        { 'c', "cmd", CMD_LIST, &args.commands, "CMD", "run this command; may be given again" },
        IMAGE_OPTIONS(&args.how.image),
        { 'r', "read-only", CMD_FLAG, &args.how.read_only, NULL, "open the image read-only" },
        { 'n', "nocache", CMD_FLAG, &args.no_cache, NULL, "as -t none" },
        { 't', "cache", CMD_STRING, &args.how.cache, "CACHE",
          "cache mode; writeback if not given" },
        { 'd', "discard", CMD_STRING, &args.how.discard, "unmap|on|ignore|off",
          "what discards do (on)" },
        { 'm', "misalign", CMD_FLAG, &args.misalign, NULL, "use buffers at odd addresses" },
        { 'k', "native-aio", CMD_FLAG, &args.native_aio, NULL, "accepted; threads are used" },
        { 'i', "aio", CMD_STRING, &args.how.aio, "threads|native|io_uring",
          "accepted; threads are used" },
        { 'T', "trace", CMD_STRING, &args.trace, "SPEC", "accepted; nothing is traced" },
        { 's', "snapshot", CMD_FLAG, &args.how.snapshot, NULL,
          "write to a temporary overlay, which is thrown away" },
        { 'C', "copy-on-read", CMD_FLAG, &args.how.copy_on_read, NULL,
          "keep what reads bring from backing files" },
        { 'V', "version", CMD_FLAG, &args.version, NULL, "show the version" },
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;
    int status = cmd_parse(&cmd_io, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (args.version) {
        print_version();
        return EXIT_OK;
    }
    status = check_io_operands(&operands);
    if (status != EXIT_OK)
        return status;
    if (args.no_cache)
        args.how.cache = "none";
    args.how.name = operands.count ? operands.items[0] : NULL;
    return run_session(&args);
}
