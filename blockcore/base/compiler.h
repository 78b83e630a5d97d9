/* SPDX-License-Identifier: MIT */
/*
 * What the compiler is told beyond the language.
 */
#ifndef BLOCKCORE_BASE_COMPILER_H
#define BLOCKCORE_BASE_COMPILER_H

/* Parameter format_at is a printf format, arguments_at its first argument (0: it is a va_list). */
#define BLK_PRINTF(format_at, arguments_at) __attribute__((format(printf, format_at, arguments_at)))

#endif
