/* SPDX-License-Identifier: MIT */
/*
 * The end of a backup: targets closed and published, then the sources' bitmaps switched; or
 * everything put back.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/rename.h"
#include "cmd/backup/backup.h"
#include "cmd/common/directory.h"

static int close_with_report(struct blk_node **root, struct blk_close_report *report,
                             struct blk_error *err)
{
    int ret = blk_close(*root, report, err);
    *root = NULL;
    return ret;
}

int backup_close_target(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    if (backup->options->keep_failed)
        return close_with_report(&disk->target, &disk->target_report, err);
    int ret = blk_close_held(disk->target, &backup->published, &disk->target_report, err);
    disk->target = NULL;
    return ret;
}

/* A target that got its name after it was made as NAME.partial: it can be called so again. */
struct renamed {
    struct blk_published_entry entry;
    char *partial, *target;
};

static int end_renamed(struct renamed *renamed, int ret)
{
    free(renamed->partial);
    free(renamed->target);
    free(renamed);
    return ret;
}

static int take_back_renamed(void *state, struct blk_error *err)
{
    struct renamed *renamed = state;
    int ret = blk_rename_to_free(AT_FDCWD, renamed->target, renamed->partial);

    ret = ret < 0
              ? blk_fail(err, -ret, "renaming '%s' back to '%s'", renamed->target, renamed->partial)
              : sync_directory_of(renamed->target, err);
    return end_renamed(renamed, ret);
}

static int keep_renamed(void *state, struct blk_error *err)
{
    (void)err;
    return end_renamed(state, 0);
}

/* Made as NAME.partial, it gets its name, unless that was taken meanwhile. */
static int rename_partial(struct backup *backup, const struct backup_disk *disk,
                          struct blk_error *err)
{
    static const struct blk_published_ops ops = { take_back_renamed, keep_renamed };

    /* Made first: nothing may fail between the name and its entry. */
    struct renamed *renamed = blk_xcalloc(1, sizeof(*renamed));
    renamed->partial = blk_xstrdup(disk->partial_name);
    renamed->target = blk_xstrdup(disk->target_name);
    int ret = blk_rename_to_free(AT_FDCWD, disk->partial_name, disk->target_name);
    if (ret < 0)
        return end_renamed(renamed, blk_fail(err, -ret, "renaming '%s' to '%s'", disk->partial_name,
                                             disk->target_name));
    blk_published_add(&backup->published, &renamed->entry, &ops, renamed);
    return sync_directory_of(disk->target_name, err);
}

int backup_name_target(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    int ret = disk->partial_name ? rename_partial(backup, disk, err) : 0;
    disk->target_complete = ret == 0;
    return ret;
}

/* ---- the switch ---- */

bool backup_changes_source(const struct backup_options *options, const struct backup_disk *disk)
{
    return (disk->bitmap_count && options->sync != SYNC_NEVER) || options->new_bitmap;
}

/* The bitmaps that start over count from this backup. */
static void set_source_identity(const struct backup_options *options, struct backup_disk *disk,
                                const char *new_bitmap)
{
    struct blk_identity identity;

    /* An identity of an unknown form is replaced: this version cannot continue it. */
    if (blk_identity_of(disk->format, &identity, NULL) < 0)
        identity = (struct blk_identity){ .bitmap_count = 0 };
    for (size_t i = 0; i < disk->bitmap_count && options->sync != SYNC_NEVER; i++)
        blk_identity_set_since(&identity, disk->bitmaps[i].live->name, &disk->id);
    if (new_bitmap)
        blk_identity_set_since(&identity, new_bitmap, &disk->id);
    identity.below = blk_identity_look(blk_child(disk->format, BLK_ROLE_BACKING));
    blk_identity_set(disk->format, &identity);
}

int backup_switch_source(const struct backup_options *options, struct backup_disk *disk,
                         struct blk_error *err)
{
    if (backup_changes_source(options, disk)) {
        set_source_identity(options, disk, options->new_bitmap);
        blk_bitmaps_of(disk->format)->must_store = true;
    }
    return close_with_report(&disk->source, &disk->source_report, err);
}

/* ---- a failure before the switch ---- */

void backup_take_back(struct backup *backup)
{
    struct blk_error err = BLK_ERROR_INIT;
    bool taken = backup->published.last;
    bool left = blk_published_take_back(&backup->published, &err) < 0;

    if (left)
        report_error(&err);
    for (size_t i = 0; i < backup->count; i++) {
        struct backup_disk *disk = &backup->disks[i];
        disk->target_left = left;
        if (!disk->partial_name)
            blk_close_report_taken_back(&disk->target_report);
        else if (taken)
            disk->target_complete = false;
    }
}

/*
 * Only a partial target that the bitmaps count from may be the base of another backup. Any other is
 * a part of a disk, also where a whole one was to be copied.
 */
static void unset_target_identity(struct backup_disk *disk)
{
    const struct blk_identity part = {
        .parent = blk_id_is_none(&disk->parent) ? blk_id_unknown : disk->parent,
    };
    blk_identity_set(blk_skip_filters(disk->target), &part);
}

/*
 * --keep-failed: what there is of the target gets the name NAME.partial. Returns whether it is
 * safely there.
 */
static bool keep_partial(struct backup_disk *disk)
{
    struct blk_error err = BLK_ERROR_INIT;

    int ret = close_with_report(&disk->target, &disk->target_report, &err);
    if (ret < 0) {
        blk_left_behind(&err, "so '%s' could not be kept", disk->partial_name);
        report_error(&err);
    }
    return ret == 0;
}

/*
 * What a kept partial target holds need not be backed up again. Only this makes a source change
 * after a failure.
 */
static void advance_bitmaps(const struct backup_options *options, struct backup_disk *disk)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_dirty_bitmap *started =
        options->new_bitmap ? blk_bitmaps_find(disk->format, options->new_bitmap) : NULL;

    set_source_identity(options, disk, NULL);
    for (size_t i = 0; i < disk->bitmap_count; i++)
        blk_dirty_bitmap_merge(disk->bitmaps[i].live, disk->remaining);
    if (started)
        blk_bitmaps_remove(disk->format, started);
    disk->source_state = "its bitmaps mark what the kept target does not hold";
    if (close_with_report(&disk->source, &disk->source_report, &err) == 0)
        return;
    disk->source_state = "its bitmaps mark too much rather than too little";
    report_error(&err);
}

/*
 * The guest's writes are in the source and recorded in its bitmaps: they join what was set aside.
 */
static void keep_guest_writes(const struct backup_options *options, struct backup_disk *disk)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_dirty_bitmap *started =
        options->new_bitmap ? blk_bitmaps_find(disk->format, options->new_bitmap) : NULL;

    for (size_t i = 0; i < disk->bitmap_count; i++) {
        struct backup_bitmap *used = &disk->bitmaps[i];
        if (options->sync != SYNC_NEVER)
            blk_dirty_bitmap_merge(used->live, used->frozen);
        used->live->inconsistent |= used->replaced;
        if (used->made)
            blk_bitmaps_remove(disk->format, used->live);
    }
    if (started)
        blk_bitmaps_remove(disk->format, started);
    disk->source_state = "its bitmaps mark what they did before and what the guest wrote";
    if (close_with_report(&disk->source, &disk->source_report, &err) < 0) {
        disk->source_state = "its bitmaps are in use";
        blk_left_behind(&err, "what the guest wrote may not all be in '%s'", disk->source_name);
        report_error(&err);
    }
}

void backup_put_back(const struct backup_options *options, struct backup_disk *disk)
{
    bool advance = options->sync == SYNC_ALWAYS && disk->remaining;
    bool kept = false;

    if (disk->target && options->keep_failed) {
        if (!advance)
            unset_target_identity(disk);
        kept = keep_partial(disk);
    }
    blk_drop(disk->target);
    disk->target = NULL;
    if (kept && advance)
        advance_bitmaps(options, disk);
    if (disk->guest_ran)
        keep_guest_writes(options, disk);
    /* Else nothing was written to the source, and dropping it leaves it as it was. */
    blk_drop(disk->source);
    disk->source = NULL;
}

/* ---- what stands ---- */

static bool exists(const char *name)
{
    return access(name, F_OK) == 0;
}

static bool is_untouched(const struct backup_disk *disk)
{
    const struct stat *before = &disk->target_before;
    struct stat now;
    return disk->target_existed && stat(disk->target_name, &now) == 0 && S_ISREG(now.st_mode) &&
           now.st_dev == before->st_dev && now.st_ino == before->st_ino &&
           now.st_size == before->st_size && now.st_mtim.tv_sec == before->st_mtim.tv_sec &&
           now.st_mtim.tv_nsec == before->st_mtim.tv_nsec;
}

void backup_say_what_stands(const struct backup_disk *disk)
{
    const char *source =
        disk->source_state ? disk->source_state : "the source and its bitmaps are as they were";

    if (disk->target_complete)
        report_failure("the backup of '%s' was not finished: %s, the target '%s' is complete",
                       disk->source_name, source, disk->target_name);
    else if (disk->partial_name && exists(disk->partial_name))
        report_failure("the backup of '%s' failed: %s, the incomplete target is '%s'",
                       disk->source_name, source, disk->partial_name);
    else if (disk->target_begun ? is_untouched(disk) : exists(disk->target_name))
        report_failure("the backup of '%s' failed: %s, and so is '%s'", disk->source_name, source,
                       disk->target_name);
    else if (disk->target_begun && (disk->target_existed || disk->target_left))
        report_failure("the backup of '%s' failed: %s, do not use the target '%s'",
                       disk->source_name, source, disk->target_name);
    else if (exists(disk->target_name))
        report_failure("the backup of '%s' failed: %s, and '%s' is not from this run",
                       disk->source_name, source, disk->target_name);
    else
        report_failure("the backup of '%s' failed: %s, there is no target '%s'", disk->source_name,
                       source, disk->target_name);
}

void backup_disk_free(struct backup_disk *disk)
{
    for (size_t i = 0; i < disk->bitmap_count; i++)
        blk_dirty_bitmap_free(disk->bitmaps[i].frozen);
    free(disk->bitmaps);
    blk_dirty_bitmap_free(disk->mask);
    blk_dirty_bitmap_free(disk->remaining);
    free(disk->source_name);
    free(disk->partial_name);
    free(disk->backing_name);
    free(disk->backing_format);
    blk_close_report_free(&disk->source_report);
    blk_close_report_free(&disk->target_report);
}
