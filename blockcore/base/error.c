/* SPDX-License-Identifier: MIT */
/* How an error is filled: the lowest cause stays, callers put words before it. */
#include "blockcore/base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

BLK_PRINTF(4, 0)
static int set_error(struct blk_error *err, int code, const char *why, const char *what,
                     va_list args)
{
    if (code <= 0)
        code = EIO;
    if (err) {
        err->code = code;
        vsnprintf(err->what, sizeof(err->what), what, args);
        snprintf(err->why, sizeof(err->why), "%s", why ? why : strerror(code));
        err->left[0] = '\0';
        err->busy = BLK_NOT_BUSY;
        err->busy_seconds = 0;
    }
    return -code;
}

int blk_fail(struct blk_error *err, int code, const char *what, ...)
{
    va_list args;
    va_start(args, what);
    int ret = set_error(err, code, NULL, what, args);
    va_end(args);
    return ret;
}

int blk_fail_why(struct blk_error *err, int code, const char *why, const char *what, ...)
{
    va_list args;
    va_start(args, what);
    int ret = set_error(err, code, why, what, args);
    va_end(args);
    return ret;
}

int blk_fail_if_unset(struct blk_error *err, int code, const char *what, ...)
{
    if (err && err->code)
        return -err->code;
    va_list args;
    va_start(args, what);
    int ret = set_error(err, code, NULL, what, args);
    va_end(args);
    return ret;
}

void blk_context(struct blk_error *err, const char *text, ...)
{
    if (!err || !err->code)
        return;

    /* The buffer is rebuilt with the outer action first: what does not fit is the inner end. */
    char joined[2 * sizeof(err->what)];
    va_list args;
    va_start(args, text);
    int length = vsnprintf(joined, sizeof(err->what), text, args);
    va_end(args);
    if (length < 0)
        return;
    if ((size_t)length >= sizeof(err->what))
        length = sizeof(err->what) - 1;
    snprintf(joined + length, sizeof(joined) - (size_t)length, ": %s", err->what);
    memcpy(err->what, joined, sizeof(err->what) - 1);
    err->what[sizeof(err->what) - 1] = '\0';
}

void blk_left_behind(struct blk_error *err, const char *text, ...)
{
    if (!err)
        return;
    va_list args;
    va_start(args, text);
    vsnprintf(err->left, sizeof(err->left), text, args);
    va_end(args);
}

void blk_error_clear(struct blk_error *err)
{
    if (err)
        *err = BLK_ERROR_INIT;
}
