/* SPDX-License-Identifier: MIT */
/* Error lines, exit statuses, the ends of commands and their JSON results. */
#include "cmd/common/report.h"

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "cmd/common/json_print.h"
#include "cmd/common/program.h"

static char *close_note; /* or NULL */

/* The JSON result that is owed, and the first error, which it shows. */
static bool result_wanted;
static bool result_printed;
static json_t *first_error;
static pthread_mutex_t first_error_mutex = PTHREAD_MUTEX_INITIALIZER; /* a guest has a thread */

static void set_result_text(json_t *object, const char *key, const char *text)
{
    if (text && *text)
        json_object_set_new(object, key, json_text(text));
}

static void note_error(const char *what, const char *why, const char *left)
{
    pthread_mutex_lock(&first_error_mutex);
    if (result_wanted && !first_error) {
        first_error = json_object();
        set_result_text(first_error, "what", what);
        set_result_text(first_error, "why", why);
        set_result_text(first_error, "left", left);
    }
    pthread_mutex_unlock(&first_error_mutex);
}

/* What the command that runs has options for. */
static bool advise_wait, advise_share;

void report_set_advice(bool may_wait, bool may_share)
{
    advise_wait = may_wait;
    advise_share = may_share;
}

void print_escaped(FILE *to, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '\n')
            fputs("\\n", to);
        else if (*p < 0x20 || *p == 0x7f)
            fprintf(to, "\\x%02x", *p);
        else
            putc(*p, to);
    }
}

static void print_error_line(const char *text)
{
    /* What is on stdout so far comes before the error in a shared log; main() checks stdout. */
    fflush(stdout);
    fprintf(stderr, "%s: ", program_name());
    print_escaped(stderr, text);
    putc('\n', stderr);
}

/* What can be done about an image that another process uses, in parentheses; malloc()ed. */
static char *advice_for_busy(const struct blk_error *err)
{
    bool may_wait = advise_wait;
    bool may_share = err->busy == BLK_BUSY_FOR_READING && advise_share;
    BLK_AUTOFREE char *waited =
        err->busy_seconds ? blk_xasprintf("waited %lu s; ", err->busy_seconds) : blk_xstrdup("");
    const char *wait = !may_wait           ? ""
                       : err->busy_seconds ? "a longer --lock-wait may help"
                                           : "--lock-wait=SECONDS waits for it";
    const char *share = !may_share ? ""
                        : may_wait ? ", -U reads it as it is"
                                   : "-U reads it as it is";
    return may_wait || may_share ? blk_xasprintf(" (%s%s%s)", waited, wait, share)
                                 : blk_xstrdup("");
}

int report_error(const struct blk_error *err)
{
    return report_error_as(EXIT_FAILED, err);
}

int report_error_as(int status, const struct blk_error *err)
{
    bool by_signal = (err->code == ECANCELED || err->code == EINTR) && blk_cancelled();
    BLK_AUTOFREE char *advice = err->busy ? advice_for_busy(err) : blk_xstrdup("");
    BLK_AUTOFREE char *text =
        blk_xasprintf("%s: %s%s%s%s%s", err->what, err->why, err->left[0] ? " (" : "", err->left,
                      err->left[0] ? ")" : "", advice);
    note_error(err->what, err->why, err->left);
    print_error_line(text);
    return by_signal ? EXIT_SIGNAL_BASE + blk_cancelled() : status;
}

int report_failure(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    BLK_AUTOFREE char *text = blk_xvasprintf(format, args);
    va_end(args);
    note_error(text, NULL, NULL);
    print_error_line(text);
    return EXIT_FAILED;
}

int report_usage(const struct command *command, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    BLK_AUTOFREE char *text = blk_xvasprintf(format, args);
    va_end(args);
    bool alone = program_called_as() == PROGRAM_QEMU_IO;
    report_failure("%s: %s (see '%s%s%s --help')", command->name, text, program_name(),
                   alone ? "" : " ", alone ? "" : command->name);
    return command_error_status(command);
}

void report_close_note(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    free(close_note);
    close_note = blk_xvasprintf(format, args);
    va_end(args);
}

/*
 * Goes on to the last of the entries from *at on that are about the same step of the same node: an
 * image may have very many bitmaps, and what failed for one failed for all. Returns how many failed
 * parts, except the first, are passed over.
 */
static size_t skip_alike(const struct blk_close_report *report, size_t *at)
{
    const struct blk_close_entry *first = &report->entries[*at];
    size_t more = 0;

    for (; *at + 1 < report->count; ++*at) {
        const struct blk_close_entry *next = &report->entries[*at + 1];
        if (next->step != first->step || next->driver_name != first->driver_name ||
            strcmp(next->node, first->node) != 0)
            break;
        more += next->outcome == BLK_OUTCOME_FAILED && next->detail;
    }
    return more;
}

int report_close(const struct blk_close_report *report, const struct blk_error *err)
{
    bool named = false;

    for (size_t i = 0; i < report->count; i++) {
        const struct blk_close_entry *entry = &report->entries[i];
        if (entry->outcome != BLK_OUTCOME_FAILED)
            continue;
        size_t more = skip_alike(report, &i);
        BLK_AUTOFREE char *others = more ? blk_xasprintf(" and %zu more", more) : NULL;
        note_error(entry->node, entry->message, close_note);
        BLK_AUTOFREE char *note = close_note && !named ? blk_xasprintf(" (%s)", close_note) : NULL;
        /* qemu-img's words, which callers look for. */
        const char *lost = strcmp(entry->step, "store") == 0 ? "Lost persistent bitmaps: " : "";
        report_failure("closing '%s' (%s): %s%s%s%s%s: %s%s", entry->node, entry->driver_name, lost,
                       entry->step, entry->detail ? " " : "", entry->detail ? entry->detail : "",
                       others ? others : "",
                       entry->message ? entry->message : strerror(entry->code), note ? note : "");
        named = true;
    }
    return named ? EXIT_CLOSE_FAILED : report_error_as(EXIT_CLOSE_FAILED, err);
}

void report_close_json(const struct blk_close_report *report, json_t *steps)
{
    for (size_t i = 0; i < report->count; i++) {
        const struct blk_close_entry *entry = &report->entries[i];
        json_t *object = json_object();
        set_result_text(object, "node", entry->node);
        set_result_text(object, "driver", entry->driver_name);
        set_result_text(object, "step", entry->step);
        set_result_text(object, "detail", entry->detail);
        set_result_text(object, "outcome", blk_outcome_name(entry->outcome));
        if (entry->outcome == BLK_OUTCOME_FAILED)
            json_object_set_new(object, "errno", json_integer(entry->code));
        set_result_text(object, "message", entry->message);
        json_array_append_new(steps, object);
    }
}

json_t *result_new(enum output_format format, const struct command *command, const char *filename)
{
    if (format != OUTPUT_JSON)
        return NULL;
    json_t *result = json_object();
    set_result_text(result, "command", command->name);
    set_result_text(result, "filename", filename);
    return result;
}

void result_set_text(json_t *result, const char *key, const char *text)
{
    if (result)
        set_result_text(result, key, text);
}

void result_set_bytes(json_t *result, const char *key, uint64_t bytes)
{
    if (result)
        json_object_set_new(result, key, json_integer((json_int_t)bytes));
}

void result_set_flag(json_t *result, const char *key, bool value)
{
    if (result)
        json_object_set_new(result, key, json_boolean(value));
}

/* Closes a root, after a failure without publishing anything. Returns an exit status. */
static int close_root(struct blk_node *root, bool complete, json_t *steps)
{
    struct blk_close_report report = BLK_CLOSE_REPORT_INIT;
    struct blk_error err = BLK_ERROR_INIT;

    if (!complete)
        blk_abandon(root);
    int status = blk_close(root, &report, &err) < 0 ? report_close(&report, &err) : EXIT_OK;
    if (steps)
        report_close_json(&report, steps);
    blk_close_report_free(&report);
    return status;
}

int close_roots(int status, bool complete, struct blk_node **roots, size_t count, json_t *result)
{
    json_t *steps = result ? json_object_get(result, "close") : NULL;
    int close_status = EXIT_OK;

    if (result && !steps) {
        steps = json_array();
        json_object_set_new(result, "close", steps);
    }
    for (size_t i = 0; i < count; i++) {
        if (!roots[i])
            continue;
        int one = close_root(roots[i], complete && close_status == EXIT_OK, steps);
        if (close_status == EXIT_OK)
            close_status = one;
        roots[i] = NULL;
    }
    bool counts = complete && close_status != EXIT_OK && !exit_is_by_signal(status);
    return counts ? close_status : status;
}

static void print_result(json_t *result, int status, bool complete)
{
    json_object_set_new(result, "exit-status", json_integer(status));
    result_set_flag(result, "complete", complete);
    if (!json_object_get(result, "close"))
        json_object_set_new(result, "close", json_array());
    pthread_mutex_lock(&first_error_mutex);
    if (first_error && !complete)
        json_object_set(result, "error", first_error);
    pthread_mutex_unlock(&first_error_mutex);
    json_print(stdout, result);
    json_decref(result);
    result_printed = true;
}

int finish(int status, struct blk_node **roots, size_t count, json_t *result)
{
    status = close_roots(status, status == EXIT_OK, roots, count, result);
    if (result)
        print_result(result, status, status == EXIT_OK);
    return status;
}

int finish_answered(int status, struct blk_node **roots, size_t count, json_t *result)
{
    status = close_roots(status, true, roots, count, result);
    if (result)
        print_result(result, status, status != EXIT_CLOSE_FAILED && !exit_is_by_signal(status));
    return status;
}

void report_result_wanted(bool wanted)
{
    result_wanted = wanted;
}

void report_end(const struct command *command, int status)
{
    if (result_wanted && !result_printed && status != EXIT_OK)
        print_result(result_new(OUTPUT_JSON, command, NULL), status, false);
}
