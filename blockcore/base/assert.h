/* SPDX-License-Identifier: MIT */
/*
 * Assertions that stay in every build: NDEBUG does not remove them. Each costs a comparison, and
 * what they check guards the content of images. A run in which one fails ends as if killed: images
 * stay whole (ARCHITECTURE.md, "What holds at any instant"), and no target gets its name.
 */
#ifndef BLOCKCORE_BASE_ASSERT_H
#define BLOCKCORE_BASE_ASSERT_H

/* One line on stderr, then abort(). */
_Noreturn void blk_assert_failed(const char *file, int line, const char *function,
                                 const char *condition);

#define ASSERT(condition) \
    (__builtin_expect(!(condition), 0) \
         ? blk_assert_failed(__FILE__, __LINE__, __func__, #condition) \
         : (void)0)

#endif
