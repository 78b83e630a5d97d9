/*
 * Reporting failures, one line each on stderr, and turning them into an exit status.
 */
#ifndef CMD_COMMON_REPORT_H
#define CMD_COMMON_REPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/node.h"
#include "cmd/command.h"
#include "cmd/common/json_print.h"

/* Which options messages about an image in use can suggest: --lock-wait, -U. cmd_parse() says so. */
void report_set_advice(bool may_wait, bool may_share);

/*
 * Prints "blkimg: what: why (left)" and returns EXIT_FAILED. Control characters are shown as
 * escapes. For an image that another process uses, says how long was waited and what to do.
 */
int report_error(const struct blk_error *err);

/* Prints "blkimg: <text>" and returns EXIT_FAILED. */
int report_failure(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Prints "blkimg: COMMAND: <text> (see 'blkimg COMMAND --help')". Returns the command's error
 * status.
 */
int report_usage(const struct command *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * Ends a command: closes all roots (NULL ones are left out) strictly, in this order, so sources go
 * before targets. If `status` is not EXIT_OK, or an earlier close failed, the graphs are abandoned
 * first: closed, but nothing is published or called clean. Prints every step that failed. Returns
 * `status` unless that was EXIT_OK and a close failed: then EXIT_CLOSE_FAILED. The entries of
 * `roots` are NULL afterwards.
 */
int finish(int status, struct blk_node **roots, size_t count);

/*
 * The same for a graph whose work came to a true end with a status other than EXIT_OK (images that
 * differ, findings of a check): it is closed as after success, and a close that failed makes any
 * `status` EXIT_CLOSE_FAILED.
 */
int finish_done(int status, struct blk_node **roots, size_t count);

/*
 * The result object of --output=json, for commands with a RESULT_OPTION. Every run prints exactly
 * one: "command" and what the command adds, "exit-status", "complete", "close" (the steps of the
 * closes) and, after a failure, "error" with "what", "why" and "left". A run that fails before it
 * has a result gets one from report_end().
 *
 * NULL for OUTPUT_HUMAN, and the setters then do nothing. A NULL text is left out.
 */
json_t *result_new(enum output_format format, const struct command *command, const char *filename);
void result_set_text(json_t *result, const char *key, const char *text);
void result_set_bytes(json_t *result, const char *key, uint64_t bytes);
void result_set_flag(json_t *result, const char *key, bool value);

/*
 * finish(), which then prints `result` with what became of it: "complete", "exit-status", and
 * "close", the steps of the close. Frees it. A NULL result: as finish().
 */
int finish_result(int status, struct blk_node **roots, size_t count, json_t *result);

/*
 * The same for work that came to a true end, as finish_done(): "complete" is true unless a close
 * failed or `status` is one of a failure.
 */
int finish_result_done(int status, struct blk_node **roots, size_t count, json_t *result);

/* Whether --output=json was given for a result: main() then sees to it that one is printed. */
void report_result_wanted(bool wanted);

/*
 * For main(), at the end of a command: prints a result that is owed. `status` is the exit status.
 */
void report_end(const struct command *command, int status);

/*
 * Closes some of a command's roots before its end; finish_result() shows their steps too.
 * `complete`: as finish_done(), whatever `status` is; else `status` comes back as it was.
 */
int finish_part(int status, bool complete, struct blk_node **roots, size_t count, json_t *result);

/* Adds an object for each entry of the report. */
void report_close_json(const struct blk_close_report *report, json_t *steps);

/* What a close that fails leaves in doubt: it is added to the line that says so. */
void report_close_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Prints the failed steps of a close, one line a node and step; `err` is what blk_close() returned.
 */
void report_close(const struct blk_close_report *report, const struct blk_error *err);

/*
 * The exit status of the process: 128 + signal where an error was reported because of one, else
 * `status`.
 */
int report_exit_status(int status);

/* Prints `text` with control characters as escapes, for one-line messages. */
void print_escaped(FILE *to, const char *text);

#endif
