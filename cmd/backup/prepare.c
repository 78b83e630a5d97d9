/* SPDX-License-Identifier: MIT */
/* The first phase: sources open and locked, bitmaps frozen, targets made. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/status.h"
#include "cmd/backup/backup.h"
#include "cmd/common/dependents.h"

/* ---- bitmaps ---- */

/* `granularity_bits` 0: the default. */
static int new_bitmap(struct backup_disk *disk, const char *name, unsigned granularity_bits,
                      struct blk_dirty_bitmap **bitmap, struct blk_error *err)
{
    struct blk_node *node = disk->format;
    uint64_t cluster_bytes = 0;

    int ret = blk_bitmaps_can_add(node, err);
    if (ret == 0)
        ret = blk_cluster_bytes(node, &cluster_bytes, err);
    if (ret < 0)
        return ret;
    if (!granularity_bits)
        granularity_bits = blk_dirty_bitmap_default_granularity_bits(cluster_bytes);
    ret = blk_dirty_bitmap_new(name, blk_size(node), granularity_bits, bitmap, err);
    if (ret < 0)
        return ret;
    (*bitmap)->persistent = true;
    ret = blk_bitmaps_add(node, *bitmap, err);
    if (ret < 0)
        blk_dirty_bitmap_free(*bitmap);
    return ret;
}

static const char *what_is_wrong(const struct blk_dirty_bitmap *broken)
{
    if (!broken)
        return "does not exist";
    return broken->inconsistent ? "was in use when the disk was last written, so it may have "
                                  "missed writes"
                                : "is disabled, so it has missed writes";
}

/*
 * A bitmap that is missing, in use or disabled: the backup becomes a full one, and the bitmap
 * starts over with it.
 */
static int replace_broken(const struct backup_options *options, struct backup_disk *disk,
                          const char *name, struct backup_bitmap *used, struct blk_error *err)
{
    struct blk_dirty_bitmap *broken = blk_bitmaps_find(disk->format, name);
    unsigned granularity_bits = broken ? broken->granularity_bits : 0;

    if (!options->quiet && options->output == OUTPUT_HUMAN) {
        printf("%s: making a full backup: bitmap '%s' %s%s\n", disk->source_name, name,
               what_is_wrong(broken),
               options->sync == SYNC_NEVER ? "" : "; it starts over with this backup");
        fflush(stdout);
    }
    disk->mode = BACKUP_FULL;
    used->live = NULL;
    if (options->sync == SYNC_NEVER)
        return 0;
    used->replaced = broken;
    used->made = !broken;
    if (broken)
        blk_bitmaps_remove(disk->format, broken);
    return new_bitmap(disk, name, granularity_bits, &used->live, err);
}

static bool can_replace(const struct backup_disk *disk, const char *name)
{
    const struct blk_dirty_bitmap *bitmap = blk_bitmaps_find(disk->format, name);
    return blk_supports(disk->format, BLK_BITMAPS) &&
           (!bitmap || bitmap->inconsistent || !bitmap->enabled);
}

/* A bitmap that knows of every write since it began. */
static int get_recording(struct backup_disk *disk, const char *name,
                         struct blk_dirty_bitmap **bitmap, struct blk_error *err)
{
    int ret = blk_bitmaps_get_usable(disk->format, name, bitmap, err);
    if (ret < 0)
        return ret;
    if (!(*bitmap)->enabled)
        return blk_fail_why(err, EINVAL, "it is disabled, so it lacks later writes",
                            "bitmap '%s' of '%s'", name, disk->source_name);
    return 0;
}

static int take_bitmap(const struct backup_options *options, struct backup_disk *disk,
                       const char *name, struct blk_error *err)
{
    struct backup_bitmap *used = &disk->bitmaps[disk->bitmap_count];
    struct blk_error own = BLK_ERROR_INIT;

    int ret = get_recording(disk, name, &used->live, &own);
    if ((ret == -EINVAL || ret == -ENOENT) && options->full_if_broken && can_replace(disk, name))
        ret = replace_broken(options, disk, name, used, err);
    else if (ret < 0 && err)
        *err = own;
    if (ret < 0 || !used->live)
        return ret;
    ret = blk_dirty_bitmap_copy(used->live, &used->frozen, err);
    if (ret == 0)
        disk->bitmap_count++;
    return ret;
}

/* The union of what the bitmaps mark, at the finest of their granularities. */
static int make_mask(struct backup_disk *disk, struct blk_error *err)
{
    unsigned bits = BLK_BITMAP_MAX_GRANULARITY_BITS;
    for (size_t i = 0; i < disk->bitmap_count; i++)
        if (disk->bitmaps[i].frozen->granularity_bits < bits)
            bits = disk->bitmaps[i].frozen->granularity_bits;

    int ret = blk_dirty_bitmap_new("mask", disk->bytes, bits, &disk->mask, err);
    for (size_t i = 0; i < disk->bitmap_count && ret == 0; i++)
        blk_dirty_bitmap_merge(disk->mask, disk->bitmaps[i].frozen);
    return ret;
}

static int freeze_bitmaps(const struct backup_options *options, struct backup_disk *disk,
                          struct blk_error *err)
{
    int ret = 0;

    disk->bitmaps = blk_xcalloc(options->bitmaps.count, sizeof(*disk->bitmaps));
    for (size_t i = 0; i < options->bitmaps.count && ret == 0; i++)
        ret = take_bitmap(options, disk, options->bitmaps.items[i], err);
    if (ret == 0 && disk->mode == BACKUP_BITMAP)
        ret = make_mask(disk, err);
    struct blk_dirty_bitmap *started;
    if (ret == 0 && options->new_bitmap)
        ret = new_bitmap(disk, options->new_bitmap, 0, &started, err);
    /* From here on the bitmaps record what comes after the moment of this backup. */
    for (size_t i = 0; i < disk->bitmap_count && ret == 0 && options->sync != SYNC_NEVER; i++)
        blk_dirty_bitmap_clear_all(disk->bitmaps[i].live);
    return ret;
}

int backup_open_source(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    const struct backup_options *options = backup->options;
    bool writes = (options->bitmaps.count && options->sync != SYNC_NEVER) || options->new_bitmap ||
                  options->guest_io;
    unsigned flags = writes ? BLK_WRITABLE : 0;

    int ret = image_open(&options->source, disk->source_name, flags, options->source_cache,
                         &disk->source, err);
    if (ret < 0)
        return ret;
    disk->format = blk_skip_filters(disk->source);
    disk->mode = options->mode;
    disk->bytes = blk_size(disk->source);
    if (disk->mode == BACKUP_TOP)
        ret = blk_require(disk->format, BLK_BACKING, err, "the layers of '%s'", disk->source_name);
    if (ret < 0)
        return ret;
    ret = freeze_bitmaps(options, disk, err);
    if (ret < 0)
        return ret;
    ret = blk_id_new(&disk->id);
    return ret < 0 ? blk_fail(err, -ret, "making an id for the backup") : 0;
}

/* ---- the target ---- */

static int create_options(const struct backup_options *options, const struct blk_driver *driver,
                          const struct backup_disk *disk, struct blk_options *creation,
                          struct blk_error *err)
{
    struct option_tables tables;
    int ret = create_tables(driver, disk->target_name, &tables, err);
    if (ret < 0)
        return ret;
    ret = create_options_parse(&options->creation, &tables, creation, err);
    if (ret < 0)
        return ret;
    if (blk_options_get(creation, "size") || blk_options_get(creation, "backing_file"))
        return blk_fail_why(err, EINVAL,
                            "the size is that of the source, and --base names the backing file",
                            "creating '%s'", disk->target_name);
    if (disk->mode != BACKUP_FULL && !blk_driver_supports(driver, BLK_BACKING))
        return blk_fail_why(err, ENOTSUP, "the format cannot show what a partial backup leaves out",
                            "creating '%s' (%s)", disk->target_name, driver->name);
    if (disk->backing_name) {
        blk_options_set(creation, "backing_file", disk->backing_name);
        blk_options_set(creation, "backing_fmt", disk->backing_format);
    }
    blk_options_setf(creation, "size", "%" PRIu64, disk->bytes);
    return 0;
}

static int create_backup_target(const struct backup_options *options, struct backup_disk *disk,
                                struct blk_error *err)
{
    const struct blk_driver *driver = image_driver_of_new(options->target.format, err);

    if (!driver)
        return -EINVAL;
    int ret = 0;
    if (options->compressed)
        ret = blk_driver_require(driver, BLK_COMPRESSION, err, "creating '%s'", disk->target_name);
    if (ret < 0)
        return ret;

    const struct image_creation creation = {
        .name = disk->partial_name ? disk->partial_name : disk->target_name,
        .driver = driver,
        .options = blk_options_new(),
        .flags = BLK_WRITABLE | BLK_UNMAP,
        .cache = options->target_cache,
    };
    ret = create_options(options, driver, disk, creation.options, err);
    disk->target_begun = ret == 0;
    if (ret == 0)
        ret = image_create(&options->target, &creation, &disk->target, err);
    blk_options_free(creation.options);
    return ret;
}

static int open_target(const struct backup_options *options, struct backup_disk *disk,
                       struct blk_error *err)
{
    /* backup_check_existing() looks at the ids. */
    return image_open(&options->target, disk->target_name, BLK_WRITABLE | BLK_UNMAP | BLK_TRUST,
                      options->target_cache, &disk->target, err);
}

/*
 * A target that is larger would restore to a disk of another size, with what it held before at its
 * end. Only a device cannot help it: its size says nothing about the disk on it.
 */
static int check_size(const struct backup_disk *disk, struct blk_error *err)
{
    uint64_t bytes = blk_size(disk->target);
    struct stat st;

    if (bytes == disk->bytes)
        return 0;
    if (bytes > disk->bytes && !blk_supports(blk_skip_filters(disk->target), BLK_BACKING) &&
        stat(blk_bottom(disk->target)->name, &st) == 0 && S_ISBLK(st.st_mode))
        return 0;
    return blk_fail_why(err, bytes < disk->bytes ? ENOSPC : EINVAL,
                        bytes < disk->bytes
                            ? "it is smaller than the source"
                            : "it is larger than the source ('blkimg resize --shrink' shrinks it)",
                        "target '%s' with %" PRIu64 " bytes instead of %" PRIu64, disk->target_name,
                        bytes, disk->bytes);
}

static int open_backup_target(const struct backup_options *options, struct backup_disk *disk,
                              struct blk_error *err)
{
    int ret = check_no_dependents(&options->target, disk->target_name, err);
    if (ret == 0)
        ret = open_target(options, disk, err);
    if (ret == 0)
        ret = check_size(disk, err);
    if (ret == 0)
        ret = backup_check_existing(options, disk, err);
    disk->target_begun = ret == 0;
    return ret;
}

/* Marks what the source's own layer decides. */
static int mark_top(struct backup_disk *disk, struct blk_error *err)
{
    struct blk_node *base = blk_child(disk->format, BLK_ROLE_BACKING);
    struct blk_extent extent;

    for (uint64_t offset = 0; offset < disk->bytes; offset += extent.bytes) {
        if (blk_cancelled())
            return blk_fail_why(err, ECANCELED, "stopped by a signal", "reading the map of '%s'",
                                disk->source_name);
        int ret = blk_block_status_above(blk_layers(disk->source, base), offset,
                                         disk->bytes - offset, BLK_WANT_ZERO, &extent, err);
        if (ret < 0)
            return ret;
        /*
         * The zeroes behind the end of a base that is too short are this layer's: another base
         * need not have them.
         */
        if (extent.flags & BLK_EXT_ALLOCATED || (base && extent.flags & BLK_EXT_ZERO))
            blk_dirty_bitmap_set(disk->mask, offset, extent.bytes);
    }
    return 0;
}

/*
 * The mask of a partial backup, which is always whole clusters of the target: a part of one would
 * take the rest from the base, which may be another backup's, or not there.
 */
static int fit_mask(const struct backup_options *options, struct backup_disk *disk,
                    struct blk_error *err)
{
    uint64_t cluster_bytes;
    struct blk_dirty_bitmap *marked = disk->mask;
    unsigned bits = marked ? marked->granularity_bits : BLK_BITMAP_MIN_GRANULARITY_BITS;

    if (disk->mode == BACKUP_FULL)
        return 0;
    int ret = blk_cluster_bytes(disk->target, &cluster_bytes, err);
    if (ret == 0 && cluster_bytes > UINT64_C(1) << bits)
        bits = (unsigned)__builtin_ctzll(cluster_bytes);
    if (ret == 0 && (!marked || bits > marked->granularity_bits)) {
        struct blk_dirty_bitmap *fitted;
        bits = blk_dirty_bitmap_fit_granularity(disk->bytes, bits);
        ret = blk_dirty_bitmap_new("mask", disk->bytes, bits, &fitted, err);
        if (ret < 0)
            return ret;
        if (marked)
            blk_dirty_bitmap_merge(fitted, marked);
        blk_dirty_bitmap_free(marked);
        disk->mask = fitted;
    }
    if (ret == 0 && disk->mode == BACKUP_TOP)
        ret = mark_top(disk, err);
    if (ret == 0 && options->sync == SYNC_ALWAYS)
        ret = blk_dirty_bitmap_copy(disk->mask, &disk->remaining, err);
    return ret;
}

/* The target says which backup it is, where its format can. */
static void set_target_identity(struct backup_disk *disk)
{
    const struct blk_identity identity = { .backup = disk->id, .parent = disk->parent };

    blk_identity_set(blk_skip_filters(disk->target), &identity);
}

static int check_names(const struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    const struct backup_options *options = backup->options;

    disk->target_existed = stat(disk->target_name, &disk->target_before) == 0 || options->existing;
    if (!options->keep_failed)
        return 0;

    BLK_AUTOFREE char *partial = blk_xasprintf("%s.partial", disk->target_name);
    const char *taken = NULL;
    if (disk->target_existed)
        taken = disk->target_name;
    else if (access(partial, F_OK) == 0)
        taken = partial;
    if (taken)
        return blk_fail_why(err, EEXIST, "it exists, and --keep-failed needs a new name", "'%s'",
                            taken);
    disk->partial_name = blk_xstrdup(partial);
    return 0;
}

int backup_make_target(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    const struct backup_options *options = backup->options;

    int ret = check_names(backup, disk, err);
    if (ret < 0)
        return ret;
    ret = options->existing ? open_backup_target(options, disk, err)
                            : create_backup_target(options, disk, err);
    if (ret < 0)
        return ret;
    ret = fit_mask(options, disk, err);
    if (ret < 0)
        return ret;
    set_target_identity(disk);
    return 0;
}
