/*
 * blkimg mirror and blkimg pivot: copying an image and moving its overlays over to the copy.
 *
 *   mirror.c    the copy and its proof
 *   pivot.c     repointing overlays as one transaction
 *   witness.c   the journal of a pivot, and recovering by it
 *
 * A pivot opens, locks and checks all overlays before the first header is written. Several files cannot change in one
 * instant, but old and new backing file hold the same content when a header is switched, so each overlay is valid by
 * itself in any mix. A failure puts back those already switched. The witness tells a caller who died which it was:
 *
 *   no file, or an incomplete first line   nothing has changed
 *   "begin" alone                          any mix; `pivot --recover` finishes or undoes it
 *   "begin" and "done"                     all are switched
 */
#ifndef CMD_MIRROR_MIRROR_H
#define CMD_MIRROR_MIRROR_H

#include "cmd/common/common.h"

/* An overlay that gets another backing file. Names as its header has and will have them. */
struct pivot_overlay {
    const char *filename;
    char *old_name, *old_format; /* NULL: none */
    char *new_name, *new_format;
    struct blk_node *root;    /* open for writing, without its backing chain; NULL once closed */
    struct blk_node *backing; /* the old one, held open once it is proven; or NULL */
    bool switched;
};

struct pivot {
    struct pivot_overlay *overlays;
    size_t count;
    const char *witness; /* NULL: none is wanted */
    struct image_args image;
    const char *cache;
};

/*
 * Opens, locks and checks every overlay: its backing file must be `from` (NULL: whatever it is), and it will be `to`
 * of format `to_format`.
 */
int pivot_prepare(struct pivot *pivot, const char *from, const char *to, const char *to_format,
                  struct blk_error *err);

/* Switches all headers and closes all overlays strictly. Reports failures; returns the exit status. */
int pivot_run(struct pivot *pivot);

/* Releases what prepare has opened, without a change. */
void pivot_drop(struct pivot *pivot);
void pivot_free(struct pivot *pivot);

/* Whether both images show the same content over the length of the longer one: 0, or -EIO saying where they differ. */
int mirror_prove(struct blk_node *source, struct blk_node *target, unsigned workers,
                 struct blk_error *err);

/* ---- witness.c ---- */

/* Writes and syncs the "begin" line to a new or empty file; then, later, the "done" line. */
int witness_begin(const struct pivot *pivot, struct blk_error *err);
int witness_done(const struct pivot *pivot, struct blk_error *err);
/* All are back to what they were: empties the witness. */
int witness_undone(const struct pivot *pivot, struct blk_error *err);

/*
 * Reads a witness back. *begun: there is a whole "begin" line, and the overlays are filled from it; *done: it was finished.
 */
int witness_read(const char *filename, struct pivot *pivot, bool *begun, bool *done,
                 struct blk_error *err);

#endif
