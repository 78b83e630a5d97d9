/* SPDX-License-Identifier: MIT */
/* Text that scripts parse, exactly as qemu-img 7.2 prints it. */
#ifndef CMD_COMMON_JSON_PRINT_H
#define CMD_COMMON_JSON_PRINT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "blockcore/graph/info.h"

enum output_format { OUTPUT_HUMAN, OUTPUT_JSON };

/*
 * Prints `value` with a newline at the end: four spaces a level, and the members of objects in
 * qemu-img's order (those it does not know come last, in the order they were added).
 */
void json_print(FILE *to, const json_t *value);

/*
 * An array whose items are made one at a time while they are printed: there may be more than should
 * be in memory at once. It stands where an object has the member `key` with the value null.
 */
struct json_stream {
    const char *key;
    size_t count;
    json_t *(*item)(const void *opaque, size_t index); /* the caller of it owns the result */
    const void *opaque;
};

/* As json_print(), without the newline, for a value at that level of indentation. */
void json_print_streaming(FILE *to, const json_t *value, unsigned level,
                          const struct json_stream *stream);

/*
 * Prints the members of an object or array for people, as in "Format specific information": a line
 * each, indented by four spaces a level, dashes in names shown as spaces.
 */
void json_print_members(FILE *to, const json_t *value, unsigned level);

/* What a driver says about an image, as JSON; the caller owns the result. */
json_t *json_of_value(const struct blk_value *value);

/* A string of any bytes, as file names are. json_print() shows what is not UTF-8 as U+FFFD. */
json_t *json_text(const char *text);

#endif
