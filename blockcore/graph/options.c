/* SPDX-License-Identifier: MIT */
/* The set itself, the three ways to write one, and reading values from it. */
#include "blockcore/graph/options.h"

#include <errno.h>
#include <math.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/json_text.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/units.h"

struct option {
    char *key;
    char *value;
    bool used;
};

struct blk_options {
    struct option *list;
    size_t count, room;
};

struct blk_options *blk_options_new(void)
{
    return blk_xcalloc(1, sizeof(struct blk_options));
}

static void free_option(struct option *option)
{
    free(option->key);
    free(option->value);
}

void blk_options_free(struct blk_options *options)
{
    if (!options)
        return;
    for (size_t i = 0; i < options->count; i++)
        free_option(&options->list[i]);
    free(options->list);
    free(options);
}

static struct option *find_option(const struct blk_options *options, const char *key)
{
    for (size_t i = 0; i < options->count; i++)
        if (strcmp(options->list[i].key, key) == 0)
            return &options->list[i];
    return NULL;
}

void blk_options_set(struct blk_options *options, const char *key, const char *value)
{
    struct option *option = find_option(options, key);
    if (!option) {
        if (options->count == options->room) {
            options->room = options->room ? options->room * 2 : 8;
            options->list = blk_xrealloc(options->list, options->room, sizeof(*options->list));
        }
        option = &options->list[options->count++];
        *option = (struct option){ .key = blk_xstrdup(key) };
    }
    char *copy = blk_xstrdup(value);
    free(option->value);
    option->value = copy;
    option->used = false;
}

void blk_options_setf(struct blk_options *options, const char *key, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    BLK_AUTOFREE char *value = blk_xvasprintf(format, args);
    va_end(args);
    blk_options_set(options, key, value);
}

static void remove_at(struct blk_options *options, size_t index)
{
    free_option(&options->list[index]);
    options->count--;
    memmove(&options->list[index], &options->list[index + 1],
            (options->count - index) * sizeof(options->list[0]));
}

void blk_options_remove(struct blk_options *options, const char *key)
{
    struct option *option = find_option(options, key);
    if (option)
        remove_at(options, (size_t)(option - options->list));
}

void blk_options_merge_missing(struct blk_options *to, const struct blk_options *from)
{
    for (size_t i = 0; from && i < from->count; i++)
        if (!find_option(to, from->list[i].key))
            blk_options_set(to, from->list[i].key, from->list[i].value);
}

void blk_options_merge_optional(struct blk_options *to, const struct blk_options *from)
{
    for (size_t i = 0; from && i < from->count; i++) {
        const char *key = from->list[i].key;
        if (find_option(to, key))
            continue;
        blk_options_set(to, key, from->list[i].value);
        find_option(to, key)->used = true;
    }
}

struct blk_options *blk_options_copy(const struct blk_options *options)
{
    struct blk_options *copy = blk_options_new();
    blk_options_merge_missing(copy, options);
    return copy;
}

/*
 * Takes one "word" up to a single comma off *text, with ",," unescaped, into malloc()ed memory.
 * *text is left behind the comma, or NULL at the end.
 */
static char *take_word(const char **text)
{
    char *word = blk_xcalloc(strlen(*text) + 1, 1);
    char *to = word;
    const char *from = *text;

    while (*from) {
        if (*from == ',') {
            if (from[1] != ',')
                break;
            from++;
        }
        *to++ = *from++;
    }
    *text = *from ? from + 1 : NULL;
    return word;
}

int blk_options_parse_keyval(struct blk_options *options, const char *text, const char *implied_key,
                             struct blk_error *err)
{
    bool first = true;

    while (text && *text) {
        BLK_AUTOFREE char *word = take_word(&text);
        char *equals = strchr(word, '=');
        if (equals == word)
            return blk_fail_why(err, EINVAL, "an option has no name before '='",
                                "parsing options '%s'", word);
        if (equals) {
            *equals = '\0';
            blk_options_set(options, word, equals + 1);
        } else if (first && implied_key) {
            blk_options_set(options, implied_key, word);
        } else if (strncmp(word, "no", 2) == 0 && word[2]) {
            blk_options_set(options, word + 2, "off");
        } else {
            blk_options_set(options, word, "on");
        }
        first = false;
    }
    return 0;
}

static int flatten(struct blk_options *options, const char *key, json_t *value,
                   struct blk_error *err);

static int flatten_member(struct blk_options *options, const char *prefix, const char *name,
                          json_t *value, struct blk_error *err)
{
    BLK_AUTOFREE char *key = *prefix ? blk_xasprintf("%s.%s", prefix, name) : blk_xstrdup(name);
    return flatten(options, key, value, err);
}

/* 1.0 and 1e3 are numbers like 1 and 1000, as far as they are exact. */
static bool is_whole(double value)
{
    return fabs(value) < 0x1p53 && (double)(int64_t)value == value;
}

static bool names_backing(const char *key)
{
    const char *dot = strrchr(key, '.');
    return strcmp(dot ? dot + 1 : key, "backing") == 0;
}

static int flatten(struct blk_options *options, const char *key, json_t *value,
                   struct blk_error *err)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: {
        const char *name;
        json_t *member;
        json_object_foreach(value, name, member) {
            int ret = flatten_member(options, key, name, member, err);
            if (ret < 0)
                return ret;
        }
        return 0;
    }
    case JSON_ARRAY:
        for (size_t i = 0; i < json_array_size(value); i++) {
            char index[24];
            snprintf(index, sizeof(index), "%zu", i);
            int ret = flatten_member(options, key, index, json_array_get(value, i), err);
            if (ret < 0)
                return ret;
        }
        return 0;
    case JSON_STRING:
        blk_options_set(options, key, json_string_value(value));
        return 0;
    case JSON_INTEGER:
        blk_options_setf(options, key, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return 0;
    case JSON_TRUE:
    case JSON_FALSE:
        blk_options_set(options, key, json_is_true(value) ? "on" : "off");
        return 0;
    case JSON_NULL:
        /* "backing": null means: no backing file. Elsewhere null is the same as nothing. */
        if (names_backing(key))
            blk_options_set(options, key, "");
        return 0;
    case JSON_REAL:
        if (!is_whole(json_real_value(value)))
            break;
        blk_options_setf(options, key, "%.0f", json_real_value(value));
        return 0;
    }
    return blk_fail_why(err, EINVAL, "a fraction is not a valid value", "option '%s'", key);
}

int blk_options_parse_json(struct blk_options *options, const char *text, struct blk_error *err)
{
    BLK_AUTOFREE char *strict = blk_json_strict(text, err);
    if (!strict)
        return -EINVAL;
    json_error_t why;
    json_t *root = json_loads(strict, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        return blk_fail_why(err, EINVAL, why.text, "parsing 'json:' at line %d, column %d",
                            why.line, why.column);
    int ret;
    if (json_is_object(root))
        ret = flatten(options, "", root, err);
    else
        ret = blk_fail_why(err, EINVAL, "not an object", "parsing 'json:'");
    json_decref(root);
    return ret;
}

const char *blk_options_get(struct blk_options *options, const char *key)
{
    struct option *option = options ? find_option(options, key) : NULL;
    if (!option)
        return NULL;
    option->used = true;
    return option->value;
}

const char *blk_options_peek(const struct blk_options *options, const char *key)
{
    const struct option *option = options ? find_option(options, key) : NULL;
    return option ? option->value : NULL;
}

static int bad_value(const char *key, const char *text, const char *wanted, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, wanted, "option '%s' has the value '%s'", key, text);
}

int blk_options_get_bool(struct blk_options *options, const char *key, bool *value,
                         struct blk_error *err)
{
    static const char *const yes[] = { "on", "true", "yes", "y" };
    static const char *const no[] = { "off", "false", "no", "n" };
    const char *text = blk_options_get(options, key);

    if (!text)
        return 0;
    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
        if (strcmp(text, yes[i]) == 0) {
            *value = true;
            return 0;
        }
        if (strcmp(text, no[i]) == 0) {
            *value = false;
            return 0;
        }
    }
    return bad_value(key, text, "must be 'on' or 'off'", err);
}

int blk_options_get_size(struct blk_options *options, const char *key, uint64_t *bytes,
                         struct blk_error *err)
{
    const char *text = blk_options_get(options, key);
    if (!text || blk_parse_size(text, bytes) == 0)
        return 0;
    return bad_value(key, text, "must be a size such as 65536, 64k or 1G", err);
}

int blk_options_get_uint(struct blk_options *options, const char *key, uint64_t *value,
                         struct blk_error *err)
{
    const char *text = blk_options_get(options, key);
    if (!text || blk_parse_uint(text, value) == 0)
        return 0;
    return bad_value(key, text, "must be a number", err);
}

/* The rest of `key` behind "<prefix>.", or NULL. */
static const char *key_in_group(const char *key, const char *prefix)
{
    size_t length = strlen(prefix);
    if (strncmp(key, prefix, length) == 0 && key[length] == '.')
        return key + length + 1;
    return NULL;
}

bool blk_options_has_group(const struct blk_options *options, const char *prefix)
{
    for (size_t i = 0; options && i < options->count; i++) {
        const char *key = options->list[i].key;
        if (strcmp(key, prefix) == 0 || key_in_group(key, prefix))
            return true;
    }
    return false;
}

struct blk_options *blk_options_take_group(struct blk_options *options, const char *prefix)
{
    struct blk_options *group = blk_options_new();

    for (size_t i = 0; options && i < options->count;) {
        const char *rest = key_in_group(options->list[i].key, prefix);
        if (rest) {
            blk_options_set(group, rest, options->list[i].value);
            remove_at(options, i);
        } else {
            i++;
        }
    }
    return group;
}

const char *blk_options_first_unused(const struct blk_options *options)
{
    for (size_t i = 0; options && i < options->count; i++)
        if (!options->list[i].used)
            return options->list[i].key;
    return NULL;
}

size_t blk_options_count(const struct blk_options *options)
{
    return options ? options->count : 0;
}

const char *blk_options_key(const struct blk_options *options, size_t index)
{
    return options->list[index].key;
}

const char *blk_options_value(const struct blk_options *options, size_t index)
{
    return options->list[index].value;
}
