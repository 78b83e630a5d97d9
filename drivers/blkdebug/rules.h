/* SPDX-License-Identifier: MIT */
/*
 * The rules of a fault injector: which requests fail, and how.
 *
 * An inject-error rule makes requests fail; a set-state rule moves a small state machine, so that
 * a rule can wait for others. A rule becomes active when its event is seen while the machine is in
 * the rule's state; the event replaces what earlier events have activated. A rule without an event
 * needs none: it is active whenever the machine is in its state. The words and their meaning are
 * those of QEMU's blkdebug (BlkdebugInjectErrorOptions, BlkdebugSetStateOptions), with these
 * additions: an event may be left out, `nth` counts, there are request types for what else can
 * fail here, and `stats` names a file for what became of the rule.
 *
 * Nothing here locks: whoever owns the rules keeps threads apart.
 */
#ifndef DRIVERS_BLKDEBUG_RULES_H
#define DRIVERS_BLKDEBUG_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/options.h"

/* What a request is. A rule that names no type means those up to FLUSH, as in QEMU. */
enum blkdebug_iotype {
    BLKDEBUG_READ,
    BLKDEBUG_WRITE,
    BLKDEBUG_WRITE_ZEROES,
    BLKDEBUG_DISCARD,
    BLKDEBUG_FLUSH,
    BLKDEBUG_BLOCK_STATUS,
    BLKDEBUG_TRUNCATE,
    BLKDEBUG_CREATE,
    BLKDEBUG_PUBLISH,
    BLKDEBUG_CLOSE,
    BLKDEBUG_IOTYPE_COUNT,
};

enum blkdebug_action { BLKDEBUG_INJECT_ERROR, BLKDEBUG_SET_STATE };

struct blkdebug_rule {
    enum blkdebug_action action;
    enum blk_event event;
    uint64_t state; /* the machine's state in which it applies; 0: any */

    /* BLKDEBUG_SET_STATE */
    uint64_t new_state;

    /* BLKDEBUG_INJECT_ERROR */
    unsigned iotypes; /* bit per enum blkdebug_iotype */
    int code;         /* positive errno; 0: the request passes, later rules do not see it */
    bool anywhere;    /* else only requests that contain the byte at `offset` */
    uint64_t offset;
    uint64_t nth;     /* the first matching request to fail, from 1 */
    bool once;        /* fails one request only */
    char *stats_path; /* gets "requests matched: N" and "errors injected: N"; or NULL */

    /* changes at run time */
    bool active;       /* its event was seen last */
    bool spent;        /* `once`, and done */
    uint64_t matched;  /* requests that it applied to */
    uint64_t injected; /* requests that failed by it */
};

struct blkdebug_rules {
    struct blkdebug_rule *list;
    size_t count;
    uint64_t state; /* of the machine; begins at 1 */
};

/*
 * Adds the rules of a file in QEMU's configuration syntax. Errors: -errno, -EINVAL with file and
 * line named.
 */
int blkdebug_rules_read_file(struct blkdebug_rules *rules, const char *path, struct blk_error *err);

/*
 * Adds the rules in "inject-error.N.KEY" and "set-state.N.KEY" (N from 0; left out when there is
 * but one rule) and takes these options out of the set. Errors: -EINVAL.
 */
int blkdebug_rules_take_options(struct blkdebug_rules *rules, struct blk_options *options,
                                struct blk_error *err);

/* Writes the files that `stats` options name. The first error is returned; every file is tried. */
int blkdebug_rules_write_stats(const struct blkdebug_rules *rules, struct blk_error *err);

void blkdebug_rules_free(struct blkdebug_rules *rules);

/* The event has happened: activates rules and moves the state machine. */
void blkdebug_rules_event(struct blkdebug_rules *rules, enum blk_event event);

/*
 * Decides about one request and counts it. `bytes` of 0 is a request without a range: it meets only
 * rules without a sector. Returns 0 or the -errno it is to fail with.
 */
int blkdebug_rules_check(struct blkdebug_rules *rules, enum blkdebug_iotype iotype, uint64_t offset,
                         uint64_t bytes);

#endif
