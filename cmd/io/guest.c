/* SPDX-License-Identifier: MIT */
/* The guest of --guest-io: its thread, and the lines that it refuses. */
#include "cmd/io/guest.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "blockcore/base/array.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "cmd/common/report.h"
#include "cmd/io/io.h"

struct guest {
    FILE *commands;
    struct io_session session;
    pthread_t thread;
    int error; /* errno of reading the commands, or 0 */
};

/* A guest uses its disk; it does not open, close or resize it. Returns what is wrong, or NULL. */
static const char *find_line_fault(const char *line)
{
    static const char *const refused[] = { "open",     "close", "reopen",
                                           "truncate", "abort", "sigraise" };
    BLK_AUTOFREE char *name = blk_xstrndup(line, strcspn(line, " "));
    const struct io_command *command = io_command_find(name);

    if (!*name)
        return NULL;
    if (!command)
        return "there is no such command";
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
        if (strcmp(refused[i], command->name) == 0)
            return "a guest cannot run it";
    return NULL;
}

/* The next command, or NULL at the end. */
static const char *read_command(FILE *commands, char **line, size_t *capacity)
{
    if (getline(line, capacity, commands) < 0)
        return NULL;
    (*line)[strcspn(*line, "\n")] = '\0';
    return *line + strspn(*line, " ");
}

/*
 * What comes from a FIFO cannot be looked at beforehand: there the guest goes on after a bad line.
 */
static int check_commands(FILE *commands, const char *name, struct blk_error *err)
{
    BLK_AUTOFREE char *line = NULL;
    size_t capacity = 0;
    const char *command = NULL, *fault = NULL;
    struct stat st;

    if (fstat(fileno(commands), &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    do {
        command = read_command(commands, &line, &capacity);
        fault = command ? find_line_fault(command) : NULL;
    } while (command && !fault);
    if (fault)
        return blk_fail_why(err, EINVAL, fault, "'%s' in the guest's commands '%s'", command, name);
    rewind(commands);
    return 0;
}

static void *run_guest(void *argument)
{
    struct guest *guest = argument;
    BLK_AUTOFREE char *line = NULL;
    size_t capacity = 0;

    while (!guest->session.quit && !blk_cancelled()) {
        const char *command = read_command(guest->commands, &line, &capacity);
        if (!command)
            break;
        const char *fault = find_line_fault(command);
        if (fault)
            report_failure("'%s' in the guest's commands: %s", command, fault);
        else
            io_run_line(&guest->session, command);
    }
    /* A wait for commands that a signal ended is no failure to read them. */
    guest->error = ferror(guest->commands) && !blk_cancelled() ? EIO : 0;
    io_pool_free(guest->session.pool);
    return NULL;
}

int guest_open(const char *commands, struct guest **guest, struct blk_error *err)
{
    *guest = NULL;
    FILE *file = fopen(commands, "re");
    if (!file)
        return blk_fail(err, errno, "opening the guest's commands '%s'", commands);
    int ret = check_commands(file, commands, err);
    if (ret < 0) {
        fclose(file);
        return ret;
    }
    *guest = blk_xcalloc(1, sizeof(**guest));
    (*guest)->commands = file;
    return 0;
}

int guest_start(struct guest *guest, struct blk_node *node, struct blk_error *err)
{
    guest->session = (struct io_session){ .node = node, .pool = io_pool_new() };
    int ret = pthread_create(&guest->thread, NULL, run_guest, guest);
    if (ret) {
        io_pool_free(guest->session.pool);
        return blk_fail(err, ret, "starting the guest");
    }
    return 0;
}

/*
 * The signal may have reached another thread: one that waits for commands (from a FIFO) is woken
 * by one of its own.
 */
int guest_wait(struct guest *guest, struct blk_error *err)
{
    struct timespec until;

    for (;;) {
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        if (pthread_timedjoin_np(guest->thread, NULL, &until) == 0)
            break;
        if (blk_cancelled())
            pthread_kill(guest->thread, blk_cancelled());
    }
    return guest->error ? blk_fail(err, guest->error, "reading the guest's commands") : 0;
}

void guest_free(struct guest *guest)
{
    if (!guest)
        return;
    fclose(guest->commands);
    free(guest);
}
