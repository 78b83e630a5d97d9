/* SPDX-License-Identifier: MIT */
/*
 * The program: finds the command, runs it, and makes sure that its output was written before it
 * reports success.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/nearest.h"
#include "blockcore/graph/driver.h"
#include "cmd/command.h"
#include "cmd/common/cmdline.h"
#include "cmd/common/program.h"
#include "cmd/common/progress.h"
#include "cmd/common/report.h"
#include "cmd/version.h"

static char stderr_buffer[8192];

/* All commands, by name. */
#define COMMANDS(X) \
    X(amend) \
    X(backup) \
    X(bench) \
    X(bitmap) \
    X(check) \
    X(checksum) \
    X(close_check) \
    X(commit) \
    X(compare) \
    X(convert) \
    X(create) \
    X(dd) \
    X(info) \
    X(io) \
    X(map) \
    X(measure) \
    X(mirror) \
    X(pivot) \
    X(rebase) \
    X(resize) \
    X(snapshot)

#define X(name) extern const struct command cmd_##name;
COMMANDS(X)
#undef X

static const struct command *const commands[] = {
#define X(name) &cmd_##name,
    COMMANDS(X)
#undef X
        NULL,
};

static const struct command *running; /* NULL: none yet */

static const struct command *find_command(const char *name)
{
    for (const struct command *const *command = commands; *command; command++) {
        if (strcmp((*command)->name, name) == 0)
            return *command;
    }
    return NULL;
}

static int unknown_command(const char *name)
{
    struct blk_nearest nearest = BLK_NEAREST_INIT(name);
    for (const struct command *const *command = commands; *command; command++)
        blk_nearest_try(&nearest, (*command)->name);
    if (nearest.name)
        return report_failure("Command not found: %s (did you mean '%s'?)", name, nearest.name);
    return report_failure("Command not found: %s (see '%s --help')", name, program_name());
}

/* ---- help ---- */

static void print_syntax(const struct command *command)
{
    char name[16], syntax[] = CMD_SYNTAX;
    snprintf(name, sizeof(name), "%s", command->name);
    char *argv[] = { name, syntax, NULL };
    command->run(2, argv);
}

static void print_program_help(void)
{
    const char *name = program_name();

    program_note_help();
    if (program_called_as() == PROGRAM_QEMU_IMG)
        print_version();
    printf("usage: %s COMMAND [OPTION]... [OPERAND]...\n"
           "       %s help [COMMAND] | --help | --version\n\nCommands:\n",
           name, name);
    for (const struct command *const *command = commands; *command; command++)
        printf("  %-12s %s\n", (*command)->name, (*command)->summary);
    printf("\nCommand syntax:\n");
    for (const struct command *const *command = commands; *command; command++)
        print_syntax(*command);
    printf("\nSupported formats:");
    for (const struct blk_driver *const *driver = blk_drivers; *driver; driver++)
        if ((*driver)->open)
            printf(" %s", (*driver)->name);
    printf("\n\nSee blkimg(1) and 'blkimg COMMAND --help' for more.\n");
}

static int run_command(const char *name, int argc, char **argv)
{
    const struct command *command = find_command(name);
    if (!command)
        return unknown_command(name);
    running = command;
    blk_memory_init(command->name, command_error_status(command));
    return command->run(argc, argv);
}

static int run_help(int argc, char **argv)
{
    if (argc < 2) {
        print_program_help();
        return EXIT_OK;
    }
    char help[] = "--help";
    char *help_argv[] = { argv[1], help, NULL };
    return run_command(argv[1], 2, help_argv);
}

static bool is_one_of(const char *word, const char *first, const char *second)
{
    return strcmp(word, first) == 0 || strcmp(word, second) == 0;
}

static int run_program(int argc, char **argv)
{
    if (program_called_as() == PROGRAM_QEMU_IO)
        return run_command("io", argc, argv);
    if (argc < 2)
        return report_failure("no command given (see '%s --help')", program_name());
    if (is_one_of(argv[1], "-h", "--help") || strcmp(argv[1], "help") == 0)
        return run_help(argc - 1, argv + 1);
    if (is_one_of(argv[1], "-V", "--version")) {
        print_version();
        return EXIT_OK;
    }
    if (argv[1][0] == '-')
        return report_failure("unknown option '%s' before the command (see '%s --help')", argv[1],
                              program_name());
    return run_command(argv[1], argc - 1, argv + 1);
}

/* ---- the standard streams ---- */

/*
 * A descriptor below 3 that is closed would be given to an image, and messages would be written
 * into it. What takes the place of stdout cannot be written: a command that has something to say
 * fails at the end, a silent one does not notice.
 */
static bool fill_standard_descriptors(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        int mode = fd == STDERR_FILENO ? O_WRONLY : O_RDONLY;
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF && open("/dev/null", mode) != fd) {
            report_failure("a standard stream is closed, and '/dev/null' cannot be opened: %s",
                           strerror(errno));
            return false;
        }
    }
    return true;
}

/*
 * In QEMU's place, help that is read only up to the line that a script looks for is no failure:
 * "set -o pipefail; qemu-img --version | head -n 1" is how scripts check what they have.
 */
static bool is_help_read_in_part(void)
{
    struct pollfd out = { .fd = STDOUT_FILENO };

    return program_called_as() != PROGRAM_BLKIMG && program_noted_help() && poll(&out, 1, 0) == 1 &&
           (out.revents & (POLLERR | POLLHUP));
}

/* Output that did not get out is a failure, whatever the command thought. */
static int close_stdout(int status)
{
    bool lost = ferror(stdout);
    errno = 0;
    if (fflush(stdout) != 0)
        lost = true;
    int cause = errno;
    if (lost && is_help_read_in_part())
        return status;
    if (fclose(stdout) != 0) {
        lost = true;
        cause = cause ? cause : errno;
    }
    if (!lost)
        return status;
    report_failure("writing to standard output: %s",
                   cause ? strerror(cause) : "not all of it could be written");
    return status == EXIT_OK ? command_error_status(running) : status;
}

int main(int argc, char **argv)
{
    if (!fill_standard_descriptors())
        return EXIT_FAILED;
    program_set(argv[0]);
    /* A line is one write: those of several processes on one stderr do not mix. */
    setvbuf(stderr, stderr_buffer, _IOLBF, sizeof(stderr_buffer));
    blk_memory_init("out of memory", EXIT_FAILED);
    /* A part of a JSON result that is missing would be a wrong result. */
    json_set_alloc_funcs(blk_xmalloc, free);
    blk_cancel_init();
    progress_init();
    int status = run_program(argc, argv);
    if (running)
        report_end(running, status);
    return close_stdout(status);
}
