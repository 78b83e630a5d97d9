/* SPDX-License-Identifier: MIT */
/*
 * What a subcommand is. cmd/main.c has the only list of them. Each is implemented by cmd/NAME.c,
 * which parses the options into locals, calls blockcore, and reports. What commands share is in
 * cmd/common/ (see common.h there).
 */
#ifndef CMD_COMMAND_H
#define CMD_COMMAND_H

#include <stdbool.h>

struct command {
    const char *name;
    const char *summary; /* half a line for `blkimg help` */
    /*
     * What follows the options in a usage line: the operands, and options that are required, belong
     * together or exclude each other. Those are named without their argument, which is in the table
     * of options. A second line is a second form of the command; all its options are in it.
     */
    const char *usage;
    /* argv[0] is the command's name. Returns the exit status. */
    int (*run)(int argc, char **argv);
    int error_status;    /* after a usage error, or when output is lost; 0: EXIT_FAILED */
    bool needs_a_moment; /* what it reads must be of one moment: do not suggest -U */
};

/* Exit statuses. `check` and `compare` have more of their own. */
enum exit_status {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_CLOSE_FAILED = 5,
    EXIT_NOT_SWITCHED = 6, /* backup: the target can be used, but a source was not closed cleanly */
    EXIT_SIGNAL_BASE = 128, /* and the number of the signal that ended the work */
};

static inline bool exit_is_by_signal(int status)
{
    return status > EXIT_SIGNAL_BASE;
}

/* What the command (NULL: none) exits with after a usage error, or when its output is lost. */
static inline int command_error_status(const struct command *command)
{
    return command && command->error_status ? command->error_status : EXIT_FAILED;
}

#endif
