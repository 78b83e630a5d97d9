/* SPDX-License-Identifier: MIT */
/*
 * JSON in qemu-img's form. QEMU keeps objects in a hash table and prints them in the order of its
 * buckets: an arbitrary but fixed order of the keys, which is written down here as a table.
 */
#include "cmd/common/json_print.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "blockcore/base/memory.h"

/* Every key that qemu-img 7.2 prints (and the few that only blkimg has), first to last. */
/* clang-format off */
static const char *const key_order[] = {
    "ivgen-alg", "detail", "compat", "icount", "flags", "vm-clock-nsec", "image-end-offset",
    "name", "active", "compressed-clusters", "hash-alg", "iters", "compression-type", "compressed",
    "step", "lazy-refcounts", "date-sec", "bitmaps", "cipher-alg", "refcount-bits", "uuid",
    "in-use", "total-clusters", "extent-size-hint", "corruptions", "data-file", "ivgen-hash-alg",
    "status", "corruptions-fixed", "check-errors", "backing-filename-format", "left", "clean",
    "date-nsec", "driver", "granularity", "required", "leaks", "snapshots", "key-offset",
    "leaks-fixed", "allocated-clusters", "virtual-size", "filename", "cluster-size",
    "fully-allocated", "format", "encrypt", "actual-size", "outcome", "entries", "format-specific",
    "data-file-raw", "node", "full-backing-filename", "cipher-mode", "stripes", "slots", "message",
    "nodes", "vm-clock-sec", "payload-offset", "encrypted", "type", "master-key-iters",
    "backing-filename", "corrupt", "fragmented-clusters", "id", "error", "errno", "vm-state-size",
    "info", "dirty-flag", "extended-l2", "data",
};
/* clang-format on */

static size_t key_rank(const char *key)
{
    size_t rank = 0;
    while (rank < ARRAY_SIZE(key_order) && strcmp(key_order[rank], key) != 0)
        rank++;
    return rank;
}

/* The members of an object in qemu-img's order; free() the result. */
static const char **keys_in_order(const json_t *object, size_t *count)
{
    const char **keys = blk_xcalloc(json_object_size(object) + 1, sizeof(*keys));

    /* Insertion keeps the order of keys of equal rank; objects are small. */
    *count = 0;
    void *iter = json_object_iter((json_t *)(uintptr_t)object);
    for (; iter; iter = json_object_iter_next((json_t *)(uintptr_t)object, iter)) {
        const char *key = json_object_iter_key(iter);
        size_t at = (*count)++;
        for (; at > 0 && key_rank(keys[at - 1]) > key_rank(key); at--)
            keys[at] = keys[at - 1];
        keys[at] = key;
    }
    return keys;
}

/* ---- strings ---- */

/*
 * Decodes one character of UTF-8 and moves *text behind it. Anything else (a stray or missing
 * continuation, an overlong form, a surrogate) is U+FFFD and moves on by what belongs together.
 */
static uint32_t next_character(const unsigned char **text)
{
    const unsigned char *p = *text;
    uint32_t first = *p++;
    if (first < 0x80) {
        *text = p;
        return first;
    }

    unsigned follow = first >= 0xf0 && first < 0xf8 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : 0;
    if (first >= 0xf8)
        follow = 0;
    static const uint32_t smallest[] = { 0, 0x80, 0x800, 0x10000 };
    uint32_t code = follow ? first & (0x3fu >> follow) : 0;
    unsigned seen = 0;
    for (; seen < follow && (*p & 0xc0) == 0x80; seen++)
        code = code << 6 | (*p++ & 0x3f);
    *text = p;
    if (!follow || seen < follow || code < smallest[follow] || code > 0x10ffff ||
        (code >= 0xd800 && code < 0xe000))
        return 0xfffd;
    return code;
}

json_t *json_text(const char *text)
{
    json_t *string = json_string_nocheck(text);
    if (!string)
        blk_out_of_memory();
    return string;
}

json_t *json_of_value(const struct blk_value *value)
{
    json_t *result;

    switch (value->type) {
    case BLK_VALUE_BOOL:
        return json_boolean(value->boolean);
    case BLK_VALUE_NUMBER:
        result = json_integer((json_int_t)value->number);
        break;
    case BLK_VALUE_TEXT:
        return json_text(value->text);
    default:
        result = value->type == BLK_VALUE_LIST ? json_array() : json_object();
        for (const struct blk_value *item = value->of.first; result && item; item = item->next) {
            int ret = item->name ? json_object_set_new(result, item->name, json_of_value(item))
                                 : json_array_append_new(result, json_of_value(item));
            if (ret < 0)
                blk_out_of_memory();
        }
        break;
    }
    if (!result)
        blk_out_of_memory();
    return result;
}

static void print_character(FILE *to, uint32_t code)
{
    static const char escaped[] = "\"\"\\\\\bb\ff\nn\rr\tt";

    for (const char *e = escaped; *e; e += 2) {
        if (code == (unsigned char)*e) {
            fprintf(to, "\\%c", e[1]);
            return;
        }
    }
    if (code >= 0x10000) {
        code -= 0x10000;
        fprintf(to, "\\u%04X\\u%04X", 0xd800 + (code >> 10), 0xdc00 + (code & 0x3ff));
    } else if (code < 0x20 || code >= 0x7f) {
        fprintf(to, "\\u%04X", code);
    } else {
        putc((int)code, to);
    }
}

/* Prints `text` as a JSON string, quotes included; only ASCII is written as it is. */
static void print_string(FILE *to, const char *text)
{
    putc('"', to);
    for (const unsigned char *p = (const unsigned char *)text; *p;)
        print_character(to, next_character(&p));
    putc('"', to);
}

/* ---- values ---- */

static void print_value(FILE *to, const json_t *value, unsigned level,
                        const struct json_stream *stream);

static void indent(FILE *to, unsigned level)
{
    fprintf(to, "\n%*s", (int)(4 * level), "");
}

static void print_stream(FILE *to, const struct json_stream *stream, unsigned level)
{
    putc('[', to);
    for (size_t i = 0; i < stream->count; i++) {
        json_t *item = stream->item(stream->opaque, i);
        if (i)
            putc(',', to);
        indent(to, level + 1);
        print_value(to, item, level + 1, NULL);
        json_decref(item);
    }
    indent(to, level);
    putc(']', to);
}

static void print_member(FILE *to, const char *key, const json_t *value, unsigned level,
                         const struct json_stream *stream)
{
    if (stream && json_is_null(value) && strcmp(key, stream->key) == 0)
        print_stream(to, stream, level);
    else
        print_value(to, value, level, stream);
}

static void print_object(FILE *to, const json_t *object, unsigned level,
                         const struct json_stream *stream)
{
    size_t count;
    const char **keys = keys_in_order(object, &count);

    putc('{', to);
    for (size_t i = 0; i < count; i++) {
        if (i)
            putc(',', to);
        indent(to, level + 1);
        print_string(to, keys[i]);
        fputs(": ", to);
        print_member(to, keys[i], json_object_get(object, keys[i]), level + 1, stream);
    }
    indent(to, level);
    putc('}', to);
    free(keys);
}

static void print_array(FILE *to, const json_t *array, unsigned level,
                        const struct json_stream *stream)
{
    putc('[', to);
    for (size_t i = 0; i < json_array_size(array); i++) {
        if (i)
            putc(',', to);
        indent(to, level + 1);
        print_value(to, json_array_get(array, i), level + 1, stream);
    }
    indent(to, level);
    putc(']', to);
}

static void print_value(FILE *to, const json_t *value, unsigned level,
                        const struct json_stream *stream)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        print_object(to, value, level, stream);
        break;
    case JSON_ARRAY:
        print_array(to, value, level, stream);
        break;
    case JSON_STRING:
        print_string(to, json_string_value(value));
        break;
    case JSON_INTEGER:
        fprintf(to, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        fprintf(to, "%.17g", json_real_value(value));
        break;
    case JSON_TRUE:
        fputs("true", to);
        break;
    case JSON_FALSE:
        fputs("false", to);
        break;
    case JSON_NULL:
        fputs("null", to);
        break;
    }
}

void json_print(FILE *to, const json_t *value)
{
    print_value(to, value, 0, NULL);
    putc('\n', to);
}

void json_print_streaming(FILE *to, const json_t *value, unsigned level,
                          const struct json_stream *stream)
{
    print_value(to, value, level, stream);
}

/* ---- values for people ---- */

/* What follows "name:": a plain value on the same line, members on lines of their own. */
static void print_member_value(FILE *to, const json_t *value, unsigned level)
{
    if (json_is_object(value) || json_is_array(value)) {
        putc('\n', to);
        json_print_members(to, value, level + 1);
    } else if (json_is_string(value)) {
        fprintf(to, " %s\n", json_string_value(value));
    } else if (json_is_integer(value)) {
        fprintf(to, " %" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
    } else {
        fprintf(to, " %s\n", json_is_true(value) ? "true" : "false");
    }
}

void json_print_members(FILE *to, const json_t *value, unsigned level)
{
    size_t index, count;
    json_t *item;

    if (json_is_array(value)) {
        json_array_foreach(value, index, item) {
            fprintf(to, "%*s[%zu]:", (int)level * 4, "", index);
            print_member_value(to, item, level);
        }
        return;
    }
    const char **keys = keys_in_order(value, &count);
    for (size_t i = 0; i < count; i++) {
        fprintf(to, "%*s", (int)level * 4, "");
        for (const char *p = keys[i]; *p; p++)
            putc(*p == '-' ? ' ' : *p, to);
        putc(':', to);
        print_member_value(to, json_object_get(value, keys[i]), level);
    }
    free(keys);
}
