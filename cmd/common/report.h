/* SPDX-License-Identifier: MIT */
/* Reporting failures, one line each on stderr, and turning them into an exit status. */
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

/* Whether messages about an image in use can suggest --lock-wait and -U. cmd_parse() says so. */
void report_set_advice(bool may_wait, bool may_share);

/*
 * Prints "blkimg: what: why (left)" and returns the exit status: 128 + signal where a signal ended
 * the work, else EXIT_FAILED. Control characters are shown as escapes. For an image that another
 * process uses, says how long was waited and what to do.
 */
int report_error(const struct blk_error *err);

/* The same where the status is `status`, unless a signal ended the work. */
int report_error_as(int status, const struct blk_error *err);

/* Prints "blkimg: <text>" and returns EXIT_FAILED. */
int report_failure(const char *format, ...) BLK_PRINTF(1, 2);

/*
 * Prints "blkimg: COMMAND: <text> (see 'blkimg COMMAND --help')". Returns the command's error
 * status.
 */
int report_usage(const struct command *command, const char *format, ...) BLK_PRINTF(2, 3);

/*
 * Three functions close the roots of a command: NULL ones are left out, and the entries of `roots`
 * are NULL afterwards. The order is the one given, so sources go before targets; after a close that
 * failed the other graphs are abandoned: closed, but nothing is published or called clean. Each
 * step that failed is printed.
 *
 * finish() ends a command whose work succeeded if `status` is EXIT_OK; else the graphs are
 * abandoned. Returns `status`, or EXIT_CLOSE_FAILED where that was EXIT_OK and a close failed.
 */
int finish(int status, struct blk_node **roots, size_t count, json_t *result);

/*
 * finish_answered() ends a command whose work came to a true end with any `status`, which is its
 * answer (images that differ, findings of a check): the graphs are closed as after a success, and a
 * close that failed makes any answer EXIT_CLOSE_FAILED.
 */
int finish_answered(int status, struct blk_node **roots, size_t count, json_t *result);

/*
 * close_roots() closes some of the roots before the end, as finish_answered() if the work is
 * `complete`, and else as finish() after a failure. Their steps become a part of `result`.
 */
int close_roots(int status, bool complete, struct blk_node **roots, size_t count, json_t *result);

/*
 * The result object of --output=json, for commands with a RESULT_OPTION. Every run prints exactly
 * one: "command" and what the command adds, "exit-status", "complete", "close" (the steps of the
 * closes) and, after a failure, "error" with "what", "why" and "left". finish() and
 * finish_answered() print and free it. A run that fails before it has one gets it from
 * report_end().
 *
 * NULL for OUTPUT_HUMAN, and the setters then do nothing. A NULL text is left out.
 */
json_t *result_new(enum output_format format, const struct command *command, const char *filename);
void result_set_text(json_t *result, const char *key, const char *text);
void result_set_bytes(json_t *result, const char *key, uint64_t bytes);
void result_set_flag(json_t *result, const char *key, bool value);

/* Whether --output=json was given for a result: main() then sees to it that one is printed. */
void report_result_wanted(bool wanted);

/*
 * For main(), at the end of a command: prints a result that is owed. `status` is the exit status.
 */
void report_end(const struct command *command, int status);

/* Adds an object for each entry of the report. */
void report_close_json(const struct blk_close_report *report, json_t *steps);

/* What a close that fails leaves in doubt: it is added to the line that says so. */
void report_close_note(const char *format, ...) BLK_PRINTF(1, 2);

/*
 * Prints the failed steps of a close, one line a node and step; `err` is what blk_close() returned.
 * Returns EXIT_CLOSE_FAILED, or 128 + signal.
 */
int report_close(const struct blk_close_report *report, const struct blk_error *err);

/* Prints `text` with control characters as escapes, for one-line messages. */
void print_escaped(FILE *to, const char *text);

#endif
