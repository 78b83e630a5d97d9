/* SPDX-License-Identifier: MIT */
/*
 * The help of a command. A usage line consists of the options that the command's text does not
 * mention, in brackets, and of that text, in which an option stands for itself and its argument.
 */
#include "cmd/common/usage.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "cmd/common/program.h"

#define LINE_COLUMNS 80
#define INDENT_COLUMNS 10

/* ---- which options ---- */

/* An option without help is accepted because others of its kind are, but is of no use here. */
static bool is_shown(const struct cmd_option *option)
{
    return option->help;
}

/* The length of the option at the start of `text`: 2 for "-f]", 6 for "--list"; 0 if it is none. */
static size_t option_length(const char *text)
{
    if (text[0] != '-')
        return 0;
    size_t length = 1;
    while (isalpha((unsigned char)text[length]) || text[length] == '-')
        length++;
    return length > 1 ? length : 0;
}

static bool is_option_called(const struct cmd_option *option, const char *text, size_t length)
{
    if (length == 2)
        return option->letter == text[1];
    return option->name && strlen(option->name) == length - 2 &&
           strncmp(option->name, text + 2, length - 2) == 0;
}

static bool mentions(const char *usage, const struct cmd_option *option)
{
    for (const char *p = usage; *p;) {
        size_t length = option_length(p);
        if (length && is_option_called(option, p, length))
            return true;
        p += length ? length : 1;
    }
    return false;
}

static const struct cmd_option *find_called(const struct cmd_option *options, const char *text,
                                            size_t length)
{
    for (; !cmd_option_is_end(options); options++)
        if (is_option_called(options, text, length))
            return options;
    return NULL;
}

/* ---- one form ---- */

static void put_argument(FILE *to, const struct cmd_option *option, bool is_short)
{
    if (option->argument)
        fprintf(to, "%c%s", is_short ? ' ' : '=', option->argument);
}

/* Flags with a letter; together ("[-pq]"), unless each is to be found in the text. */
static void put_flags(FILE *to, const struct command *command, const struct cmd_option *options,
                      bool together)
{
    bool any = false;

    for (const struct cmd_option *o = options; !cmd_option_is_end(o); o++) {
        if (!is_shown(o) || !o->letter || o->argument || mentions(command->usage, o))
            continue;
        fprintf(to, together && any ? "%c" : "[-%c", o->letter);
        if (!together)
            fputs("] ", to);
        any = true;
    }
    if (together && any)
        fputs("] ", to);
}

static void put_others(FILE *to, const struct command *command, const struct cmd_option *options)
{
    for (const struct cmd_option *o = options; !cmd_option_is_end(o); o++) {
        if (!is_shown(o) || (o->letter && !o->argument) || mentions(command->usage, o))
            continue;
        if (o->letter)
            fprintf(to, "[-%c", o->letter);
        else
            fprintf(to, "[--%s", o->name);
        put_argument(to, o, o->letter);
        fputs(o->kind == CMD_LIST ? "]... " : "] ", to);
    }
}

/* A line of the command's own text, with the arguments of the options that it mentions. */
static void put_text(FILE *to, const struct cmd_option *options, const char *text, size_t length)
{
    for (const char *p = text; p < text + length;) {
        size_t word = option_length(p);
        const struct cmd_option *option = word ? find_called(options, p, word) : NULL;
        word = word ? word : 1;
        fwrite(p, 1, word, to);
        if (option)
            put_argument(to, option, word == 2);
        p += word;
    }
}

/*
 * The form of the command at the start of `form`, a line of its usage; malloc()ed. The first one
 * lists the options that none mentions.
 */
static char *form_text(const struct command *command, const struct cmd_option *options,
                       const char *form, bool together)
{
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    if (!to)
        blk_out_of_memory();
    if (form == command->usage) {
        put_flags(to, command, options, together);
        put_others(to, command, options);
    }
    put_text(to, options, form, strcspn(form, "\n"));
    if (fclose(to) != 0)
        blk_out_of_memory();
    return text;
}

static const char *next_form(const char *form)
{
    form += strcspn(form, "\n");
    return *form ? form + 1 : NULL;
}

/* ---- printing ---- */

/* How far the text can go without a break: an option in brackets stays with its argument. */
static size_t unit_length(const char *text)
{
    size_t length = 0;
    unsigned depth = 0;

    for (; text[length] && (depth || text[length] != ' '); length++) {
        depth += text[length] == '[';
        depth -= text[length] == ']';
    }
    return length;
}

static void print_wrapped(size_t column, const char *text)
{
    while (*text) {
        size_t length = unit_length(text);
        if (column + 1 + length > LINE_COLUMNS) {
            printf("\n%*s", INDENT_COLUMNS - 1, "");
            column = INDENT_COLUMNS - 1;
        }
        printf(" %.*s", (int)length, text);
        column += 1 + length;
        text += length + (text[length] == ' ');
    }
    putchar('\n');
}

static void print_option(const struct cmd_option *option)
{
    char left[80];
    int len = snprintf(left, sizeof(left), "  %c%c%s%s%s", option->letter ? '-' : ' ',
                       option->letter ? option->letter : ' ',
                       !option->name    ? ""
                       : option->letter ? ", --"
                                        : "  --",
                       option->name ? option->name : "",
                       !option->argument ? ""
                       : option->name    ? "="
                                         : " ");
    if (option->argument)
        snprintf(left + len, sizeof(left) - (size_t)len, "%s", option->argument);
    printf("%-34s %s\n", left, option->help);
}

void usage_print_help(const struct command *command, const struct cmd_option *options)
{
    static const struct cmd_option help = { 'h', "help", CMD_FLAG, NULL, NULL, "show this help" };
    bool alone = program_called_as() == PROGRAM_QEMU_IO;

    program_note_help();
    for (const char *form = command->usage; form; form = next_form(form)) {
        BLK_AUTOFREE char *text = form_text(command, options, form, true);
        int column =
            printf("%s %s%s%s", form == command->usage ? "usage:" : "   or:", program_name(),
                   alone ? "" : " ", alone ? "" : command->name);
        print_wrapped((size_t)column, text);
    }
    printf("\n%s. See blkimg-%s(1) for more.\n\n", command->summary, command->name);
    for (; !cmd_option_is_end(options); options++)
        if (is_shown(options))
            print_option(options);
    print_option(&help);
}

void usage_print_syntax(const struct command *command, const struct cmd_option *options)
{
    for (const char *form = command->usage; form; form = next_form(form)) {
        BLK_AUTOFREE char *text = form_text(command, options, form, false);
        printf("  %s %s\n", command->name, text);
    }
}
