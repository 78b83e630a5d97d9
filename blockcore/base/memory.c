/* SPDX-License-Identifier: MIT */
/* Allocations that give up a reserve before they fail, and the end of a run without memory. */
#include "blockcore/base/memory.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/temporaries.h"

/* Enough for the names and reports of a close, and for the line that says what happened. */
#define RESERVE_BYTES (256 * 1024)

static _Atomic(void *) reserve;
static const char *work = "out of memory";
static int exit_status = 1;

void blk_memory_init(const char *command, int status)
{
    work = command;
    exit_status = status;
    if (!atomic_load(&reserve))
        atomic_store(&reserve, malloc(RESERVE_BYTES));
}

/* stdio might need memory, or hold a lock. */
static void say(const char *text)
{
    ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

void blk_out_of_memory(void)
{
    static atomic_flag begun = ATOMIC_FLAG_INIT;

    while (atomic_flag_test_and_set(&begun))
        pause(); /* another thread is at it */
    say("blkimg: ");
    say(work);
    say(": Cannot allocate memory\n");
    blk_temporaries_remove();
    _exit(exit_status);
}

bool blk_give_up_reserve(size_t bytes)
{
    if (bytes > RESERVE_BYTES / 2)
        return false;
    void *given_up = atomic_exchange(&reserve, NULL);
    bool had = given_up != NULL;

    free(given_up);
    return had;
}

void *blk_malloc(size_t bytes)
{
    void *pointer = malloc(bytes ? bytes : 1);

    if (!pointer && blk_give_up_reserve(bytes))
        pointer = malloc(bytes ? bytes : 1);
    return pointer;
}

void *blk_calloc(size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total))
        return NULL;
    if (total > RESERVE_BYTES / 2)
        return calloc(count, bytes); /* which knows what is zero already */
    void *pointer = blk_malloc(total);
    return pointer ? memset(pointer, 0, total) : NULL;
}

/* A pointer from realloc(old, bytes), which is never NULL. */
static void *must_realloc(void *old, size_t bytes)
{
    void *pointer = realloc(old, bytes);

    if (!pointer && blk_give_up_reserve(bytes))
        pointer = realloc(old, bytes);
    if (!pointer)
        blk_out_of_memory();
    return pointer;
}

void *blk_xmalloc(size_t bytes)
{
    return must_realloc(NULL, bytes ? bytes : 1);
}

void *blk_xcalloc(size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total))
        blk_out_of_memory();
    return memset(blk_xmalloc(total), 0, total);
}

void *blk_xrealloc(void *old, size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total))
        blk_out_of_memory();
    return must_realloc(old, total ? total : 1);
}

void *blk_xgrow(void *array, size_t count, size_t bytes)
{
    if (count & (count - 1))
        return array;
    return blk_xrealloc(array, count ? 2 * count : 1, bytes);
}

char *blk_xstrdup(const char *text)
{
    return text ? blk_xstrndup(text, strlen(text)) : NULL;
}

char *blk_xstrndup(const char *text, size_t length)
{
    length = strnlen(text, length);
    char *copy = blk_xmalloc(length + 1);
    memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

char *blk_xvasprintf(const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, again);
    va_end(again);
    if (length < 0)
        blk_out_of_memory();
    char *text = blk_xmalloc((size_t)length + 1);
    vsnprintf(text, (size_t)length + 1, format, args);
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
