/* SPDX-License-Identifier: MIT */
/* Attributes of GCC and Clang. */
#ifndef BLOCKCORE_BASE_COMPILER_H
#define BLOCKCORE_BASE_COMPILER_H

/*
 * Parameter format_at is a printf format, arguments_at its first argument (0: there is a va_list).
 */
#define BLK_PRINTF(format_at, arguments_at) __attribute__((format(printf, format_at, arguments_at)))

#endif
