/* SPDX-License-Identifier: MIT */
/* From a line to a command that runs: words, lookup, and what must hold before. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "cmd/common/report.h"
#include "cmd/io/io.h"

/*
 * Splits `line` at spaces, in place; there is no quoting. Returns the words, with a NULL after the
 * last; the caller frees the array.
 */
static char **split(char *line, int *count)
{
    char **words = NULL;
    char *rest = line;

    *count = 0;
    for (;;) {
        char *word = strsep(&rest, " ");
        if (word && !*word)
            continue;
        words = blk_xgrow(words, (size_t)*count, sizeof(*words));
        words[*count] = word;
        if (!word)
            return words;
        ++*count;
    }
}

static int check_word_count(const struct io_command *command, const char *name, int count)
{
    int least = command->words_min, most = command->words_max;
    if (count >= least && (most < 0 || count <= most))
        return 0;
    if (most < 0)
        report_failure("io: bad argument count %d to %s, expected at least %d arguments", count,
                       name, least);
    else if (least == most)
        report_failure("io: bad argument count %d to %s, expected %d arguments", count, name,
                       least);
    else
        report_failure("io: bad argument count %d to %s, expected between %d and %d arguments",
                       count, name, least, most);
    return -EINVAL;
}

static int check_needs(const struct io_session *session, const struct io_command *command,
                       const char *name)
{
    if (command->needs && !session->node)
        return io_misuse(name, "no file open, try 'help open'");
    if (command->needs & IO_NEEDS_WRITABLE && !blk_is_writable(session->node))
        return io_misuse(name, "'%s' is open read-only", session->node->name);
    return 0;
}

static int run_words(struct io_session *session, int argc, char **argv)
{
    const struct io_command *command = io_command_find(argv[0]);
    if (!command) {
        report_failure("io: command \"%s\" not found (see 'help')", argv[0]);
        return -EINVAL;
    }
    int ret = check_needs(session, command, argv[0]);
    if (ret == 0)
        ret = check_word_count(command, argv[0], argc - 1);
    return ret == 0 ? command->run(session, argc, argv) : ret;
}

void io_run_line(struct io_session *session, const char *line)
{
    BLK_AUTOFREE char *copy = blk_xstrdup(line);
    int count;
    BLK_AUTOFREE char **words = split(copy, &count);

    if (count && run_words(session, count, words) < 0)
        atomic_store(&session->failed, true);
    /* Results are out before the next command runs, which may take long or end the process; main()
     * checks whether they could be written. */
    fflush(stdout);
}
