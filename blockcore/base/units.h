/* SPDX-License-Identifier: MIT */
/* Numbers as users write and read them: sizes with binary suffixes, in qemu-img's dialect. */
#ifndef BLOCKCORE_BASE_UNITS_H
#define BLOCKCORE_BASE_UNITS_H

#include <stdint.h>

/*
 * The largest size of an image or offset into one: QEMU's BDRV_MAX_LENGTH, 2^63 - 1 rounded down to
 * a multiple of 2^30, so that rounding up to any alignment cannot overflow a signed 64-bit offset.
 */
#define BLK_MAX_BYTES UINT64_C(0x7fffffffc0000000)

/*
 * Parses "512", "0x200", "4k", "1.5G", "2T", "1P", "1E" (suffix b k M G T P E in either case,
 * binary) into bytes. White space and then a plus sign may come first. Errors: -EINVAL for anything
 * else, a minus sign, or trailing text; -ERANGE above 2^64 - 1.
 */
int blk_parse_size(const char *text, uint64_t *bytes);

/* A plain decimal or 0x number, nothing after it. Errors: -EINVAL, -ERANGE. */
int blk_parse_uint(const char *text, uint64_t *value);

/*
 * Writes `bytes` as qemu-img shows it ("64 MiB", "1.5 GiB", "196 KiB": three significant digits).
 */
void blk_format_size(uint64_t bytes, char out[32]);

#endif
