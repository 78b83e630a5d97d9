/* SPDX-License-Identifier: MIT */
/*
 * Reporting findings. A damaged image may have millions of errors of one kind: all are counted, the
 * first ones of each kind are listed, and at the end the number of the others.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "drivers/qcow2/check/check.h"

#define MAX_LINES_PER_KIND 100

/* Counts a finding of that kind. Returns whether it is to be listed. */
static bool may_tell(struct qcow2_check *check, const char *text)
{
    for (size_t i = 0; i < QCOW2_MAX_FINDING_KINDS; i++) {
        struct qcow2_findings *kind = &check->findings[i];
        if (kind->text && kind->text != text)
            continue;
        kind->text = text;
        return ++kind->count <= MAX_LINES_PER_KIND;
    }
    return true;
}

BLK_PRINTF(3, 0)
static void tell(struct qcow2_check *check, bool is_error, const char *text, va_list args)
{
    char line[1024];

    if (!check->result->message || !may_tell(check, text))
        return;
    vsnprintf(line, sizeof(line), text, args);
    check->result->message(check->result->opaque, is_error, line);
}

void qcow2_check_corruption(struct qcow2_check *check, const char *text, ...)
{
    va_list args;
    va_start(args, text);
    tell(check, true, text, args);
    va_end(args);
    check->result->corruptions++;
}

void qcow2_check_leak(struct qcow2_check *check, uint64_t clusters, const char *text, ...)
{
    va_list args;
    va_start(args, text);
    tell(check, false, text, args);
    va_end(args);
    check->result->leaks += clusters;
}

void qcow2_check_note(struct qcow2_check *check, const char *text, ...)
{
    va_list args;
    va_start(args, text);
    tell(check, false, text, args);
    va_end(args);
}

void qcow2_check_overlapping(struct qcow2_check *check, uint64_t cluster, const char *what)
{
    qcow2_check_corruption(check, "%s overlaps another structure at offset 0x%" PRIx64, what,
                           cluster * qcow2_state(check->node)->cluster_bytes);
}

/* The words of a kind: its text up to the first number. */
static int words_of(const char *text)
{
    int length = 0;
    while (text[length] && text[length] != '%')
        length++;
    while (length && (text[length - 1] == ' ' || text[length - 1] == '='))
        length--;
    return length;
}

void qcow2_check_report_rest(struct qcow2_check *check)
{
    for (size_t i = 0; i < QCOW2_MAX_FINDING_KINDS && check->findings[i].text; i++) {
        struct qcow2_findings *kind = &check->findings[i];
        if (kind->count > MAX_LINES_PER_KIND && check->result->message) {
            char line[256];
            snprintf(line, sizeof(line), "and %" PRIu64 " more: %.*s ...",
                     (kind->count - MAX_LINES_PER_KIND), words_of(kind->text), kind->text);
            check->result->message(check->result->opaque, false, line);
        }
        *kind = (struct qcow2_findings){ .text = NULL };
    }
}
