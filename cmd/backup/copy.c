/* SPDX-License-Identifier: MIT */
/* Moving the data of one disk, and reading it back. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"
#include "blockcore/jobs/checksum.h"
#include "blockcore/jobs/copy/copy.h"
#include "blockcore/jobs/difference.h"
#include "blockcore/jobs/digest.h"
#include "cmd/backup/backup.h"
#include "cmd/common/same_file.h"

/* Written at once where explicit zeroes are needed. */
#define GAP_BYTES (64 * KIB)

struct disk_progress {
    struct backup *backup;
    uint64_t before; /* done by disks before this one */
};

static void on_backup_progress(void *opaque, uint64_t done, uint64_t total)
{
    struct disk_progress *progress = opaque;
    struct backup *backup = progress->backup;
    (void)total;
    progress_update(&backup->progress, progress->before + done, backup->progress_total);
}

/* A full backup reads everything anyway: its digest comes from what is copied. */
static int copy_with_digest(struct blk_copy_params *params, struct backup_disk *disk,
                            struct blk_error *err)
{
    uint8_t digest[BLK_DIGEST_BYTES];

    int ret = blk_digest_begin(params->bytes, &params->digest, err);
    if (ret < 0)
        return ret;
    ret = params->bytes ? blk_copy_run(params, err) : 0;
    if (ret == 0)
        ret = blk_digest_finish(params->digest, digest, err);
    blk_digest_free(params->digest);
    if (ret == 0)
        blk_digest_to_hex(digest, disk->digest);
    return ret;
}

/* A partial one does not: the digest is that of the whole disk, which has to be read for it. */
static int digest_source(const struct backup_options *options, struct backup_disk *disk,
                         struct blk_error *err)
{
    const struct blk_checksum_params params = {
        .node = disk->source,
        .workers = options->workers,
    };
    uint8_t digest[BLK_DIGEST_BYTES];

    int ret = blk_checksum(&params, digest, err);
    if (ret == 0)
        blk_digest_to_hex(digest, disk->digest);
    return ret;
}

static int copy_disk(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    const struct backup_options *options = backup->options;
    struct disk_progress progress = { .backup = backup, .before = backup->progress_done };
    bool whole = disk->mode == BACKUP_FULL;
    struct blk_copy_params params = {
        .source = disk->source,
        .target = disk->target,
        .bytes = disk->bytes,
        .mask = disk->mask,
        .moved = &disk->bytes_copied,
        .remaining = disk->remaining,
        /* In a partial backup a zero is a statement: it must hide what the base has. */
        .target_reads_zero = whole && disk->target->reads_zero,
        .sparse_bytes = 4096,
        .compressed = options->compressed,
        .share = true,
        .workers = options->workers,
        .bytes_per_second = options->bytes_per_second,
        .progress = on_backup_progress,
        .opaque = &progress,
    };

    int ret = 0;
    if (options->checksum && whole)
        ret = copy_with_digest(&params, disk, err);
    else if (disk->bytes)
        ret = blk_copy_run(&params, err);
    if (ret == 0 && options->checksum && !whole)
        ret = digest_source(options, disk, err);
    return ret;
}

/*
 * A target without a backing file reads as zeroes where nothing was written, and its format may
 * have left it at that. What was to be zero must stay so when the target is put on a base, so it is
 * written.
 */
static int fill_gaps(struct backup_disk *disk, struct blk_error *err)
{
    struct blk_node *target = blk_skip_filters(disk->target);
    struct blk_dirty_cursor marked = { .bitmap = disk->mask, .end = disk->bytes };
    uint64_t offset = 0, bytes;
    int ret = 0;

    if (!disk->mask || !blk_supports(target, BLK_BACKING) || blk_child(target, BLK_ROLE_BACKING))
        return 0;
    BLK_AUTOFREE uint8_t *zeroes = blk_buffer_alloc(GAP_BYTES);
    if (!zeroes)
        return blk_fail(err, ENOMEM, "copying to '%s'", disk->target_name);
    memset(zeroes, 0, GAP_BYTES);
    while (ret == 0 && offset < disk->bytes) {
        struct blk_extent extent;
        if (!blk_dirty_cursor_look(&marked, offset, &bytes)) {
            offset += bytes;
            continue;
        }
        if (blk_cancelled())
            return blk_fail_why(err, ECANCELED, "stopped by a signal", "copying to '%s'",
                                disk->target_name);
        ret = blk_block_status(target, offset, bytes, 0, &extent, err);
        if (ret < 0)
            break;
        if (!(extent.flags & BLK_EXT_ALLOCATED)) {
            extent.bytes = u64_min(extent.bytes, GAP_BYTES);
            ret = blk_pwrite(disk->target, offset, extent.bytes, zeroes, 0, err);
            disk->bytes_copied += extent.bytes;
        }
        offset += extent.bytes;
    }
    return ret;
}

int backup_copy(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    int ret = backup->options->guest_io ? backup_copy_with_guest(backup, disk, err)
                                        : copy_disk(backup, disk, err);
    if (ret == 0)
        ret = fill_gaps(disk, err);
    if (ret == 0)
        ret = check_not_shrunk(disk->source, err);
    backup->progress_done += disk->bytes;
    return ret;
}

/* ---- --verify ---- */

static int compare_target(const struct backup *backup, const struct backup_disk *disk,
                          struct blk_node *target, struct blk_error *err)
{
    const struct blk_difference_params params = {
        .first = disk->source,
        .second = target,
        .bytes = disk->bytes,
        .mask = disk->mask,
        .workers = backup->options->workers,
    };
    uint64_t offset;
    bool differs;

    int ret = blk_difference_find(&params, &differs, &offset, err);
    if (ret < 0)
        return ret;
    if (differs)
        return blk_fail_why(err, EIO, "its content is not what was written",
                            "verifying '%s' from offset %" PRIu64, target->name, offset);
    return 0;
}

int backup_verify(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    const struct backup_options *options = backup->options;
    const char *name = disk->partial_name ? disk->partial_name : disk->target_name;
    struct blk_node *target;

    /* What a partial target holds is compared, and it need not have its base yet. */
    bool part = disk->mask && !disk->backing_name;
    int ret = image_open(&options->target, name, part ? BLK_TRUST : 0, options->target_cache,
                         &target, err);
    if (ret < 0)
        return ret;
    ret = compare_target(backup, disk, target, err);
    int closed = blk_close(target, NULL, ret < 0 ? NULL : err);
    return ret < 0 ? ret : closed;
}
