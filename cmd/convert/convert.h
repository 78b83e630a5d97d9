/* SPDX-License-Identifier: MIT */
/*
 * blkimg convert, in five parts: command.c reads the command line, sources.c has the images that
 * are read as one, salvaged.c notes what cannot be read of them, bitmaps.c copies dirty bitmaps,
 * run.c makes the target and copies.
 */
#ifndef CMD_CONVERT_CONVERT_H
#define CMD_CONVERT_CONVERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cmd/common/common.h"

/* ---- command.c ---- */

struct convert_options {
    struct image_args source, target;
    const char *source_cache, *target_cache;
    const char *backing, *backing_format; /* of the target: -B and -F, or from -o; else NULL */
    const char *snapshot;
    struct cmd_list creation; /* -o */
    bool no_create;           /* -n */
    bool target_is_zero;
    bool compressed;
    bool copy_range;
    bool share; /* blocks of the sources, where the file system can */
    bool salvage;
    bool bitmaps, skip_broken_bitmaps;
    bool out_of_order;
    bool progress, quiet;
    enum output_format format;
    uint64_t sparse_bytes;     /* -S; 0: write all zeroes as data */
    uint64_t bytes_per_second; /* 0: no limit */
    unsigned workers;

    const char **inputs;
    size_t input_count; /* at least 1, but with `-o help` */
    const char *output; /* NULL only with `-o help` */
};

/* ---- sources.c ---- */

/* Images one after the other, each rounded up to whole sectors, as qemu-img joins them. */
struct convert_sources {
    struct blk_node **roots; /* the array of count + 1 has room for the target, for finish() */
    size_t count;
    uint64_t *starts; /* count + 1 offsets; the last is the total size */
};

/* Opens all. On failure the ones that are open stay in `sources` for convert_finish(). */
int convert_open_sources(const struct convert_options *options, struct convert_sources *sources,
                         struct blk_error *err);

static inline uint64_t convert_total(const struct convert_sources *sources)
{
    return sources->starts[sources->count];
}

/* Reads from the joined images; the range lies within them. */
int convert_read(const struct convert_sources *sources, uint64_t offset, uint64_t bytes, void *buf,
                 struct blk_error *err);

/* Closes the sources, then the target; frees everything. As finish() (report.h). */
int convert_finish(struct convert_sources *sources, struct blk_node *target, int status,
                   json_t *result);

/* ---- salvaged.c ---- */

/* What could not be read; all zero: nothing. */
struct convert_salvaged {
    struct salvaged_range *ranges; /* by offset, with gaps between them */
    size_t count;
    uint64_t bytes; /* in all */
    bool untold;    /* there were more ranges than are kept */
};

/* Notes a piece; nothing of it was noted before. One caller at a time. */
void convert_salvaged_add(struct convert_salvaged *salvaged, uint64_t offset, uint64_t bytes,
                          const struct blk_error *why);
/* Says what was noted, on stderr, unless quiet; and frees it. */
void convert_salvaged_end(struct convert_salvaged *salvaged, bool quiet);

/* ---- bitmaps.c ---- */

/*
 * Before the target is made: sees that the source's persistent bitmaps can be read, and loads them.
 * Inconsistent ones are an error, or left out if the user chose so.
 */
int convert_load_bitmaps(const struct convert_options *options, struct blk_node *source,
                         struct blk_error *err);

/* Before anything is copied: sees that the target can keep them, and has none of their names. */
int convert_check_bitmaps(struct blk_node *source, struct blk_node *target, struct blk_error *err);

/* After everything is copied: gives the target the same bitmaps. */
int convert_copy_bitmaps(struct blk_node *source, struct blk_node *target, struct blk_error *err);

/*
 * After that: a new target that shows what a single source does says which backup it is, and what
 * the bitmaps count from that were copied.
 */
void convert_carry_identity(const struct convert_options *options, struct blk_node *source,
                            struct blk_node *target);

/* ---- run.c ---- */

/* Converts; `command` is for the result. Returns the exit status. */
int convert_run(const struct command *command, struct convert_options *options);

#endif
