/* SPDX-License-Identifier: MIT */
/* The progress line, and SIGUSR1. */
#include "cmd/common/progress.h"

#include <signal.h>
#include <stdio.h>

static volatile sig_atomic_t asked; /* SIGUSR1 came */

static void on_usr1(int number)
{
    (void)number;
    asked = 1;
}

void progress_init(void)
{
    struct sigaction old, action = { .sa_handler = on_usr1, .sa_flags = SA_RESTART };

    sigaction(SIGUSR1, NULL, &old);
    if (old.sa_handler == SIG_IGN)
        return;
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
}

static void show(struct progress *progress, double percent)
{
    printf("    (%3.2f/100%%)\r", percent);
    fflush(stdout);
    progress->shown = percent;
}

void progress_start(struct progress *progress, bool enabled)
{
    *progress = (struct progress){ .enabled = enabled };
    if (enabled)
        show(progress, 0);
}

void progress_update(void *opaque, uint64_t done, uint64_t total)
{
    struct progress *progress = opaque;
    double percent = total ? (double)done / (double)total * 100 : 100;

    if (progress->enabled) {
        /* One per cent is qemu-img's step. */
        if (percent >= progress->shown + 1)
            show(progress, percent);
    } else if (asked) {
        asked = 0;
        fprintf(stderr, "    (%3.2f/100%%)\n", percent);
    }
}

void progress_reach_end(struct progress *progress)
{
    if (progress->enabled && progress->shown < 100)
        show(progress, 100);
}

void progress_finish(struct progress *progress, bool complete)
{
    if (!progress->enabled)
        return;
    if (complete)
        show(progress, 100);
    putchar('\n');
    progress->enabled = false;
}
