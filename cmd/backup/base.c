/*
 * --base: the target becomes an overlay on an earlier backup. A wrong one would restore garbage without a word, so it has
 * to be the backup from which one of the bitmaps counts, by the ids that both files carry.
 */
#include <errno.h>

#include "blockcore/memory.h"
#include "cmd/backup/backup.h"
#include "cmd/common/backing_name.h"

/* Whether any of the bitmaps counts from that backup. A union covers what each of them does. */
static bool continues(const struct blk_identity *source, const struct backup_disk *disk,
                      const struct blk_id *base)
{
    for (size_t i = 0; i < disk->bitmap_count; i++) {
        const struct blk_id *since = blk_identity_since(source, disk->bitmaps[i].live->name);
        if (since && blk_id_equal(since, base))
            return true;
    }
    return false;
}

static int identity_of(struct blk_node *node, struct blk_identity *identity, struct blk_error *err)
{
    *identity = (struct blk_identity){ .bitmap_count = 0 };
    return node->driver->identity_get ? node->driver->identity_get(node, identity, err) : 0;
}

static int check_identity(const struct backup_options *options, struct backup_disk *disk,
                          struct blk_node *base, struct blk_error *err)
{
    struct blk_identity of_base, of_source;

    int ret = identity_of(base, &of_base, err);
    if (ret == 0)
        ret = identity_of(disk->format, &of_source, err);
    if (ret < 0)
        return ret;
    disk->parent = of_base.backup;
    if (options->trust)
        return 0;
    if (blk_id_is_none(&of_base.backup))
        return blk_fail_why(err, EINVAL, "it does not say which backup it is (--trust takes it as it is)",
                            "base '%s'", options->base);
    if (!continues(&of_source, disk, &of_base.backup))
        return blk_fail_why(err, EINVAL, "it is not the backup that the bitmaps count from "
                            "(--trust takes it all the same)", "base '%s' for '%s'", options->base,
                            disk->source_name);
    return 0;
}

int backup_check_base(const struct backup_options *options, struct backup_disk *disk,
                      struct blk_error *err)
{
    struct image_args args = { .format = options->base_format, .lock_wait = options->target.lock_wait };
    struct blk_node *root;

    if (disk->mode == BACKUP_FULL)
        return 0; /* a broken bitmap made it a full backup, which needs no base */
    int ret = image_open(&args, options->base, 0, NULL, &root, err);
    if (ret < 0)
        return ret;
    struct blk_node *base = blk_skip_filters(root);
    ret = check_identity(options, disk, base, err);
    if (ret == 0) {
        disk->backing_name = backing_name_for_header(disk->target_name, options->base);
        disk->backing_format = blk_xstrdup(base->driver->name);
    }
    if (ret < 0) {
        blk_drop(root);
        return ret;
    }
    return blk_close(root, NULL, err);
}
