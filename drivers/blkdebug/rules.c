/* SPDX-License-Identifier: MIT */
/*
 * Reading rules: from a file in the configuration syntax that QEMU knows, and from options.
 *
 * A file looks like this; a value is always quoted, and a name behind the section's word is
 * ignored:
 *
 *     # the second write of the block that holds sector 8 fails
 *     [inject-error]
 *     event = "pwritev"
 *     sector = "8"
 *     errno = "28"
 *     nth = "2"
 *
 * Each section, and each "inject-error.N" group of options, becomes a set of options that one
 * function turns into a rule.
 */
#include "drivers/blkdebug/rules.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"

static const char *const section_names[] = {
    [BLKDEBUG_INJECT_ERROR] = "inject-error",
    [BLKDEBUG_SET_STATE] = "set-state",
};
#define SECTION_COUNT (sizeof(section_names) / sizeof(section_names[0]))

static const char *const iotype_names[BLKDEBUG_IOTYPE_COUNT] = {
    [BLKDEBUG_READ] = "read",
    [BLKDEBUG_WRITE] = "write",
    [BLKDEBUG_WRITE_ZEROES] = "write-zeroes",
    [BLKDEBUG_DISCARD] = "discard",
    [BLKDEBUG_FLUSH] = "flush",
    [BLKDEBUG_BLOCK_STATUS] = "block-status",
    [BLKDEBUG_TRUNCATE] = "truncate",
    [BLKDEBUG_CREATE] = "create",
    [BLKDEBUG_PUBLISH] = "publish",
    [BLKDEBUG_CLOSE] = "close",
};

static const unsigned default_iotypes = (2u << BLKDEBUG_FLUSH) - 1;

/* The index of `name`, or -1. */
static int find_name(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return (int)i;
    return -1;
}

/* ---- one rule ---- */

static int parse_event(struct blkdebug_rule *rule, struct blk_options *options,
                       struct blk_error *err)
{
    const char *text = blk_options_get(options, "event");
    int event = text ? blk_event_parse(text) : BLK_EVENT_NONE;

    if (event < 0)
        return blk_fail_why(err, EINVAL, "there is no such event", "event '%s'", text);
    if (event == BLK_EVENT_NONE && rule->action == BLKDEBUG_SET_STATE)
        return blk_fail_why(err, EINVAL, "it needs an event", "a set-state rule");
    rule->event = event;
    return 0;
}

static int parse_iotype(struct blkdebug_rule *rule, struct blk_options *options,
                        struct blk_error *err)
{
    const char *text = blk_options_get(options, "iotype");

    if (!text) {
        rule->iotypes = default_iotypes;
        return 0;
    }
    int iotype = find_name(iotype_names, BLKDEBUG_IOTYPE_COUNT, text);
    if (iotype < 0)
        return blk_fail_why(err, EINVAL, "there is no such type of request", "iotype '%s'", text);
    rule->iotypes = 1u << iotype;
    return 0;
}

static int parse_place(struct blkdebug_rule *rule, struct blk_options *options,
                       struct blk_error *err)
{
    uint64_t sector = 0;

    /* "-1" is how QEMU's own rules write "any sector". */
    const char *text = blk_options_get(options, "sector");
    rule->anywhere = !text || strcmp(text, "-1") == 0;
    if (rule->anywhere)
        return 0;
    int ret = blk_options_get_uint(options, "sector", &sector, err);
    if (ret < 0)
        return ret;
    if (sector > INT64_MAX / BLK_SECTOR_BYTES)
        return blk_fail_why(err, EINVAL, "no image is that large", "sector '%s'", text);
    rule->offset = sector * BLK_SECTOR_BYTES;
    return 0;
}

/* "28" or "ENOSPC". */
static int parse_errno(struct blkdebug_rule *rule, struct blk_options *options,
                       struct blk_error *err)
{
/* clang-format off */
#define NAME(code) { #code, code }
    /* clang-format on */
    static const struct {
        const char *name;
        int code;
    } names[] = {
        NAME(EIO),       NAME(ENOSPC),  NAME(EDQUOT),    NAME(EPERM),      NAME(EACCES),
        NAME(ENOENT),    NAME(EINTR),   NAME(EAGAIN),    NAME(EBUSY),      NAME(EINVAL),
        NAME(ENOMEM),    NAME(EFBIG),   NAME(EROFS),     NAME(ENODEV),     NAME(ENXIO),
        NAME(EBADF),     NAME(EEXIST),  NAME(EMFILE),    NAME(EPIPE),      NAME(EILSEQ),
        NAME(ENOTSUP),   NAME(ENOSYS),  NAME(ETIMEDOUT), NAME(EOPNOTSUPP), NAME(ECONNRESET),
        NAME(ECANCELED), NAME(ESTALE),  NAME(ENOMEDIUM), NAME(EREMOTEIO),  NAME(ECONNREFUSED),
        NAME(EOVERFLOW), NAME(ENOLINK), NAME(EPROTO),    NAME(EUCLEAN),    NAME(ENODATA),
    };
#undef NAME
    const char *text = blk_options_peek(options, "errno");
    uint64_t code = EIO;

    for (size_t i = 0; text && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i].name) == 0) {
            blk_options_get(options, "errno");
            rule->code = names[i].code;
            return 0;
        }
    }
    if (text && *text == 'E')
        return blk_fail_why(err, EINVAL, "there is no such error", "errno '%s'", text);
    int ret = blk_options_get_uint(options, "errno", &code, err);
    if (ret < 0)
        return ret;
    if (code > INT_MAX)
        return blk_fail_why(err, EINVAL, "there is no such error", "errno '%" PRIu64 "'", code);
    rule->code = (int)code;
    return 0;
}

static int parse_inject_error(struct blkdebug_rule *rule, struct blk_options *options,
                              struct blk_error *err)
{
    bool immediately = false; /* where a request fails is the same for synchronous requests */

    int ret = parse_iotype(rule, options, err);
    if (ret < 0)
        return ret;
    ret = parse_place(rule, options, err);
    if (ret < 0)
        return ret;
    ret = parse_errno(rule, options, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_bool(options, "immediately", &immediately, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_uint(options, "nth", &rule->nth, err);
    if (ret < 0)
        return ret;
    if (rule->nth == 0 && blk_options_peek(options, "nth"))
        return blk_fail_why(err, EINVAL, "requests are counted from 1", "nth '0'");
    rule->once = rule->nth > 0;
    ret = blk_options_get_bool(options, "once", &rule->once, err);
    if (ret == 0)
        rule->stats_path = blk_xstrdup(blk_options_get(options, "stats"));
    return ret;
}

static int parse_set_state(struct blkdebug_rule *rule, struct blk_options *options,
                           struct blk_error *err)
{
    return blk_options_get_uint(options, "new_state", &rule->new_state, err);
}

static int add_rule(struct blkdebug_rules *rules, enum blkdebug_action action,
                    struct blk_options *options, struct blk_error *err)
{
    static int (*const parse[])(struct blkdebug_rule *, struct blk_options *,
                                struct blk_error *) = {
        [BLKDEBUG_INJECT_ERROR] = parse_inject_error,
        [BLKDEBUG_SET_STATE] = parse_set_state,
    };
    struct blkdebug_rule rule = { .action = action };

    int ret = parse_event(&rule, options, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_uint(options, "state", &rule.state, err);
    if (ret < 0)
        return ret;
    ret = parse[action](&rule, options, err);
    if (ret < 0)
        return ret;
    const char *unknown = blk_options_first_unused(options);
    if (unknown) {
        free(rule.stats_path);
        return blk_fail_why(err, EINVAL, "there is no such option", "option '%s.%s'",
                            section_names[action], unknown);
    }

    rules->list = blk_xgrow(rules->list, rules->count, sizeof(rules->list[0]));
    rules->list[rules->count++] = rule;
    return 0;
}

void blkdebug_rules_free(struct blkdebug_rules *rules)
{
    for (size_t i = 0; i < rules->count; i++)
        free(rules->list[i].stats_path);
    free(rules->list);
    *rules = (struct blkdebug_rules){ .list = NULL };
}

/* ---- options ---- */

static int take_section(struct blkdebug_rules *rules, enum blkdebug_action action,
                        struct blk_options *section, struct blk_error *err)
{
    char index[24];

    if (!blk_options_has_group(section, "0"))
        return add_rule(rules, action, section, err);
    for (unsigned i = 0;
         snprintf(index, sizeof(index), "%u", i), blk_options_has_group(section, index); i++) {
        struct blk_options *group = blk_options_take_group(section, index);
        int ret = add_rule(rules, action, group, err);
        blk_options_free(group);
        if (ret < 0)
            return ret;
        /* A value "inject-error.0=x" would be found again and again. */
        if (blk_options_has_group(section, index))
            break;
    }
    if (blk_options_count(section) > 0)
        return blk_fail_why(err, EINVAL, "there is no such option", "option '%s.%s'",
                            section_names[action], blk_options_key(section, 0));
    return 0;
}

int blkdebug_rules_take_options(struct blkdebug_rules *rules, struct blk_options *options,
                                struct blk_error *err)
{
    for (size_t i = 0; i < SECTION_COUNT; i++) {
        struct blk_options *section = blk_options_take_group(options, section_names[i]);
        int ret = 0;
        if (blk_options_count(section) > 0)
            ret = take_section(rules, (enum blkdebug_action)i, section, err);
        blk_options_free(section);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- files ---- */

/* Where the reader is in a file: the section that is being filled, or NULL before the first. */
struct reader {
    struct blkdebug_rules *rules;
    struct blk_options *section;
    enum blkdebug_action action;
};

static int finish_section(struct reader *reader, struct blk_error *err)
{
    if (!reader->section)
        return 0;
    int ret = add_rule(reader->rules, reader->action, reader->section, err);
    blk_options_free(reader->section);
    reader->section = NULL;
    return ret;
}

/* `line` is "[word]" or "[word "name"]". */
static int begin_section(struct reader *reader, const char *line, struct blk_error *err)
{
    int ret = finish_section(reader, err);
    if (ret < 0)
        return ret;

    size_t length = strcspn(line + 1, " \t]\"");
    BLK_AUTOFREE char *word = blk_xstrndup(line + 1, length);
    const char *end = strrchr(line, ']');
    int action = find_name(section_names, SECTION_COUNT, word);
    if (!end || end[1] != '\0')
        return blk_fail_why(err, EINVAL, "']' is missing", "section '%s'", line);
    if (action < 0)
        return blk_fail_why(err, EINVAL, "there is no such section", "section '%s'", word);
    reader->action = action;
    reader->section = blk_options_new();
    return 0;
}

/* `line` is `key = "value"`. */
static int read_option(struct reader *reader, const char *line, struct blk_error *err)
{
    size_t key_length = strcspn(line, " \t=");
    const char *at = line + key_length;

    at += strspn(at, " \t");
    const char *equals = at++;
    if (key_length == 0 || *equals != '=')
        return blk_fail_why(err, EINVAL, "neither a section nor key = \"value\"", "'%s'", line);
    at += strspn(at, " \t");
    const char *end = strrchr(at, '"');
    if (*at != '"' || end == at || end[1] != '\0')
        return blk_fail_why(err, EINVAL, "the value is not in quotes", "'%s'", line);
    if (!reader->section)
        return blk_fail_why(err, EINVAL, "it stands before the first section", "'%s'", line);

    BLK_AUTOFREE char *key = blk_xstrndup(line, key_length);
    BLK_AUTOFREE char *value = blk_xstrndup(at + 1, (size_t)(end - at - 1));
    blk_options_set(reader->section, key, value);
    return 0;
}

static int read_rule_line(struct reader *reader, char *line, struct blk_error *err)
{
    size_t length = strlen(line);
    while (length > 0 && isspace((unsigned char)line[length - 1]))
        line[--length] = '\0';
    line += strspn(line, " \t");

    if (*line == '\0' || *line == '#')
        return 0;
    return *line == '[' ? begin_section(reader, line, err) : read_option(reader, line, err);
}

int blkdebug_rules_read_file(struct blkdebug_rules *rules, const char *path, struct blk_error *err)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return blk_fail(err, errno, "opening the blkdebug rules '%s'", path);

    struct reader reader = { .rules = rules };
    char *line = NULL;
    size_t room = 0;
    unsigned number = 0;
    int ret = 0;
    while (ret == 0 && (errno = 0, getline(&line, &room, file)) >= 0) {
        number++;
        ret = read_rule_line(&reader, line, err);
    }
    if (ret == 0 && ferror(file))
        ret = blk_fail(err, errno, "reading it");
    if (ret == 0)
        ret = finish_section(&reader, err);
    if (ret < 0)
        blk_context(err, "blkdebug rules '%s', line %u", path, number);

    blk_options_free(reader.section);
    free(line);
    fclose(file);
    return ret;
}
