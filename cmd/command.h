/*
 * What a subcommand is. cmd/main.c has the only list of them; cmd/NAME.c implements one each: it
 * parses its options into locals, calls blockcore, and reports. What commands share is in
 * cmd/common/ (see common.h there).
 */
#ifndef CMD_COMMAND_H
#define CMD_COMMAND_H

struct command {
    const char *name;
    const char *summary;  /* half a line for `blkimg help` */
    const char *synopsis; /* options and operands, as after the name in a usage line */
    /* argv[0] is the command's name. Returns the exit status. */
    int (*run)(int argc, char **argv);
};

/* Exit statuses. `check` and `compare` have more of their own. */
enum exit_status {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_CLOSE_FAILED = 5,
    EXIT_NOT_SWITCHED = 6, /* backup: the target can be used, but a source was not closed cleanly */
    EXIT_SIGNAL_BASE = 128,
};

/*
 * What the command (NULL: none) exits with after a usage error, or when its output is lost:
 * EXIT_FAILED, unless that is an answer of it.
 */
int command_error_status(const struct command *command);

#endif
