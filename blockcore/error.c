#include "blockcore/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int fail(struct blk_error *err, int code, const char *why, const char *what, va_list args)
{
    if (code <= 0)
        code = EIO;
    if (err) {
        err->code = code;
        vsnprintf(err->what, sizeof(err->what), what, args);
        snprintf(err->why, sizeof(err->why), "%s", why ? why : strerror(code));
        err->left[0] = '\0';
    }
    return -code;
}

int blk_fail(struct blk_error *err, int code, const char *what, ...)
{
    va_list args;
    va_start(args, what);
    int ret = fail(err, code, NULL, what, args);
    va_end(args);
    return ret;
}

int blk_fail_why(struct blk_error *err, int code, const char *why, const char *what, ...)
{
    va_list args;
    va_start(args, what);
    int ret = fail(err, code, why, what, args);
    va_end(args);
    return ret;
}

int blk_fail_if_unset(struct blk_error *err, int code, const char *what, ...)
{
    if (err && err->code)
        return -err->code;
    va_list args;
    va_start(args, what);
    int ret = fail(err, code, NULL, what, args);
    va_end(args);
    return ret;
}

void blk_context(struct blk_error *err, const char *text, ...)
{
    if (!err || !err->code)
        return;

    char prefix[sizeof(err->what)];
    va_list args;
    va_start(args, text);
    vsnprintf(prefix, sizeof(prefix), text, args);
    va_end(args);

    char old[sizeof(err->what)];
    memcpy(old, err->what, sizeof(old));
    /* A message too long for the buffer loses its tail: the outer action is the better half. */
    int len = snprintf(err->what, sizeof(err->what), "%s: ", prefix);
    if (len > 0 && (size_t)len < sizeof(err->what))
        snprintf(err->what + len, sizeof(err->what) - len, "%s", old);
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
        *err = (struct blk_error)BLK_ERROR_INIT;
}
