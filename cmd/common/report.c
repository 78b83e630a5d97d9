#include "cmd/common/report.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/cancel.h"
#include "blockcore/memory.h"

/* Whether an error was reported because a signal asked to stop. */
static bool stopped_by_signal;

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

/* One line in one write: lines of several processes on one stderr do not mix. */
static void print_line(const char *text)
{
    char *line = NULL;
    size_t bytes;
    FILE *memory = open_memstream(&line, &bytes);
    if (!memory)
        abort();
    fputs("blkimg: ", memory);
    print_escaped(memory, text);
    putc('\n', memory);
    fclose(memory);
    /* What is on stdout so far comes before the error in a shared log; main() checks stdout. */
    fflush(stdout);
    fwrite(line, 1, bytes, stderr);
    free(line);
}

int report_error(const struct blk_error *err)
{
    char text[sizeof(err->what) + sizeof(err->why) + sizeof(err->left) + 8];

    if ((err->code == ECANCELED || err->code == EINTR) && blk_cancelled())
        stopped_by_signal = true;
    snprintf(text, sizeof(text), "%s: %s%s%s%s", err->what, err->why, err->left[0] ? " (" : "",
             err->left, err->left[0] ? ")" : "");
    print_line(text);
    return EXIT_FAILED;
}

int report_failure(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    BLK_AUTOFREE char *text = blk_xvasprintf(format, args);
    va_end(args);
    print_line(text);
    return EXIT_FAILED;
}

int report_usage(const struct command *command, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    BLK_AUTOFREE char *text = blk_xvasprintf(format, args);
    va_end(args);
    report_failure("%s: %s (see 'blkimg %s --help')", command->name, text, command->name);
    return EXIT_FAILED;
}

void report_close(const struct blk_close_report *report, const struct blk_error *err)
{
    bool named = false;

    for (size_t i = 0; i < report->count; i++) {
        const struct blk_close_entry *entry = &report->entries[i];
        if (entry->outcome != BLK_OUTCOME_FAILED)
            continue;
        report_failure("closing '%s' (%s): %s%s%s: %s", entry->node, entry->driver, entry->step,
                       entry->detail ? " " : "", entry->detail ? entry->detail : "",
                       entry->message ? entry->message : strerror(entry->code));
        named = true;
    }
    if (!named)
        report_error(err);
}

static int close_all(int status, bool complete, struct blk_node **roots, size_t count)
{
    bool close_failed = false;

    for (size_t i = 0; i < count; i++) {
        if (!roots[i])
            continue;
        if (!complete || close_failed)
            blk_abandon(roots[i]);
        struct blk_close_report report = BLK_CLOSE_REPORT_INIT;
        struct blk_error err = BLK_ERROR_INIT;
        if (blk_close(roots[i], &report, &err) < 0) {
            report_close(&report, &err);
            close_failed = true;
        }
        blk_close_report_free(&report);
        roots[i] = NULL;
    }
    return close_failed && complete ? EXIT_CLOSE_FAILED : status;
}

int finish(int status, struct blk_node **roots, size_t count)
{
    return close_all(status, status == EXIT_OK, roots, count);
}

int finish_done(int status, struct blk_node **roots, size_t count)
{
    return close_all(status, true, roots, count);
}

int report_exit_status(int status)
{
    if (status != EXIT_OK && stopped_by_signal)
        return EXIT_SIGNAL_BASE + blk_cancelled();
    return status;
}
