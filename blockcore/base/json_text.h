/* SPDX-License-Identifier: MIT */
/* JSON as QEMU's users write it, for a parser that takes strict JSON only. */
#ifndef BLOCKCORE_BASE_JSON_TEXT_H
#define BLOCKCORE_BASE_JSON_TEXT_H

#include "blockcore/base/error.h"

/* The longest text and the deepest nesting that are looked at. */
#define BLK_JSON_MAX_BYTES (1u << 20)
#define BLK_JSON_MAX_DEPTH 1024

/*
 * The same text with each 'string' as a "string", malloc()ed; what is wrong otherwise stays wrong.
 * In either kind of string \' stands for an apostrophe. NULL, with EINVAL in `err`, for what is too
 * long or too deep.
 */
char *blk_json_strict(const char *text, struct blk_error *err);

#endif
