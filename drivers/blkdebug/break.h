/* SPDX-License-Identifier: MIT */
/*
 * Breakpoints of the fault injector: a request that comes to the event of a breakpoint waits there
 * until the breakpoint is resumed or removed, so that a test decides in which order things happen.
 *
 * A breakpoint stops one request and is then used up. All functions are called with the owner's
 * mutex held; only blkdebug_breaks_meet() gives it up, while it waits.
 */
#ifndef DRIVERS_BLKDEBUG_BREAK_H
#define DRIVERS_BLKDEBUG_BREAK_H

#include <stdbool.h>

#include "blockcore/base/lock.h"
#include "blockcore/graph/events.h"

struct blkdebug_break;

struct blkdebug_breaks {
    struct blkdebug_break *list;
    pthread_cond_t changed;
};

void blkdebug_breaks_init(struct blkdebug_breaks *breaks);

/* Nobody waits any more. */
void blkdebug_breaks_destroy(struct blkdebug_breaks *breaks);

/* Sets a breakpoint. Several may share an event or a tag. */
void blkdebug_breaks_set(struct blkdebug_breaks *breaks, enum blk_event event, const char *tag);

/*
 * The calling request has come to `event`: waits until each breakpoint that was set there has been
 * resumed, or until the program is told to stop (cancel.h).
 */
void blkdebug_breaks_meet(struct blkdebug_breaks *breaks, enum blk_event event,
                          struct blk_mutex *mutex);

/*
 * Lets the request that waits at the breakpoint `tag` that was set first go on; false when there
 * is none.
 */
bool blkdebug_breaks_resume(struct blkdebug_breaks *breaks, const char *tag);

/* Takes away all breakpoints `tag` and lets go what waits at them; false when there are none. */
bool blkdebug_breaks_remove(struct blkdebug_breaks *breaks, const char *tag);

/* Whether a request waits at a breakpoint `tag`. */
bool blkdebug_breaks_is_suspended(const struct blkdebug_breaks *breaks, const char *tag);

#endif
