/* SPDX-License-Identifier: MIT */
/*
 * Command lines through libpopt. popt does the parsing; arrange() first brings the line into a
 * form in which popt and getopt, which qemu-img's users have in their scripts, mean the same:
 *
 * - abbreviated long options are spelt out;
 * - the value in "-o=x" becomes a word of its own, or popt would drop the "=";
 * - operands, "-" among them, are taken out.
 */
#include "cmd/common/cmdline.h"

#include <ctype.h>
#include <errno.h>
#include <popt.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/nearest.h"
#include "blockcore/base/units.h"
#include "cmd/common/program.h"
#include "cmd/common/report.h"
#include "cmd/common/usage.h"

#define HELP_VALUE 1 /* popt's values: help, then the rows of the table */

static bool takes_value(const struct cmd_option *option)
{
    return option->kind != CMD_FLAG && option->kind != CMD_MARK;
}

/* ---- memory ---- */

/* Values of options live until the program ends; this list keeps hold of them. */
struct kept {
    struct kept *next;
    void *memory;
};

static struct kept *kept;

static void *keep(void *memory)
{
    struct kept *entry = blk_xcalloc(1, sizeof(*entry));
    *entry = (struct kept){ .next = kept, .memory = memory };
    kept = entry;
    return memory;
}

static void *keep_new(size_t count, size_t bytes)
{
    return keep(blk_xcalloc(count, bytes));
}

/* Adds a text, which is not copied. */
static void list_add(struct cmd_list *list, const char *text)
{
    const char **items = keep_new(list->count + 1, sizeof(*items));
    for (size_t i = 0; i < list->count; i++)
        items[i] = list->items[i];
    items[list->count++] = text;
    list->items = items;
}

/*
 * popt that gets no memory says so in its own words and calls exit(1), which may be a result of the
 * command. So its words wait in stderr's buffer while it is at work, and are dropped at exit.
 */
static bool in_popt;

static void end_if_popt_exits(void)
{
    if (!in_popt)
        return;
    __fpurge(stderr);
    blk_out_of_memory();
}

static void popt_begin(void)
{
    in_popt = true;
    setvbuf(stderr, NULL, _IOFBF, 0);
}

static void popt_end(void)
{
    setvbuf(stderr, NULL, _IOLBF, 0);
    in_popt = false;
}

/* ---- arranging ---- */

/*
 * The row for the first `length` characters of `name`, which may be abbreviated; NULL if none or
 * several fit.
 */
static const struct cmd_option *find_long(const struct cmd_option *options, const char *name,
                                          size_t length)
{
    const struct cmd_option *found = NULL;
    unsigned fits = 0;

    for (; !cmd_option_is_end(options); options++) {
        if (!options->name || strncmp(options->name, name, length) != 0)
            continue;
        if (strlen(options->name) == length)
            return options;
        found = options;
        fits++;
    }
    return fits == 1 ? found : NULL;
}

static const struct cmd_option *find_letter(const struct cmd_option *options, char letter)
{
    for (; !cmd_option_is_end(options); options++) {
        if (options->letter == letter)
            return options;
    }
    return NULL;
}

struct arrangement {
    const char **argv; /* for popt */
    int argc;
    struct cmd_operands operands;
};

/* "--name" or "--name=value". Unknown and ambiguous names are left for popt to refuse. */
static int arrange_long(struct arrangement *to, const struct cmd_option *options, char **arg)
{
    const char *name = *arg + 2;
    size_t length = strcspn(name, "=");
    const struct cmd_option *option = find_long(options, name, length);
    if (!option) {
        static const char help[] = "help";
        bool is_help = length >= 2 && length < sizeof(help) && !strncmp(help, name, length);
        to->argv[to->argc++] = is_help && !name[length] ? "--help" : *arg;
        return 1;
    }

    to->argv[to->argc++] = keep(blk_xasprintf("--%s%s", option->name, name + length));
    if (!takes_value(option) || name[length] || !arg[1])
        return 1;
    to->argv[to->argc++] = arg[1];
    return 2;
}

/* "-abc" or "-ovalue": a value that follows its letter directly is put into a word of its own. */
static int arrange_letters(struct arrangement *to, const struct cmd_option *options, char **arg)
{
    for (const char *letter = *arg + 1; *letter; letter++) {
        const struct cmd_option *option = find_letter(options, *letter);
        if (!option || !takes_value(option))
            continue;
        to->argv[to->argc++] = keep(blk_xstrndup(*arg, (size_t)(letter + 1 - *arg)));
        if (letter[1]) {
            to->argv[to->argc++] = letter + 1;
            return 1;
        }
        if (arg[1])
            to->argv[to->argc++] = arg[1];
        return 2;
    }
    to->argv[to->argc++] = *arg;
    return 1;
}

/* "-" is one, and so is a number such as "-1G": no command has digits for options. */
static bool is_operand(const struct cmd_option *options, const char *word)
{
    if (word[0] != '-' || !word[1])
        return true;
    return isdigit((unsigned char)word[1]) && !find_letter(options, word[1]);
}

static void arrange(struct arrangement *to, const struct cmd_option *options, int argc, char **argv)
{
    /* Every word becomes at most two. */
    to->argv = keep_new(2 * (size_t)argc + 2, sizeof(*to->argv));
    to->operands.items = keep_new((size_t)argc + 1, sizeof(*to->operands.items));
    to->argv[to->argc++] = argv[0];

    int i = 1;
    while (i < argc) {
        if (strcmp(argv[i], "--") == 0) {
            i++;
            break;
        }
        if (is_operand(options, argv[i]))
            to->operands.items[to->operands.count++] = argv[i++];
        else if (argv[i][1] == '-')
            i += arrange_long(to, options, &argv[i]);
        else
            i += arrange_letters(to, options, &argv[i]);
    }
    while (i < argc)
        to->operands.items[to->operands.count++] = argv[i++];
    to->argv[to->argc] = NULL;
}

/* ---- values ---- */

int cmd_size_parse(const char *what, const char *text, uint64_t *bytes)
{
    int ret = blk_parse_size(text, bytes);
    if (ret == -ERANGE || (ret == 0 && *bytes > BLK_MAX_BYTES))
        return report_failure("%s: '%s' is too large (the limit is 8 EiB)", what, text);
    if (ret < 0)
        return report_failure("%s: '%s' is not a size (a number with k, M, G, T, P, E or nothing "
                              "after it)",
                              what, text);
    return 0;
}

static bool is_size(const char *text)
{
    uint64_t bytes;
    return blk_parse_size(text + (*text == '+' || *text == '-'), &bytes) == 0;
}

bool cmd_operands_swapped(const char *name, const char *size)
{
    return is_size(name) && !is_size(size) && access(name, F_OK) < 0;
}

static int uint_parse(const char *what, const char *text, uint64_t *value)
{
    int ret = blk_parse_uint(text, value);
    if (ret == -ERANGE)
        return report_failure("%s: '%s' is too large", what, text);
    if (ret < 0)
        return report_failure("%s: '%s' is not a number", what, text);
    return 0;
}

int output_format_parse(const char *text, enum output_format *format)
{
    *format = text && strcmp(text, "json") == 0 ? OUTPUT_JSON : OUTPUT_HUMAN;
    if (!text || *format == OUTPUT_JSON || strcmp(text, "human") == 0)
        return 0;
    return report_failure("--output: '%s' is neither human nor json", text);
}

/* Stores what one option was given. Returns 0 or an exit status. */
static int store(const struct cmd_option *option, const char *text)
{
    char name[64];
    if (option->name)
        snprintf(name, sizeof(name), "--%s", option->name);
    else
        snprintf(name, sizeof(name), "-%c", option->letter);

    switch (option->kind) {
    case CMD_FLAG:
        *(bool *)option->value = true;
        return 0;
    case CMD_STRING:
        *(const char **)option->value = text;
        return 0;
    case CMD_LIST:
        list_add(option->value, text);
        return 0;
    case CMD_SIZE:
        ((struct cmd_size *)option->value)->given = true;
        return cmd_size_parse(name, text, &((struct cmd_size *)option->value)->value);
    case CMD_UINT:
        ((struct cmd_size *)option->value)->given = true;
        return uint_parse(name, text, &((struct cmd_size *)option->value)->value);
    case CMD_OUTPUT:
        return output_format_parse(text, option->value);
    case CMD_RESULT:
        if (output_format_parse(text, option->value))
            return EXIT_FAILED;
        report_result_wanted(*(enum output_format *)option->value == OUTPUT_JSON);
        return 0;
    case CMD_CALL:
    case CMD_MARK:
        break;
    }
    const struct cmd_call *call = option->value;
    return call->call(call->opaque, option, text);
}

static struct poptOption *popt_table(const struct cmd_option *options)
{
    size_t count = 0;
    while (!cmd_option_is_end(&options[count]))
        count++;

    struct poptOption *table = keep_new(count + 2, sizeof(*table));
    for (size_t i = 0; i < count; i++) {
        table[i] = (struct poptOption){
            .longName = options[i].name,
            .shortName = options[i].letter,
            .argInfo = takes_value(&options[i]) ? POPT_ARG_STRING : POPT_ARG_NONE,
            .val = HELP_VALUE + 1 + (int)i,
        };
    }
    table[count] = (struct poptOption){ .longName = "help", .shortName = 'h', .val = HELP_VALUE };
    return table;
}

/* A long option that is mistyped, or too short to be clear, is nearest to one that there is. */
static int report_unknown(const struct command *command, const struct cmd_option *options,
                          const char *text)
{
    if (strncmp(text, "--", 2) != 0)
        return report_usage(command, "unknown option '%s'", text);
    BLK_AUTOFREE char *name = blk_xstrndup(text + 2, strcspn(text + 2, "="));
    struct blk_nearest nearest = BLK_NEAREST_INIT(name);
    for (; !cmd_option_is_end(options); options++)
        if (options->name)
            blk_nearest_try(&nearest, options->name);
    if (!nearest.name)
        return report_usage(command, "unknown option '--%s'", name);
    return report_usage(command, "unknown option '--%s'; did you mean '--%s'?", name, nearest.name);
}

static int report_bad_option(const struct command *command, const struct cmd_option *options,
                             poptContext context, int error)
{
    const char *text = poptBadOption(context, 0);
    if (error == POPT_ERROR_BADOPT)
        return report_unknown(command, options, text);
    if (error == POPT_ERROR_NOARG)
        return report_usage(command, "option '%s' needs a value", text);
    if (error == POPT_ERROR_UNWANTEDARG)
        return report_usage(command, "option '%s' takes no value", text);
    return report_usage(command, "option '%s': %s", text, poptStrerror(error));
}

static int next_option(poptContext context)
{
    popt_begin();
    int value = poptGetNextOpt(context);
    popt_end();
    return value;
}

static int parse_arranged(const struct command *command, const struct cmd_option *options,
                          poptContext context)
{
    int value = next_option(context);
    for (; value > 0; value = next_option(context)) {
        if (value == HELP_VALUE) {
            usage_print_help(command, options);
            return EXIT_OK;
        }
        const struct cmd_option *option = &options[value - HELP_VALUE - 1];
        char *text = takes_value(option) ? poptGetOptArg(context) : NULL;
        if (takes_value(option) && !text)
            blk_out_of_memory();
        int status = store(option, text ? keep(text) : NULL);
        if (status)
            return status;
    }
    return value == -1 ? CMD_RUN : report_bad_option(command, options, context, value);
}

/* A usage error is reported in the requested form, even if it comes before --output. */
static void note_result_wanted(const struct cmd_option *options, int argc, char **argv)
{
    bool has_result = false;

    for (; !cmd_option_is_end(options); options++)
        has_result |= options->kind == CMD_RESULT;
    for (int i = 1; i < argc && has_result && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--output=json") == 0 ||
            (strcmp(argv[i], "--output") == 0 && i + 1 < argc && strcmp(argv[i + 1], "json") == 0))
            report_result_wanted(true);
}

/* What a message about an image in use can suggest. */
static void set_advice(const struct command *command, const struct cmd_option *options)
{
    bool may_wait = false, may_share = false;

    for (; !cmd_option_is_end(options); options++) {
        may_wait |= options->name && strcmp(options->name, "lock-wait") == 0;
        may_share |= options->letter == 'U' && options->help && !command->needs_a_moment;
    }
    report_set_advice(may_wait, may_share);
}

int cmd_parse(const struct command *command, const struct cmd_option *options, int argc,
              char **argv, struct cmd_operands *operands)
{
    if (argc == 2 && strcmp(argv[1], CMD_SYNTAX) == 0) {
        usage_print_syntax(command, options);
        return EXIT_OK;
    }
    set_advice(command, options);
    struct arrangement arranged = { 0 };
    note_result_wanted(options, argc, argv);
    arrange(&arranged, options, argc, argv);

    struct poptOption *table = popt_table(options);
    atexit(end_if_popt_exits);
    popt_begin();
    poptContext context = poptGetContext(NULL, arranged.argc, arranged.argv, table, 0);
    popt_end();
    if (!context)
        blk_out_of_memory();
    int status = parse_arranged(command, options, context);
    poptFreeContext(context);
    *operands = arranged.operands;
    return status == CMD_RUN || status == EXIT_OK ? status : command_error_status(command);
}

int cmd_parse_image(const struct command *command, const struct cmd_option *options, int argc,
                    char **argv, const char **filename)
{
    struct cmd_operands operands;
    int status = cmd_parse(command, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (operands.count != 1)
        return report_usage(command, "expects one image");
    *filename = operands.items[0];
    return CMD_RUN;
}
