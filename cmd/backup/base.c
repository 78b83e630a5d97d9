/* SPDX-License-Identifier: MIT */
/*
 * The base of a partial backup: an earlier backup that the target becomes an overlay of (--base),
 * or what an existing target holds (-n). A wrong one would silently restore garbage, so it has to
 * be the backup from which one of the bitmaps counts, by the ids that both files carry, or one that
 * builds on that (between.c). For --mode=top it may also be the source's own backing file.
 */
#include <errno.h>
#include <inttypes.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/status.h"
#include "cmd/backup/backup.h"
#include "cmd/common/backing.h"

/* Whether any of the bitmaps counts from that backup. A union covers what each of them does. */
static bool continues_bitmap(const struct blk_identity *source, const struct backup_disk *disk,
                             const struct blk_id *base)
{
    for (size_t i = 0; i < disk->bitmap_count; i++) {
        const struct blk_id *since = blk_identity_since(source, disk->bitmaps[i].live->name);
        if (since && blk_id_equal(since, base))
            return true;
    }
    return false;
}

/* The nearest layer below `node` that a bitmap counts from: *found, NULL if there is none. */
static int find_older(const struct blk_identity *source, const struct backup_disk *disk,
                      struct blk_node *node, struct blk_node **found, struct blk_error *err)
{
    struct blk_identity below;
    int ret = 0;

    *found = blk_child(node, BLK_ROLE_BACKING);
    while (*found) {
        node = blk_skip_filters(*found);
        ret = blk_identity_of(node, &below, err);
        if (ret < 0 || continues_bitmap(source, disk, &below.backup))
            break;
        *found = blk_child(node, BLK_ROLE_BACKING);
    }
    return ret;
}

/* The base is none of those that the bitmaps count from. */
static int refuse(const struct blk_identity *source, const struct backup_disk *disk,
                  const struct blk_node *node, const struct blk_id *base, const char *what,
                  struct blk_error *err)
{
    char id[BLK_ID_TEXT_BYTES], since[BLK_ID_TEXT_BYTES];
    const char *name = disk->bitmap_count ? disk->bitmaps[0].live->name : NULL;
    const struct blk_id *counted = name ? blk_identity_since(source, name) : NULL;

    blk_id_format(base, id);
    if (counted)
        blk_id_format(counted, since);
    BLK_AUTOFREE char *bitmap = !name ? blk_xstrdup("no bitmap is given")
                                : counted
                                    ? blk_xasprintf("bitmap '%s' counts from %s", name, since)
                                    : blk_xasprintf("bitmap '%s' counts from no backup", name);
    BLK_AUTOFREE char *why =
        blk_xasprintf("it is not the backup that the bitmaps count from: it is %s, and %s (--trust "
                      "uses it anyway)",
                      id, bitmap);
    return blk_fail_why(err, EINVAL, why, "%s '%s' for '%s'", what, node->name, disk->source_name);
}

static bool is_backing_of_source(const struct backup_disk *disk, struct blk_node *node)
{
    struct blk_node *backing = blk_child(disk->format, BLK_ROLE_BACKING);
    return disk->mode == BACKUP_TOP && backing &&
           blk_same_file(blk_bottom(backing)->name, blk_bottom(node)->name);
}

/*
 * Whether the backup may be put on `node`, which has the identity `below`; `what` it is to the
 * backup.
 */
static int check_identity(const struct backup_options *options, struct backup_disk *disk,
                          struct blk_node *node, const struct blk_identity *below, const char *what,
                          struct blk_error *err)
{
    struct blk_identity source;

    if (options->source.trust || is_backing_of_source(disk, node))
        return 0;
    if (blk_id_is_none(&below->backup))
        return blk_fail_why(err, EINVAL,
                            "it does not say which backup it is (--trust uses it anyway)",
                            "%s '%s'", what, node->name);
    int ret = blk_identity_of(disk->format, &source, err);
    if (ret < 0 || continues_bitmap(&source, disk, &below->backup))
        return ret;
    struct blk_node *older = NULL;
    if (disk->mode == BACKUP_BITMAP)
        ret = find_older(&source, disk, node, &older, err);
    if (ret < 0)
        return ret;
    return older ? backup_mark_between(disk, node, older, err)
                 : refuse(&source, disk, node, &below->backup, what, err);
}

/*
 * Without a base the target says at least what it would have to be put on, and if that is not known
 * that there is something, so that it does not pass for a full one.
 */
static int note_parent(struct backup_disk *disk, struct blk_error *err)
{
    struct blk_identity source;

    if (disk->mode == BACKUP_TOP && !blk_child(disk->format, BLK_ROLE_BACKING))
        return 0;
    int ret = blk_identity_of(disk->format, &source, err);
    for (size_t i = 0; i < disk->bitmap_count && ret == 0; i++) {
        const struct blk_id *since = blk_identity_since(&source, disk->bitmaps[i].live->name);
        if (since && blk_id_is_none(&disk->parent))
            disk->parent = *since;
    }
    if (blk_id_is_none(&disk->parent))
        disk->parent = blk_id_unknown;
    return ret;
}

/* What replaces a file of the base's chain would be put on itself, or break another disk's. */
static int check_targets_apart(const struct backup *backup, struct blk_node *base,
                               struct blk_error *err)
{
    for (struct blk_node *node = base; node;
         node = blk_child(blk_skip_filters(node), BLK_ROLE_BACKING))
        for (size_t i = 0; i < backup->count; i++)
            if (blk_same_file(blk_bottom(node)->name, backup->disks[i].target_name))
                return blk_fail_why(err, EINVAL, "it would be overwritten",
                                    "the target '%s' is '%s', a part of the base '%s'",
                                    backup->disks[i].target_name, blk_bottom(node)->name,
                                    base->name);
    return 0;
}

int backup_check_base(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    const struct backup_options *options = backup->options;
    struct image_args args = {
        .format = options->base_format,
        .lock_wait = options->target.lock_wait,
        .trust = options->source.trust,
    };
    struct blk_identity identity;
    struct blk_node *root;

    if (options->existing)
        return 0;
    if (disk->mode == BACKUP_FULL)
        return 0; /* a broken bitmap may have made it a full backup, which needs no base */
    if (!disk->base)
        return note_parent(disk, err);
    if (blk_same_file(disk->base, disk->target_name))
        return blk_fail_why(err, EINVAL, "it is also the target, and would be overwritten",
                            "base '%s'", disk->base);
    int ret = image_open(&args, disk->base, 0, NULL, &root, err);
    if (ret < 0)
        return ret;
    struct blk_node *base = blk_skip_filters(root);
    ret = check_targets_apart(backup, root, err);
    if (ret == 0)
        ret = blk_identity_of(base, &identity, err);
    if (ret == 0)
        ret = check_identity(options, disk, base, &identity, "base", err);
    if (ret < 0) {
        blk_drop(root);
        return ret;
    }
    disk->parent = identity.backup;
    disk->backing_name = backing_name_for_header(disk->target_name, disk->base);
    disk->backing_format = blk_xstrdup(blk_format_name(base));
    return blk_close(root, NULL, err);
}

/* Data in the layer of `node` itself would show through next to the backup. */
static int check_empty(struct blk_node *node, struct blk_error *err)
{
    struct blk_extent extent;

    for (uint64_t offset = 0; offset < blk_size(node); offset += extent.bytes) {
        int ret = blk_block_status(node, offset, blk_size(node) - offset, 0, &extent, err);
        if (ret < 0)
            return ret;
        if (extent.flags & BLK_EXT_ALLOCATED)
            return blk_fail_why(err, EINVAL,
                                "it is not a backup, and holds data of its own (--trust uses it "
                                "anyway)",
                                "target '%s' at offset %" PRIu64, node->name, offset);
    }
    return 0;
}

/* The target was opened unchecked: one without its base yet can be brought up to date, too. */
static int check_links(struct blk_node *node, struct blk_error *err)
{
    struct blk_node *below = blk_child(node, BLK_ROLE_BACKING);
    int ret = 0;

    while (below && ret == 0) {
        ret = blk_identity_check(node, below, err);
        node = blk_skip_filters(below);
        below = blk_child(node, BLK_ROLE_BACKING);
    }
    return ret;
}

int backup_check_existing(const struct backup_options *options, struct backup_disk *disk,
                          struct blk_error *err)
{
    struct blk_node *node = blk_skip_filters(disk->target);
    struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    struct blk_identity identity;

    if (disk->mode == BACKUP_FULL)
        return 0;
    int ret = options->source.trust ? 0 : check_links(node, err);
    if (ret < 0)
        return ret;
    ret = blk_identity_of(node, &identity, err);
    if (ret < 0)
        return ret;
    /* It is the last backup, to be brought up to date: what it builds on stays. */
    disk->parent = identity.parent;
    /* Or an empty overlay of the last backup. */
    if (blk_id_is_none(&identity.backup) && backing) {
        ret = options->source.trust ? 0 : check_empty(node, err);
        if (ret < 0)
            return ret;
        node = blk_skip_filters(backing);
        ret = blk_identity_of(node, &identity, err);
        disk->parent = identity.backup;
    }
    return ret < 0 ? ret : check_identity(options, disk, node, &identity, "target", err);
}
