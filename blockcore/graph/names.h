/* SPDX-License-Identifier: MIT */
/*
 * What file names stand for (protocols, "json:", paths), and backing names, which are relative to
 * their overlay.
 */
#ifndef BLOCKCORE_GRAPH_NAMES_H
#define BLOCKCORE_GRAPH_NAMES_H

#include <stdbool.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/options.h"

/*
 * The name of a backing file as seen from the image: "json:" and "PROTOCOL:" names and absolute
 * paths as they are, others relative to the directory of `image`. malloc()ed.
 */
char *blk_resolve_backing_name(const char *image, const char *backing);

/*
 * The path of the file that holds the bytes of what `filename` names, in whatever way it is spelled
 * ("file:", "json:"), malloc()ed; NULL where that is no file.
 */
char *blk_file_path(const char *filename);

/*
 * Whether both names lead to one file that exists, or would be the same new file, or are the same
 * text.
 */
bool blk_same_file(const char *a, const char *b);

/*
 * Splits "prefix:rest". Returns the driver of the protocol, the file driver for plain names, or
 * NULL with `err`.
 */
const struct blk_driver *blk_protocol_of(const char *filename, struct blk_error *err);

/*
 * The protocol that the option "filename" of a node without "driver" names; what the name stands
 * for is put into `options`. NULL with `err`.
 */
const struct blk_driver *blk_protocol_by_filename(struct blk_options *options,
                                                  struct blk_error *err);

/* Whether `filename` begins with a protocol prefix ("name:" with no slash before the colon). */
bool blk_has_protocol(const char *filename);

/* Turns a filename of any kind into options. */
int blk_filename_to_options(const char *filename, struct blk_options *options,
                            struct blk_error *err);

/*
 * `options` may ask by name for a filter that calls its child otherwise (blkdebug: image). Then
 * `by_name`, made of a file name with that filter's prefix or a plain one, is changed so that the
 * name is the child's, or, if the options want a format there, that of the format's file.
 */
void blk_name_filter_child(const struct blk_options *options, struct blk_options *by_name);

/* Parses "none", "writeback", "unsafe", "writethrough", "directsync", "off". -EINVAL otherwise. */
int blk_cache_mode_parse(const char *text, struct blk_cache_mode *mode);

#endif
