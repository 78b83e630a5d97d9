/* SPDX-License-Identifier: MIT */
/* The number of elements of an array. */
#ifndef BLOCKCORE_BASE_ARRAY_H
#define BLOCKCORE_BASE_ARRAY_H

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

#endif
