/* SPDX-License-Identifier: MIT */
/* Single quotes and the other liberties of QEMU's JSON, made strict before it is parsed. */
#include "blockcore/base/json_text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"

/*
 * Copies the string that begins at `from`, its quotes included, to *to. Returns what follows it.
 * One that does not end is left so, for the parser to complain.
 */
static const char *copy_string(const char *from, char **to)
{
    const char quote = *from++;

    *(*to)++ = '"';
    for (; *from && *from != quote; from++) {
        if (*from == '\\' && from[1] == '\'') {
            *(*to)++ = *++from;
        } else if (*from == '\\' && from[1]) {
            *(*to)++ = *from++;
            *(*to)++ = *from;
        } else {
            if (*from == '"')
                *(*to)++ = '\\';
            *(*to)++ = *from;
        }
    }
    if (*from)
        *(*to)++ = '"';
    return *from ? from + 1 : from;
}

static int too_much(const char *why, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, why, "parsing 'json:'");
}

char *blk_json_strict(const char *text, struct blk_error *err)
{
    size_t length = strlen(text);
    unsigned depth = 0;

    if (length > BLK_JSON_MAX_BYTES) {
        too_much("it is longer than 1 MiB", err);
        return NULL;
    }
    /* Every character becomes two at most. */
    char *strict = blk_xcalloc(length + 1, 2);
    char *to = strict;
    while (*text) {
        if (*text == '\'' || *text == '"') {
            text = copy_string(text, &to);
            continue;
        }
        if (*text == '{' || *text == '[')
            depth++;
        else if ((*text == '}' || *text == ']') && depth)
            depth--;
        if (depth > BLK_JSON_MAX_DEPTH) {
            too_much("it is nested more than 1024 levels deep", err);
            free(strict);
            return NULL;
        }
        *to++ = *text++;
    }
    return strict;
}
