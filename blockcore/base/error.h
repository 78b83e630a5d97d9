/* SPDX-License-Identifier: MIT */
/*
 * One error type for the whole program.
 *
 * Functions that can fail return 0 (or a count) or -errno, and describe the failure in a
 * struct blk_error. The library never prints; the command turns the error into one line:
 *
 *     blkimg: <what failed>: <why> (<what was left behind>)
 *
 * Every function accepts a NULL error: the caller then only wants the code.
 */
#ifndef BLOCKCORE_BASE_ERROR_H
#define BLOCKCORE_BASE_ERROR_H

#include <stdarg.h>

#include "blockcore/base/compiler.h"

/* Whether it failed because another process uses the image, and what we wanted it for. */
enum blk_busy { BLK_NOT_BUSY, BLK_BUSY_FOR_READING, BLK_BUSY_FOR_WRITING };

struct blk_error {
    int code;        /* positive errno value; 0 while nothing has failed */
    char what[2048]; /* what was being done, and to which node */
    char why[1024];  /* the cause; strerror(code) unless something better is known */
    char left[512];  /* what was left behind, or empty */
    enum blk_busy busy;
    unsigned long busy_seconds; /* how long we waited for the other process */
};

#define BLK_ERROR_INIT ((struct blk_error){ .code = 0 })

/*
 * Records that the described action failed with errno `code` and returns -code. A `code` of 0 or
 * less is recorded as EIO: a failure must never look like success. An error recorded earlier is
 * replaced; use blk_context() to add to it instead.
 */
int blk_fail(struct blk_error *err, int code, const char *what, ...) BLK_PRINTF(3, 4);

/* Like blk_fail(), with a cause that says more than strerror(code). */
int blk_fail_why(struct blk_error *err, int code, const char *why, const char *what, ...)
    BLK_PRINTF(4, 5);

/*
 * Fills `err` only if nothing more precise was recorded below, and returns -code. For callers
 * that pass a failure on and know more about the action than the function that failed.
 */
int blk_fail_if_unset(struct blk_error *err, int code, const char *what, ...) BLK_PRINTF(3, 4);

/* Puts "<text>: " before what has been recorded, to name the larger action that failed. */
void blk_context(struct blk_error *err, const char *text, ...) BLK_PRINTF(2, 3);

/* Notes what the failed action left behind (a partial file, leaked clusters). */
void blk_left_behind(struct blk_error *err, const char *text, ...) BLK_PRINTF(2, 3);

/* Forgets a recorded error, for a caller that has dealt with it. */
void blk_error_clear(struct blk_error *err);

#endif
