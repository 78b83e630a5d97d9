/* SPDX-License-Identifier: MIT */
/* Options of a command, declared as a table of where their values go. */
#ifndef CMD_COMMON_CMDLINE_H
#define CMD_COMMON_CMDLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cmd/command.h"
#include "cmd/common/json_print.h"

/* What an option takes, and what `value` points to. */
enum cmd_option_kind {
    CMD_FLAG,   /* nothing; bool, set to true */
    CMD_STRING, /* text; const char *; the last one counts */
    CMD_LIST,   /* text; struct cmd_list; all of them, in order */
    CMD_SIZE,   /* a size such as 64k; struct cmd_size */
    CMD_UINT,   /* a plain number; struct cmd_size */
    CMD_OUTPUT, /* "human" or "json"; enum output_format */
    CMD_RESULT, /* the same, for a command whose JSON is a result (report.h) */
    CMD_CALL,   /* text; struct cmd_call: the order among several options matters */
    CMD_MARK,   /* nothing; struct cmd_call, called with a NULL text */
};

/* The texts and the array live as long as the program, as do all values of options. */
struct cmd_list {
    const char **items;
    size_t count;
};

struct cmd_size {
    uint64_t value;
    bool given;
};

struct cmd_option;

/* Returns 0, or an exit status after having reported why. */
struct cmd_call {
    int (*call)(void *opaque, const struct cmd_option *option, const char *text);
    void *opaque;
};

/*
 * One option: `letter` may be 0 or `name` NULL, not both. -h and --help are always there. From the
 * table come the parser, the help and the usage lines (usage.h).
 */
struct cmd_option {
    char letter;
    const char *name;
    enum cmd_option_kind kind;
    void *value;
    /*
     * How help calls what it takes, the same for the same kind of thing: FILE, FMT, CACHE, SIZE,
     * NAME ..., or the words to choose from, "human|json". NULL if it takes nothing.
     */
    const char *argument;
    const char *help; /* NULL: accepted, but not shown, because here it is of no use */
};

/* The row of commands that can print JSON. `format` points to an enum output_format. */
/* clang-format off */
#define OUTPUT_OPTION(format)                                                                     \
    { 0, "output", CMD_OUTPUT, format, "human|json", "the form of the output" }
/* clang-format on */

/* And of commands whose JSON says what was done, also when they fail. */
/* clang-format off */
#define RESULT_OPTION(format)                                                                     \
    { 0, "output", CMD_RESULT, format, "human|json", "the form of the result" }
/* clang-format on */

/* A row without name ends the table. */
#define CMD_OPTIONS_END ((struct cmd_option){ 0, NULL, CMD_FLAG, NULL, NULL, NULL })

static inline bool cmd_option_is_end(const struct cmd_option *option)
{
    return !option->letter && !option->name;
}

struct cmd_operands {
    const char **items;
    size_t count;
};

/* Returned by cmd_parse() when the command should go on; else the value is its exit status. */
#define CMD_RUN (-1)

/* The only argument of a command that shall just print its usage lines, for `blkimg help`. */
#define CMD_SYNTAX "--help=syntax"

/*
 * Parses argv[1..]. Options and operands may be mixed; "--" ends the options; long options may be
 * abbreviated as far as they stay unique; a value keeps a leading "=" ("-o=x" is the value "=x", as
 * with getopt) and may begin with "-". Prints help, or reports the first error.
 */
int cmd_parse(const struct command *command, const struct cmd_option *options, int argc,
              char **argv, struct cmd_operands *operands);

/* The same for a command that has one operand, the name of an image. */
int cmd_parse_image(const struct command *command, const struct cmd_option *options, int argc,
                    char **argv, const char **filename);

/*
 * Whether an image and a size were given in the wrong order: `name` is a size and no file, and
 * `size` is none. Either may have a sign.
 */
bool cmd_operands_swapped(const char *name, const char *size);

/*
 * Parses the text of --output (NULL: human). Reports and returns an exit status if it is neither
 * human nor json.
 */
int output_format_parse(const char *text, enum output_format *format);

/*
 * Parses a size given as an operand or within an option's value. Reports an error that calls it
 * `what` and shows the text: "blkimg: bs: '1.5.2G' is not a size". Sizes above BLK_MAX_BYTES are
 * errors too. Returns 0 or an exit status.
 */
int cmd_size_parse(const char *what, const char *text, uint64_t *bytes);

#endif
