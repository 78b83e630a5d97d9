/*
 * The end of a backup: targets closed and published, then the sources' bitmaps switched; or everything put back.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/memory.h"
#include "cmd/backup/backup.h"

static int close_root(struct blk_node **root, struct blk_close_report *report,
                      struct blk_error *err)
{
    int ret = blk_close(*root, report, err);
    *root = NULL;
    return ret;
}

/* Makes what was done to the names in the file's folder durable. */
static int sync_folder(const char *file, struct blk_error *err)
{
    BLK_AUTOFREE char *copy = blk_xstrdup(file);
    const char *folder = dirname(copy);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return blk_fail(err, errno, "opening folder '%s'", folder);
    int ret = fsync(fd) == 0 ? 0 : blk_fail(err, errno, "syncing folder '%s'", folder);
    close(fd);
    return ret;
}

/* A target that was made as NAME.partial is complete: it gets its name, unless that was taken meanwhile. */
static int rename_partial(const struct backup_disk *disk, struct blk_error *err)
{
    if (renameat2(AT_FDCWD, disk->partial_name, AT_FDCWD, disk->target_name, RENAME_NOREPLACE) < 0)
        return blk_fail(err, errno, "renaming '%s' to '%s'", disk->partial_name,
                        disk->target_name);
    return sync_folder(disk->target_name, err);
}

int backup_close_target(const struct backup_options *options, struct backup_disk *disk,
                        struct blk_error *err)
{
    (void)options;
    int ret = blk_flush(disk->target, err);
    if (ret < 0)
        return ret;
    ret = close_root(&disk->target, &disk->target_report, err);
    if (ret == 0 && disk->partial_name)
        ret = rename_partial(disk, err);
    disk->target_closed = ret == 0;
    return ret;
}

/* ---- the switch ---- */

static void set_source_identity(const struct backup_options *options, struct backup_disk *disk)
{
    struct blk_identity identity;
    const struct blk_driver *driver = disk->format->driver;

    /* An identity of an unknown form is replaced: this version cannot continue it. */
    if (!driver->identity_set || driver->identity_get(disk->format, &identity, NULL) < 0)
        return;
    for (size_t i = 0; i < disk->bitmap_count; i++)
        blk_identity_set_since(&identity, disk->bitmaps[i].live->name, &disk->id);
    if (options->new_bitmap)
        blk_identity_set_since(&identity, options->new_bitmap, &disk->id);
    driver->identity_set(disk->format, &identity);
}

int backup_switch_source(const struct backup_options *options, struct backup_disk *disk,
                         struct blk_error *err)
{
    bool changes = (disk->bitmap_count && options->sync != SYNC_NEVER) || options->new_bitmap;
    if (changes)
        set_source_identity(options, disk);
    return close_root(&disk->source, &disk->source_report, err);
}

/* ---- a failure before the switch ---- */

/* Whether this run gave the target its name; one that came from elsewhere is not ours to remove. */
static bool was_published(const struct backup_disk *disk)
{
    for (size_t i = 0; i < disk->target_report.count; i++) {
        const struct blk_close_entry *entry = &disk->target_report.entries[i];
        if (strcmp(entry->step, blk_close_step_name(BLK_STEP_PUBLISH)) == 0 &&
            entry->outcome == BLK_OUTCOME_OK)
            return true;
    }
    return false;
}

/* A target of this run that failed after it got its name. */
static void remove_target(const struct backup_options *options, struct backup_disk *disk)
{
    if (!was_published(disk) || disk->target_existed || options->keep_failed)
        return;
    struct blk_error err = BLK_ERROR_INIT;
    if (unlink(disk->target_name) < 0 && errno != ENOENT)
        report_failure("removing the failed target '%s': %s", disk->target_name, strerror(errno));
    else if (sync_folder(disk->target_name, &err) < 0)
        report_error(&err);
}

/* --keep-failed: what there is of the target gets the name NAME.partial. Returns whether it is safely there. */
static bool keep_partial(struct backup_disk *disk)
{
    struct blk_error err = BLK_ERROR_INIT;

    if (!disk->target)
        return false;
    int ret = blk_flush(disk->target, &err);
    if (ret == 0)
        ret = close_root(&disk->target, &disk->target_report, &err);
    if (ret < 0) {
        report_error(&err);
        return false;
    }
    return true;
}

/* What a kept partial target holds need not be backed up again. Only this makes a source change after a failure. */
static void advance_bitmaps(const struct backup_options *options, struct backup_disk *disk)
{
    struct blk_error err = BLK_ERROR_INIT;

    set_source_identity(options, disk);
    for (size_t i = 0; i < disk->bitmap_count; i++)
        blk_dirty_bitmap_merge(disk->bitmaps[i].live, disk->remaining);
    if (close_root(&disk->source, &disk->source_report, &err) < 0)
        report_error(&err);
}

/* The guest's writes are in the source and recorded in its bitmaps: they join what was set aside. */
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
    }
    if (started)
        blk_bitmaps_remove(disk->format, started);
    if (close_root(&disk->source, &disk->source_report, &err) < 0) {
        blk_left_behind(&err, "what the guest wrote may not all be in '%s'", disk->source_name);
        report_error(&err);
    }
}

void backup_put_back(const struct backup_options *options, struct backup_disk *disk)
{
    bool kept = options->keep_failed && keep_partial(disk);

    remove_target(options, disk);
    blk_drop(disk->target);
    disk->target = NULL;
    if (kept && options->sync == SYNC_ALWAYS && disk->remaining && disk->source)
        advance_bitmaps(options, disk);
    if (disk->guest_ran && disk->source)
        keep_guest_writes(options, disk);
    /* Else nothing was written to the source, and dropping it leaves it as it was. */
    blk_drop(disk->source);
    disk->source = NULL;
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
