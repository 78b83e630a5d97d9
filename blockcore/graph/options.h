/* SPDX-License-Identifier: MIT */
/*
 * The flat set of options that describes a node: "driver=qcow2, file.driver=file,
 * file.filename=x". The three forms QEMU's users know (a plain filename, --image-opts text and
 * json:{...}) all become such a set; QEMU's option names are used throughout.
 *
 * Reading an option marks it as used. After a node is open, whatever is still unused is an
 * option that the node does not know, and the open fails: a misspelt option is never ignored.
 */
#ifndef BLOCKCORE_GRAPH_OPTIONS_H
#define BLOCKCORE_GRAPH_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"

struct blk_options;

/* Returns an empty set; aborts the program when out of memory, as all small allocations here. */
struct blk_options *blk_options_new(void);
void blk_options_free(struct blk_options *options);
struct blk_options *blk_options_copy(const struct blk_options *options);

/* Sets `key` to a copy of `value`; replaces an earlier value. */
void blk_options_set(struct blk_options *options, const char *key, const char *value);
void blk_options_setf(struct blk_options *options, const char *key, const char *format, ...)
    BLK_PRINTF(3, 4);
void blk_options_remove(struct blk_options *options, const char *key);

/* Sets what `from` has and `to` lacks. */
void blk_options_merge_missing(struct blk_options *to, const struct blk_options *from);

/*
 * The same for options that only some drivers know: they count as used, so that a node that does
 * not know them is no error.
 */
void blk_options_merge_optional(struct blk_options *to, const struct blk_options *from);

/*
 * Adds "key=value,key=value"; ",," inside a value stands for one comma. A first word without "="
 * sets `implied_key`, when that is not NULL; a later word without "=" is "on" (and "noKEY"
 * "off"), as in QEMU. Errors: -EINVAL.
 */
int blk_options_parse_keyval(struct blk_options *options, const char *text, const char *implied_key,
                             struct blk_error *err);

/*
 * Adds the members of a JSON object; nested objects and arrays become dotted keys ("file.driver",
 * "server.0.host"). Numbers, true and false become their text. Strings may be in single quotes, as
 * in QEMU. Errors: -EINVAL.
 */
int blk_options_parse_json(struct blk_options *options, const char *text, struct blk_error *err);

/* The value of `key`, marked as used, or NULL. Owned by the set. */
const char *blk_options_get(struct blk_options *options, const char *key);

/* Like blk_options_get() without marking the option as used. */
const char *blk_options_peek(const struct blk_options *options, const char *key);

/*
 * Typed reads. `*value` keeps what the caller put there when the option is absent. Errors:
 * -EINVAL with a message that names the key and the text.
 */
int blk_options_get_bool(struct blk_options *options, const char *key, bool *value,
                         struct blk_error *err);
int blk_options_get_size(struct blk_options *options, const char *key, uint64_t *bytes,
                         struct blk_error *err);
int blk_options_get_uint(struct blk_options *options, const char *key, uint64_t *value,
                         struct blk_error *err);

/* Whether any key begins with "<prefix>." or is `prefix` itself. */
bool blk_options_has_group(const struct blk_options *options, const char *prefix);

/*
 * Moves every "<prefix>.key" out into a new set as "key". A bare "<prefix>" (a reference to
 * another node by name) stays. The caller owns the result.
 */
struct blk_options *blk_options_take_group(struct blk_options *options, const char *prefix);

/* The first key that was never read, or NULL when all were. */
const char *blk_options_first_unused(const struct blk_options *options);

size_t blk_options_count(const struct blk_options *options);
const char *blk_options_key(const struct blk_options *options, size_t index);
const char *blk_options_value(const struct blk_options *options, size_t index);

#endif
