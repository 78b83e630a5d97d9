/* SPDX-License-Identifier: MIT */
/* Opening the images that a command line names. */
#ifndef CMD_COMMON_IMAGE_H
#define CMD_COMMON_IMAGE_H

#include <stdbool.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/options.h"
#include "cmd/common/cmdline.h"

struct blk_driver;

/* How the user wants an image to be opened. */
struct image_args {
    const char *format;        /* -f; NULL: probe */
    bool image_opts;           /* the name is a list of options */
    bool force_share;          /* -U */
    bool trust;                /* --trust */
    bool force;                /* --force: of a target, overwrite a backup that others need */
    struct cmd_size lock_wait; /* seconds to wait for a lock */
    struct cmd_list objects;   /* --object */
    bool in_place;             /* --in-place: a target that exists is not replaced */
    const char *aio;           /* how files are read and written; NULL: by threads */
};

#define IMAGE_ARGS_INIT ((struct image_args){ .format = NULL })

/* The rows that nearly every command has. */
#define IMAGE_OPTIONS(image) \
    IMAGE_OPTION_ROWS(image, "read even if another process is writing the image")

/* The same for an image that is written: -U is accepted, and then refused with its reason. */
#define WRITTEN_IMAGE_OPTIONS(image) IMAGE_OPTION_ROWS(image, NULL)

/* clang-format off */
#define IMAGE_OPTION_ROWS(image, help_of_share)                                                   \
    { 'f', "format", CMD_STRING, &(image)->format, "FMT",                                         \
      "format of the image; guessed if not given" },                                              \
    { 0, "image-opts", CMD_FLAG, &(image)->image_opts, NULL,                                      \
      "the image is given as driver=...,option=value" },                                          \
    { 'U', "force-share", CMD_FLAG, &(image)->force_share, NULL, help_of_share },                 \
    { 0, "trust", CMD_FLAG, &(image)->trust, NULL,                                                \
      "read a chain of backups even if its ids do not match" },                                   \
    { 0, "lock-wait", CMD_UINT, &(image)->lock_wait, "SECONDS",                                   \
      "wait up to that long for an image that is in use" },                                       \
    { 0, "object", CMD_LIST, &(image)->objects, "TYPE,id=ID",                                 \
      "declare an object such as a secret" }
/* clang-format on */

/* The row of commands that make a target. */
/* clang-format off */
#define IN_PLACE_OPTION(image)                                                                    \
    { 0, "in-place", CMD_FLAG, &(image)->in_place, NULL,                                          \
      "overwrite an existing target instead of replacing it" }
/* clang-format on */

/* Another one of theirs. */
/* clang-format off */
#define FORCE_OPTION(image)                                                                       \
    { 0, "force", CMD_FLAG, &(image)->force, NULL,                                                \
      "overwrite a backup that other images depend on" }
/* clang-format on */

/*
 * Opens the graph of `name`. `flags`: enum blk_open_flags; `cache`: the text of -t or -T, NULL for
 * writeback. On failure nothing is open, *root is NULL, and `err` names the image.
 */
int image_open(const struct image_args *args, const char *name, unsigned flags, const char *cache,
               struct blk_node **root, struct blk_error *err);

/* What image_create() makes. */
struct image_creation {
    const char *name;
    const struct blk_driver *driver;
    struct blk_options *options; /* of -o; they stay the caller's */
    unsigned flags;              /* enum blk_open_flags, of the node that is returned */
    const char *cache;           /* as for image_open() */
};

/*
 * After a reopen for writing that failed with -EDEADLK, because another process and this one would
 * wait for each other: closes *root, so that the other can go on. 0: the caller opens it again and
 * starts over. -errno with `err`: it must give up, as --lock-wait has passed since `start`
 * (blk_now_ns()) or the close failed.
 */
int image_give_way(const struct image_args *args, uint64_t start, struct blk_node **root,
                   struct blk_error *err);

/*
 * Creates an image. Of `args` only what is for the files below it counts, and `force`: without it a
 * backup on which others depend is not overwritten (dependents.h). BLKIMG_IN_PLACE=1 in the
 * environment is --in-place. On failure nothing is open, and *root is NULL.
 */
int image_create(const struct image_args *args, const struct image_creation *creation,
                 struct blk_node **root, struct blk_error *err);

/* The flags (enum blk_open_flags) that the options ask for. */
unsigned image_flags(const struct image_args *args);

/* Checks what --object declares. -EINVAL for what this program has no use for. */
int image_check_objects(const struct cmd_list *objects, struct blk_error *err);

/*
 * Makes reads of a read-only image show one of its internal snapshots: `text` is an id or a name,
 * or "snapshot.id=ID,snapshot.name=NAME" with either or both.
 */
int image_load_snapshot(struct blk_node *node, const char *text, struct blk_error *err);

/* Parses the text of -t or -T; NULL is writeback. */
int image_cache(const char *text, struct blk_cache_mode *mode, struct blk_error *err);

/* The driver called `format`, or NULL with `err` ("Unknown driver 'x'"). */
const struct blk_driver *image_driver(const char *format, struct blk_error *err);

/* Fails with -EINVAL, "Unknown file format 'x'": none of that format can be made or measured. */
int image_unknown_format(const char *format, struct blk_error *err);

/*
 * The driver of a new image of that format, or NULL with the error of image_unknown_format(). A
 * protocol by itself ("file") is a raw image.
 */
const struct blk_driver *image_driver_of_new(const char *format, struct blk_error *err);

#endif
