/* SPDX-License-Identifier: MIT */
/*
 * Breakpoints: the commands, and what a session must do about them before it can close its image.
 * They act on the first node below the image that knows breakpoints (blkdebug).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/ops.h"
#include "cmd/io/io.h"

/* How often wait_break looks. */
#define POLL_NS (1000 * 1000)

static void remember_tag(struct io_session *session, const char *tag)
{
    session->tags = blk_xgrow(session->tags, session->tag_count, sizeof(*session->tags));
    session->tags[session->tag_count++] = blk_xstrdup(tag);
}

void io_release_breaks(struct io_session *session)
{
    for (size_t i = 0; i < session->tag_count; i++) {
        /* One that was used up or removed is not there any more: nothing to report. */
        blk_debug_remove_break(session->node, session->tags[i], NULL);
        free(session->tags[i]);
    }
    free(session->tags);
    session->tags = NULL;
    session->tag_count = 0;
}

int io_break(struct io_session *session, int argc, char **argv)
{
    (void)argc;
    int ret = blk_debug_break(session->node, argv[1], argv[2], NULL);
    if (ret < 0) {
        printf("Could not set breakpoint: %s\n", strerror(-ret));
        return ret;
    }
    remember_tag(session, argv[2]);
    return 0;
}

int io_remove_break(struct io_session *session, int argc, char **argv)
{
    (void)argc;
    int ret = blk_debug_remove_break(session->node, argv[1], NULL);
    if (ret < 0)
        printf("Could not remove breakpoint %s: %s\n", argv[1], strerror(-ret));
    return ret;
}

int io_resume(struct io_session *session, int argc, char **argv)
{
    (void)argc;
    flockfile(stdout); /* the request's own lines come after this one */
    int ret = blk_debug_resume(session->node, argv[1], NULL);
    if (ret < 0)
        printf("Could not resume request: %s\n", strerror(-ret));
    else
        printf("blkdebug: Resuming request '%s'\n", argv[1]);
    funlockfile(stdout);
    return ret;
}

int io_wait_break(struct io_session *session, int argc, char **argv)
{
    (void)argc;
    static const struct timespec poll = { .tv_nsec = POLL_NS };
    if (!blk_has_breakpoints(session->node))
        return io_misuse(argv[0], "'%s' has no breakpoints (no blkdebug node)",
                         session->node->name);

    while (!blk_debug_is_suspended(session->node, argv[1])) {
        if (blk_cancelled())
            return -ECANCELED; /* the session says that a signal ended it */
        nanosleep(&poll, NULL);
    }
    printf("blkdebug: Suspended request '%s'\n", argv[1]);
    return 0;
}
