/* SPDX-License-Identifier: MIT */
/* Reading, checking and printing the options of -o. */
#include "cmd/common/create_options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/nearest.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/names.h"
#include "cmd/common/program.h"

/* ---- tables ---- */

/* The driver that will hold the bytes: below all formats and filters that the name spells out. */
static const struct blk_driver *bottom_driver(const char *filename, struct blk_error *err)
{
    struct blk_options *options = blk_options_new();
    const struct blk_driver *driver = NULL;

    if (blk_filename_to_options(filename, options, err) == 0) {
        struct blk_options *level = options;
        while (blk_options_has_group(level, "file") || blk_options_has_group(level, "image")) {
            const char *group = blk_options_has_group(level, "file") ? "file" : "image";
            struct blk_options *below = blk_options_take_group(level, group);
            blk_options_free(level);
            level = below;
        }
        options = level;
        const char *name = blk_options_peek(level, "driver");
        const char *file = blk_options_peek(level, "filename");
        driver = name ? blk_driver_find(name) : file ? blk_protocol_of(file, err) : NULL;
        if (!driver)
            blk_fail_if_unset(err, EINVAL, "creating '%s'", filename);
    }
    blk_options_free(options);
    return driver;
}

int create_tables(const struct blk_driver *driver, const char *filename,
                  struct option_tables *tables, struct blk_error *err)
{
    *tables = (struct option_tables){
        .format = driver->name,
        .own = BLK_OP(driver, creation, options),
    };
    if (!BLK_OP(driver, creation, write_image))
        return blk_fail_why(err, ENOTSUP, "images of this format cannot be created", "format '%s'",
                            driver->name);
    if (!filename)
        return 0;

    const struct blk_driver *bottom = bottom_driver(filename, err);
    if (!bottom)
        return -err->code;
    if (!BLK_OP(bottom, creation, make_node))
        return blk_fail_why(err, ENOTSUP, "this protocol cannot create images",
                            "creating '%s' (%s)", filename, bottom->name);
    tables->below = BLK_OP(bottom, creation, options);
    return 0;
}

static const struct blk_option_desc *find_in(const struct blk_option_desc *table, const char *name)
{
    for (; table && table->name; table++) {
        if (strcmp(table->name, name) == 0)
            return table;
    }
    return NULL;
}

static const struct blk_option_desc *find_create_option(const struct option_tables *tables,
                                                        const char *name)
{
    const struct blk_option_desc *found = find_in(tables->own, name);
    return found ? found : find_in(tables->below, name);
}

/* ---- parsing ---- */

bool create_options_want_help(const struct cmd_list *texts)
{
    for (size_t i = 0; i < texts->count; i++) {
        for (const char *word = texts->items[i]; *word;) {
            size_t length = strcspn(word, ",");
            if ((length == 1 && *word == '?') || (length == 4 && strncmp(word, "help", 4) == 0))
                return true;
            word += length + (word[length] == ',');
        }
    }
    return false;
}

static int check_value(const struct blk_option_desc *desc, struct blk_options *options,
                       struct blk_error *err)
{
    bool truth;
    uint64_t number = 0;

    switch (desc->type) {
    case BLK_OPT_STRING:
        return 0;
    case BLK_OPT_BOOL:
        return blk_options_get_bool(options, desc->name, &truth, err);
    case BLK_OPT_NUMBER:
        return blk_options_get_uint(options, desc->name, &number, err);
    case BLK_OPT_SIZE:
        break;
    }
    int ret = blk_options_get_size(options, desc->name, &number, err);
    if (ret < 0)
        return ret;
    if (number > BLK_MAX_BYTES)
        return blk_fail_why(err, ERANGE, "the limit is 8 EiB", "option '%s' has the value '%s'",
                            desc->name, blk_options_peek(options, desc->name));
    return 0;
}

static void try_table(struct blk_nearest *nearest, const struct blk_option_desc *table)
{
    for (; table && table->name; table++)
        blk_nearest_try(nearest, table->name);
}

static int unknown_option(const struct option_tables *tables, const char *name,
                          struct blk_error *err)
{
    struct blk_nearest nearest = BLK_NEAREST_INIT(name);
    try_table(&nearest, tables->own);
    try_table(&nearest, tables->below);
    BLK_AUTOFREE char *meant =
        nearest.name ? blk_xasprintf("; did you mean '%s'?", nearest.name) : blk_xstrdup("");
    BLK_AUTOFREE char *why = blk_xasprintf("there is no such option (-o help lists them)%s", meant);
    return blk_fail_why(err, EINVAL, why, "format '%s': option '%s'", tables->format, name);
}

int create_options_parse(const struct cmd_list *texts, const struct option_tables *tables,
                         struct blk_options *options, struct blk_error *err)
{
    for (size_t i = 0; i < texts->count; i++) {
        int ret = blk_options_parse_keyval(options, texts->items[i], NULL, err);
        if (ret < 0)
            return blk_fail_if_unset(err, -ret, "reading the options '%s'", texts->items[i]);
    }

    /* On a copy: looking at a value marks it as used, and the driver has yet to do that. */
    struct blk_options *copy = blk_options_copy(options);
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < blk_options_count(copy); i++) {
        const char *name = blk_options_key(copy, i);
        const struct blk_option_desc *desc = find_create_option(tables, name);
        if (desc)
            ret = check_value(desc, copy, err);
        else
            ret = unknown_option(tables, name, err);
    }
    blk_options_free(copy);
    return ret;
}

/* ---- printing ---- */

static int by_name(const void *a, const void *b)
{
    const struct blk_option_desc *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static size_t collect(const struct option_tables *tables, bool whole,
                      const struct blk_option_desc **list, size_t room)
{
    size_t count = 0;
    for (const struct blk_option_desc *d = tables->own; d && d->name && count < room; d++)
        list[count++] = d;
    for (const struct blk_option_desc *d = whole ? tables->below : NULL;
         d && d->name && count < room; d++) {
        if (!find_in(tables->own, d->name))
            list[count++] = d;
    }
    return count;
}

static void print_list(const struct option_tables *tables, bool whole)
{
    static const char *const types[] = {
        [BLK_OPT_STRING] = "str",
        [BLK_OPT_BOOL] = "bool (on/off)",
        [BLK_OPT_SIZE] = "size",
        [BLK_OPT_NUMBER] = "num",
    };
    const struct blk_option_desc *list[64];
    size_t count = collect(tables, whole, list, ARRAY_SIZE(list));

    qsort(list, count, sizeof(list[0]), by_name);
    for (size_t i = 0; i < count; i++) {
        char left[80];
        snprintf(left, sizeof(left), "  %s=<%s>", list[i]->name, types[list[i]->type]);
        printf("%-24s - %s\n", left, list[i]->help);
    }
}

void create_options_help(const struct option_tables *tables, bool whole)
{
    program_note_help();
    if (whole)
        printf("Supported options:\n");
    else
        printf("Supported %s options:\n", tables->format);
    print_list(tables, whole);
    if (!whole)
        printf("\nThe protocol level may support further options.\n"
               "Specify the target filename to include those options.\n");
}

void amend_options_help(const struct option_tables *tables)
{
    program_note_help();
    printf("Amend options for '%s':\n", tables->format);
    print_list(tables, false);
}

/*
 * What qemu-img's line shows although it was not given; it has other defaults that it keeps to
 * itself.
 */
static bool default_is_shown(const char *name)
{
    static const char *const shown[] = {
        "cluster_size", "extended_l2", "compression_type", "lazy_refcounts", "refcount_bits",
    };
    for (size_t i = 0; i < ARRAY_SIZE(shown); i++) {
        if (strcmp(shown[i], name) == 0)
            return true;
    }
    return false;
}

static void print_doubling_commas(const char *text)
{
    for (; *text; text++) {
        if (*text == ',')
            putchar(',');
        putchar(*text);
    }
}

void create_options_print(const struct option_tables *tables, const struct blk_options *options)
{
    const struct blk_option_desc *list[64];
    size_t count = collect(tables, true, list, ARRAY_SIZE(list));

    for (size_t i = 0; i < count; i++) {
        const char *given = blk_options_peek(options, list[i]->name);
        const char *value = given                             ? given
                            : default_is_shown(list[i]->name) ? list[i]->default_text
                                                              : NULL;
        uint64_t number;
        if (!value)
            continue;
        printf(" %s=", list[i]->name);
        if (list[i]->type == BLK_OPT_SIZE && blk_parse_size(value, &number) == 0)
            printf("%" PRIu64, number);
        else if (list[i]->type == BLK_OPT_STRING)
            print_doubling_commas(value);
        else
            fputs(value, stdout);
    }
}
