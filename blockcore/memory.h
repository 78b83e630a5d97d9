/*
 * Small allocations. Names, options and reports are a few hundred bytes; a program that cannot get
 * those cannot even say what is wrong, so they abort. Anything whose size comes from an image or a
 * request uses malloc() and reports -ENOMEM.
 */
#ifndef BLOCKCORE_MEMORY_H
#define BLOCKCORE_MEMORY_H

#include <stdarg.h>
#include <stddef.h>

void *blk_xcalloc(size_t count, size_t bytes);
void *blk_xrealloc(void *old, size_t count, size_t bytes);
/*
 * Room for one element behind `count`, in an array that is only ever grown by this: it doubles
 * whenever the count is a power of two, so no capacity has to be kept.
 */
void *blk_xgrow(void *array, size_t count, size_t bytes);
char *blk_xstrdup(const char *text); /* NULL stays NULL */
char *blk_xstrndup(const char *text, size_t length);
char *blk_xasprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));
char *blk_xvasprintf(const char *format, va_list args) __attribute__((format(printf, 1, 0)));

/* For variables that free what they point to at the end of their scope. */
void blk_autofree_helper(void *pointer_to_pointer);
#define BLK_AUTOFREE __attribute__((cleanup(blk_autofree_helper)))

#endif
