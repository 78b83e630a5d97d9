/* SPDX-License-Identifier: MIT */
/*
 * Small allocations. Names, options and reports are a few hundred bytes; a program that cannot get
 * those cannot go on, so they never fail: a reserve is released first, which is enough to finish a
 * close, and when that is used up too, the run ends (blk_out_of_memory()). Anything whose size
 * comes from an image or a request uses malloc() and reports -ENOMEM.
 */
#ifndef BLOCKCORE_BASE_MEMORY_H
#define BLOCKCORE_BASE_MEMORY_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include "blockcore/base/compiler.h"

/*
 * Allocates the reserve; without this call there is none. When memory runs out, the message names
 * `command`, which stays the caller's, and the exit status is `status`.
 */
void blk_memory_init(const char *command, int status);

/*
 * After an allocation of `bytes` failed: whether the reserve was given up, so that it may work now.
 */
bool blk_give_up_reserve(size_t bytes);

/*
 * malloc() and calloc(), which may give up the reserve for a few KiB: for what a close needs so
 * that nothing is lost. NULL: not even that was enough.
 */
void *blk_malloc(size_t bytes);
void *blk_calloc(size_t count, size_t bytes);

/*
 * The end of a run that cannot get a few bytes: one line on stderr, temporary names removed, the
 * exit status of a failure. For the images it is like a kill: what holds at any instant holds, and
 * there is no target.
 */
_Noreturn void blk_out_of_memory(void);

void *blk_xmalloc(size_t bytes);
void *blk_xcalloc(size_t count, size_t bytes);
void *blk_xrealloc(void *old, size_t count, size_t bytes);
/*
 * Room for one element behind `count`, in an array that is only ever grown by this: it doubles
 * whenever the count is a power of two, so no capacity has to be kept.
 */
void *blk_xgrow(void *array, size_t count, size_t bytes);
char *blk_xstrdup(const char *text); /* NULL stays NULL */
char *blk_xstrndup(const char *text, size_t length);
char *blk_xasprintf(const char *format, ...) BLK_PRINTF(1, 2);
char *blk_xvasprintf(const char *format, va_list args) BLK_PRINTF(1, 0);

/* For variables that free what they point to at the end of their scope. */
void blk_autofree_helper(void *pointer_to_pointer);
#define BLK_AUTOFREE __attribute__((cleanup(blk_autofree_helper)))

#endif
