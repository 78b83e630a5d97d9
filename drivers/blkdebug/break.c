/* SPDX-License-Identifier: MIT */
/* Breakpoints: one is set, stops a request, and is freed by it when it goes on. */
#include "drivers/blkdebug/break.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"

/* How soon a waiting request notices a signal. */
#define CANCEL_POLL_NS (50 * 1000 * 1000)

/*
 * A breakpoint goes from SET over SUSPENDED to RESUMED; the request that it stopped then frees it.
 */
enum break_stage { BREAK_SET, BREAK_SUSPENDED, BREAK_RESUMED };

struct blkdebug_break {
    char *tag;
    enum blk_event event;
    enum break_stage stage;
    const void *request; /* whom it has stopped; only compared */
    struct blkdebug_break *next;
};

void blkdebug_breaks_init(struct blkdebug_breaks *breaks)
{
    pthread_condattr_t attributes;

    breaks->list = NULL;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&breaks->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* Frees the breakpoint that *link points to. */
static void unlink_break(struct blkdebug_break **link)
{
    struct blkdebug_break *old = *link;
    *link = old->next;
    free(old->tag);
    free(old);
}

void blkdebug_breaks_destroy(struct blkdebug_breaks *breaks)
{
    while (breaks->list)
        unlink_break(&breaks->list);
    pthread_cond_destroy(&breaks->changed);
}

void blkdebug_breaks_set(struct blkdebug_breaks *breaks, enum blk_event event, const char *tag)
{
    struct blkdebug_break **end = &breaks->list;
    while (*end)
        end = &(*end)->next;
    *end = blk_xcalloc(1, sizeof(**end));
    **end = (struct blkdebug_break){ .tag = blk_xstrdup(tag), .event = event };
}

/* Stops `request` at what is set for the event; false when nothing is. */
static bool suspend(struct blkdebug_breaks *breaks, enum blk_event event, const void *request)
{
    bool any = false;
    for (struct blkdebug_break *at = breaks->list; at; at = at->next) {
        if (at->stage != BREAK_SET || at->event != event)
            continue;
        at->stage = BREAK_SUSPENDED;
        at->request = request;
        any = true;
    }
    return any;
}

static bool is_waiting(const struct blkdebug_breaks *breaks, const void *request)
{
    for (const struct blkdebug_break *at = breaks->list; at; at = at->next)
        if (at->request == request && at->stage == BREAK_SUSPENDED)
            return true;
    return false;
}

static void wait_for_change(struct blkdebug_breaks *breaks, struct blk_mutex *mutex)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += CANCEL_POLL_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    blk_cond_timedwait(&breaks->changed, mutex, &until);
}

void blkdebug_breaks_meet(struct blkdebug_breaks *breaks, enum blk_event event,
                          struct blk_mutex *mutex)
{
    const char here = 0;
    const void *request = &here; /* an address that no other waiting request has */

    if (!suspend(breaks, event, request))
        return;
    while (is_waiting(breaks, request) && !blk_cancelled())
        wait_for_change(breaks, mutex);
    for (struct blkdebug_break **link = &breaks->list; *link;) {
        if ((*link)->request == request)
            unlink_break(link);
        else
            link = &(*link)->next;
    }
}

bool blkdebug_breaks_resume(struct blkdebug_breaks *breaks, const char *tag)
{
    for (struct blkdebug_break *at = breaks->list; at; at = at->next) {
        if (at->stage == BREAK_SUSPENDED && strcmp(at->tag, tag) == 0) {
            at->stage = BREAK_RESUMED;
            pthread_cond_broadcast(&breaks->changed);
            return true;
        }
    }
    return false;
}

bool blkdebug_breaks_remove(struct blkdebug_breaks *breaks, const char *tag)
{
    bool any = false;

    while (blkdebug_breaks_resume(breaks, tag))
        any = true;
    for (struct blkdebug_break **link = &breaks->list; *link;) {
        if ((*link)->stage == BREAK_SET && strcmp((*link)->tag, tag) == 0) {
            unlink_break(link);
            any = true;
        } else {
            link = &(*link)->next;
        }
    }
    return any;
}

bool blkdebug_breaks_is_suspended(const struct blkdebug_breaks *breaks, const char *tag)
{
    for (const struct blkdebug_break *at = breaks->list; at; at = at->next)
        if (at->stage == BREAK_SUSPENDED && strcmp(at->tag, tag) == 0)
            return true;
    return false;
}
