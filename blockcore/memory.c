#include "blockcore/memory.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *must(void *pointer)
{
    if (!pointer) {
        static const char text[] = "blkimg: out of memory\n";
        fputs(text, stderr);
        abort();
    }
    return pointer;
}

void *blk_xcalloc(size_t count, size_t bytes)
{
    return must(calloc(count ? count : 1, bytes ? bytes : 1));
}

void *blk_xrealloc(void *old, size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total))
        return must(NULL);
    return must(realloc(old, total ? total : 1));
}

void *blk_xgrow(void *array, size_t count, size_t bytes)
{
    if (count & (count - 1))
        return array;
    return blk_xrealloc(array, count ? 2 * count : 1, bytes);
}

char *blk_xstrdup(const char *text)
{
    return text ? must(strdup(text)) : NULL;
}

char *blk_xstrndup(const char *text, size_t length)
{
    return must(strndup(text, length));
}

char *blk_xvasprintf(const char *format, va_list args)
{
    char *text;
    if (vasprintf(&text, format, args) < 0)
        must(NULL);
    return text;
}

char *blk_xasprintf(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = blk_xvasprintf(format, args);
    va_end(args);
    return text;
}

void blk_autofree_helper(void *pointer_to_pointer)
{
    free(*(void **)pointer_to_pointer);
}
