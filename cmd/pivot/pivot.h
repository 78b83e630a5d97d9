/* SPDX-License-Identifier: MIT */
/*
 * blkimg pivot: overlays get another backing file with the same content, all of them or none.
 *
 *   command.c      the command line
 *   transaction.c  opening, proving, switching and putting back
 *   recover.c      --recover
 *   witness.c      the journal
 *
 * A pivot opens, locks and checks all overlays, and asks each header whether it has room, before
 * the first is written. Several files cannot change in one instant, but old and new backing file
 * have the same content when a header is switched, and both stay locked from their comparison until
 * the end: so each overlay is valid by itself in any mix. A failure restores those already
 * switched. After a crash the witness says how far it got:
 *
 *   no file, or no whole first line   nothing has changed
 *   "begin" alone                     any mix; `pivot --recover` finishes or undoes it
 *   "begin" and "done"                all are switched
 *
 * A signal that comes before "begin" leaves everything as it was; one that comes later is ignored:
 * the switch takes no time, and half of it is of no use to anybody.
 */
#ifndef CMD_PIVOT_PIVOT_H
#define CMD_PIVOT_PIVOT_H

#include <sys/types.h>

#include "blockcore/bitmap/identity.h"
#include "cmd/common/common.h"

/* An overlay that gets another backing file. Names as its header has and will have them. */
struct pivot_overlay {
    char *filename;
    char *old_name, *old_format; /* NULL: none */
    char *new_name, *new_format;
    struct blk_node *root; /* open for writing, without its backing chain; NULL once closed */
    struct blk_node *old_backing, *new_backing; /* held open from their proof on; or NULL */
    struct blk_identity old_identity;           /* what the overlay said before */
    bool proved; /* it shows the same on its old and its new backing file */
    bool switched;
};

#define PIVOT_COMPARED 2

struct pivot {
    struct pivot_overlay *overlays;
    size_t count;
    /* What they were compared with, closed together with them; or NULL. */
    struct blk_node **compared[PIVOT_COMPARED];
    struct image_args image;          /* for the overlays */
    const char *cache, *source_cache; /* of overlays and of backing files */
    unsigned workers;
    json_t *result; /* of --output=json, or NULL */

    const char *witness; /* NULL: none is wanted */
    int witness_fd;      /* locked; -1 while it is not open */
    bool witness_made;   /* by this run */
    off_t witness_bytes; /* of the "begin" line */
};

#define PIVOT_WORKERS 4

/* A pivot of the overlays that the list names. */
void pivot_init(struct pivot *pivot, const char *const *names, size_t count);

/*
 * Opens and locks the witness and every overlay, each of which must have a backing file: `from` if
 * that is not NULL. None may be `to`, which need not exist yet.
 */
int pivot_open(struct pivot *pivot, const char *from, const char *to, struct blk_error *err);

/*
 * Opens and locks the backing file of each overlay, by its header, and proves that it shows what
 * `node` does.
 */
int pivot_prove_old(struct pivot *pivot, struct blk_node *node, struct blk_error *err);

/*
 * Decides how each header will name `to`, which is open as `node`, sees that it has room for that,
 * and proves that an overlay will find what `node` shows by that name.
 */
int pivot_plan(struct pivot *pivot, const char *to, struct blk_node *node, struct blk_error *err);

/*
 * Switches all headers and closes the overlays, and what they were compared with, strictly; if
 * anything of that fails all get their old backing file back. Reports failures; returns the exit
 * status.
 */
int pivot_run(struct pivot *pivot);

/*
 * Releases all that is still open. A witness in which nothing has begun goes away if this run made
 * it.
 */
void pivot_free(struct pivot *pivot);

/* ---- transaction.c, for recovery ---- */

int pivot_open_overlay(const struct pivot *pivot, struct pivot_overlay *overlay,
                       struct blk_error *err);
/* Whether the overlay's header names that backing file. The overlay is open. */
bool pivot_names(const struct pivot_overlay *overlay, const char *name, const char *format);
/* `backing`: what bears that name, of which the overlay takes the id as its parent's. */
int pivot_set_backing(struct pivot_overlay *overlay, const char *name, const char *format,
                      struct blk_node *backing, struct blk_error *err);
/* Whether the overlay was made on `backing`, by the ids of both; with --trust it need not be. */
int pivot_check_ids(const struct pivot *pivot, const struct pivot_overlay *overlay,
                    struct blk_node *backing, struct blk_error *err);
/* Opens a backing file as the overlay's header would name it. */
int pivot_open_backing(const struct pivot *pivot, const struct pivot_overlay *overlay,
                       const char *name, const char *format, struct blk_node **backing,
                       struct blk_error *err);
/* Closes all overlays strictly. Returns the exit status. */
int pivot_close(struct pivot *pivot);

/* ---- recover.c ---- */

/* The request of `blkimg pivot --recover`. */
struct recover_request {
    const char *witness;
    struct image_args image;
    const char *cache, *source_cache;
    bool undo, trust;
};

/* Finishes or takes back what a witness says was begun. Returns the exit status. */
int pivot_recover(const struct recover_request *request, json_t *result);

/* ---- witness.c ---- */

/* Opens and locks the witness, a new or an empty file. Without one wanted these do nothing. */
int witness_open(struct pivot *pivot, struct blk_error *err);
/* Writes and syncs the "begin" line; on failure the file is empty again, as far as that can be. */
int witness_begin(struct pivot *pivot, struct blk_error *err);
/* Adds and syncs the "done" line. */
int witness_done(struct pivot *pivot, struct blk_error *err);
/* All overlays are what they were: empties the witness. */
int witness_undone(struct pivot *pivot, struct blk_error *err);
/* Closes one that was only read. */
int witness_leave(struct pivot *pivot, struct blk_error *err);
void witness_close(struct pivot *pivot);

enum witness_state { WITNESS_NOTHING, WITNESS_BEGUN, WITNESS_DONE };

/*
 * Opens, locks and reads a witness, for recovery. Fills the overlays unless nothing has begun.
 * -EINVAL for a file that is no witness.
 */
int witness_read(struct pivot *pivot, enum witness_state *state, struct blk_error *err);

#endif
