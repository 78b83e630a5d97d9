/* SPDX-License-Identifier: MIT */
/*
 * The progress line of -p on stdout, in qemu-img's form: "    (12.34/100%)\r". Without -p, SIGUSR1
 * prints one such line on stderr, as qemu-img does.
 */
#ifndef CMD_COMMON_PROGRESS_H
#define CMD_COMMON_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool enabled;
    double shown; /* per cent on the screen */
};

/*
 * At the start of the program: SIGUSR1 ends no command, whether it shows progress or not. One that
 * was ignored stays so.
 */
void progress_init(void);

/* Begins with 0. `enabled`: -p was given, and -q was not. */
void progress_start(struct progress *progress, bool enabled);

/* A blk_progress_fn; `opaque` is the struct progress. Prints when it has moved visibly. */
void progress_update(void *opaque, uint64_t done, uint64_t total);

/* All is done, though steps too small to be shown may have led there; the line goes on. */
void progress_reach_end(struct progress *progress);

/* Ends the line; shows 100 first if the work is complete. */
void progress_finish(struct progress *progress, bool complete);

#endif
