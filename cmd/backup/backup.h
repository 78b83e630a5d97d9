/* SPDX-License-Identifier: MIT */
/*
 * blkimg backup: full and incremental backups of one or several disks at one moment.
 *
 *   backup.c     options, and the phases over all disks
 *   prepare.c    opening the sources, their bitmaps, creating the targets
 *   base.c       --base: is it the backup that the bitmaps count from?
 *   between.c    a base that is newer than what the bitmaps count from
 *   copy.c       moving the data, --verify
 *   guest.c      --guest-io: the same while a guest writes
 *   end.c        closing targets, then switching bitmaps, or putting everything back
 *   manifest.c   the result as JSON
 *   chain.c      --list-chain
 *
 * The order is what makes the status true. All disks pass through each phase before the first
 * enters the next:
 *
 *   prepare   sources are open and locked, targets made; the bits of each bitmap used are set aside
 *             as `frozen` and the bitmap starts over, in memory only
 *   copy      data; writes of a guest are recorded in the bitmaps that started over
 *   close     every target is flushed, closed strictly and so published
 *   verify    if asked, every target is opened again and compared
 *   name      with --keep-failed, NAME.partial becomes NAME
 *   switch    sources are closed strictly, which stores the bitmaps and the new identity in one
 *             step
 *
 * If anything fails before the switch, the frozen bits are put back and no source has changed: a
 * run without guest writes has not even marked a bitmap as in use, so that a kill at any moment
 * costs none. After that a failure leaves bitmaps that mark too much, never too little.
 */
#ifndef CMD_BACKUP_BACKUP_H
#define CMD_BACKUP_BACKUP_H

#include <sys/stat.h>

#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/filters/cbw/cbw.h"
#include "cmd/common/common.h"
#include "cmd/common/create_options.h"

enum backup_mode {
    BACKUP_FULL,   /* the whole disk */
    BACKUP_TOP,    /* what the source itself holds, not its backing chain */
    BACKUP_BITMAP, /* what the bitmaps mark */
};

enum backup_sync { SYNC_ON_SUCCESS, SYNC_NEVER, SYNC_ALWAYS };

struct backup_options {
    struct image_args source, target;
    enum backup_mode mode;
    struct cmd_list bitmaps;
    enum backup_sync sync;
    bool full_if_broken; /* --on-broken-bitmap=full */
    const char *new_bitmap;
    struct cmd_list bases; /* one for each disk, or none */
    const char *base_format;
    bool verify, checksum, keep_failed;
    bool compressed, existing; /* -c, -n */
    bool quiet, progress;
    struct cmd_list creation; /* -o */
    const char *source_cache, *target_cache;
    unsigned workers;
    uint64_t bytes_per_second;
    enum output_format output;
    const char *guest_io; /* file of io commands that run during the backup */
    enum blk_cbw_on_error on_cbw_error;
    uint64_t cbw_timeout_seconds;
};

/* A bitmap of the source that the backup uses. */
struct backup_bitmap {
    struct blk_dirty_bitmap *live;   /* the source's; started over */
    struct blk_dirty_bitmap *frozen; /* what it marked at the moment of the backup */
    bool replaced;                   /* it was broken, and stays so if this backup fails */
    bool made;                       /* it was missing, and goes if this backup fails */
};

struct backup_disk {
    char *source_name;
    const char *target_name;
    const char *base;   /* --base, or NULL */
    char *partial_name; /* --keep-failed: the target is called so until it is complete */

    struct blk_node *source; /* roots; NULL once closed */
    struct blk_node *target;
    struct blk_node *format; /* the source without filters: where its bitmaps are */
    bool target_existed;
    struct stat target_before; /* if it existed */
    bool target_begun;         /* it may have been written to */
    bool target_complete;      /* closed without an error, verified, and under its name */
    bool target_left;          /* after a failure it is still under its name */
    bool guest_ran;            /* the source was written during the backup */
    const char *source_state;  /* after a failure; NULL: it is as it was */

    enum backup_mode mode; /* full where a broken bitmap made it so */
    struct backup_bitmap *bitmaps;
    size_t bitmap_count;
    struct blk_dirty_bitmap *mask;      /* what is copied, whole clusters; NULL: everything */
    struct blk_dirty_bitmap *remaining; /* SYNC_ALWAYS: what the target does not hold yet */
    char *backing_name;                 /* --base as the target's header names it */
    char *backing_format;

    struct blk_id id, parent;
    uint64_t bytes, bytes_copied; /* of the disk; that were written to the target */
    char digest[80];              /* --checksum: hex, or empty */
    struct blk_close_report source_report, target_report;
};

struct backup {
    const struct backup_options *options;
    struct backup_disk *disks;
    size_t count;
    struct blk_published published; /* names of targets, until all have theirs */
    struct progress progress;
    uint64_t progress_done, progress_total;
};

/*
 * prepare.c: opens and locks the source, freezes its bitmaps, makes the target. Errors name the
 * file.
 */
int backup_open_source(struct backup *backup, struct backup_disk *disk, struct blk_error *err);
int backup_make_target(struct backup *backup, struct backup_disk *disk, struct blk_error *err);

/*
 * base.c: checks disk->base, if there is one, and fills disk->backing_name, backing_format and
 * parent. No target may be part of its chain. With -n nothing is done here.
 */
int backup_check_base(struct backup *backup, struct backup_disk *disk, struct blk_error *err);
/* The same for a target that exists: does it hold, or build on, what a partial backup continues? */
int backup_check_existing(const struct backup_options *options, struct backup_disk *disk,
                          struct blk_error *err);

/*
 * between.c: adds to disk->mask what the layers from `newer` down to `older` hold. -EINVAL if
 * they hold something where disk->mask marks nothing: then they are not backups of what the
 * bitmaps saw. `older` is in the chain of `newer`, and its contents are what a bitmap counts from.
 */
int backup_mark_between(struct backup_disk *disk, struct blk_node *newer, struct blk_node *older,
                        struct blk_error *err);

/* copy.c: copies, and fills disk->digest if that is wanted. */
int backup_copy(struct backup *backup, struct backup_disk *disk, struct blk_error *err);
/* guest.c: the same while options->guest_io runs; returns when both have come to their end. */
int backup_copy_with_guest(struct backup *backup, struct backup_disk *disk, struct blk_error *err);
/* --verify: reads the closed target back and compares it with the source. -EIO when they differ. */
int backup_verify(struct backup *backup, struct backup_disk *disk, struct blk_error *err);

/* end.c: closes the target strictly, so that it has its name, or NAME.partial. */
int backup_close_target(struct backup *backup, struct backup_disk *disk, struct blk_error *err);
/* The target is complete: it gets its name, if it has not got it yet. */
int backup_name_target(struct backup *backup, struct backup_disk *disk, struct blk_error *err);
/* Whether a successful run changes the source. */
bool backup_changes_source(const struct backup_options *options, const struct backup_disk *disk);
/* Closes the source strictly with its bitmaps started over and its identity set. */
int backup_switch_source(const struct backup_options *options, struct backup_disk *disk,
                         struct blk_error *err);
/*
 * After a failure before the switch: takes back the names that targets got. With --keep-failed they
 * are called NAME.partial again. Reports what it cannot do.
 */
void backup_take_back(struct backup *backup);
/* The rest of it: drops the target, puts the bitmaps back. Reports what it cannot do. */
void backup_put_back(const struct backup_options *options, struct backup_disk *disk);
/*
 * After that: says which of the two files can be used, for it is not the status alone that decides.
 */
void backup_say_what_stands(const struct backup_disk *disk);
void backup_disk_free(struct backup_disk *disk);

/* chain.c: prints and checks the chain that ends in `name`. Returns the exit status. */
int backup_list_chain(const struct backup_options *options, const char *name);

/*
 * manifest.c: adds the disks to the JSON result of a run, prints and frees it. `status` says what
 * became of the backup, `exit_status` is that of the process: the same, unless a signal ended it.
 */
void backup_print_manifest(const struct backup *backup, json_t *result, int status,
                           int exit_status);

#endif
