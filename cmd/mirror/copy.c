/* SPDX-License-Identifier: MIT */
/* The target of a mirror: created, filled and verified. */
#include <errno.h>
#include <inttypes.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/reopen.h"
#include "blockcore/jobs/copy/copy.h"
#include "cmd/common/backing.h"
#include "cmd/common/same_content.h"
#include "cmd/mirror/mirror.h"

/* ---- the copy ---- */

static const struct blk_driver *target_driver(const struct mirror *mirror, struct blk_error *err)
{
    const char *given = mirror->request->target.format;
    return image_driver_of_new(given ? given : blk_format_name(mirror->format), err);
}

/* A copy of the top layer has the backing file of the source. */
static void name_backing(const struct mirror *mirror, struct blk_options *creation)
{
    const struct mirror_request *request = mirror->request;
    struct blk_node *backing = blk_child(mirror->format, BLK_ROLE_BACKING);
    if (!request->top || !backing)
        return;
    BLK_AUTOFREE char *path =
        blk_resolve_backing_name(blk_bottom(mirror->format)->name, mirror->format->backing_name);
    BLK_AUTOFREE char *name = backing_name_for_header(request->target_name, path);
    blk_options_set(creation, "backing_file", name);
    blk_options_set(creation, "backing_fmt", blk_format_name(blk_skip_filters(backing)));
}

int mirror_make_target(struct mirror *mirror, struct blk_error *err)
{
    const struct mirror_request *request = mirror->request;
    const struct blk_driver *driver = target_driver(mirror, err);
    struct option_tables tables;

    int ret = driver ? create_tables(driver, request->target_name, &tables, err) : -EINVAL;
    if (ret < 0)
        return ret;
    if (request->top)
        ret = blk_driver_require(driver, BLK_BACKING, err, "creating '%s'", request->target_name);
    if (ret < 0)
        return ret;

    const struct image_creation creation = {
        .name = request->target_name,
        .driver = driver,
        .options = blk_options_new(),
        .flags = BLK_WRITABLE | BLK_UNMAP,
        .cache = request->target_cache,
    };
    ret = create_options_parse(&request->creation, &tables, creation.options, err);
    if (ret == 0) {
        name_backing(mirror, creation.options);
        blk_options_setf(creation.options, "size", "%" PRIu64, blk_size(mirror->source));
        ret = image_create(&request->target, &creation, &mirror->target, err);
    }
    blk_options_free(creation.options);
    return ret;
}

int mirror_copy(struct mirror *mirror, const struct blk_dirty_bitmap *mask, struct blk_error *err)
{
    const struct mirror_request *request = mirror->request;
    const struct blk_copy_params params = {
        .source = mirror->source,
        .target = mirror->target,
        .bytes = blk_size(mirror->source),
        .only_allocated = request->top && !mask,
        .base = blk_child(mirror->format, BLK_ROLE_BACKING),
        .mask = mask,
        .moved = &mirror->bytes_moved,
        /* What a mask marks may have been written before. */
        .target_reads_zero = mirror->target->reads_zero && !mask,
        .sparse_bytes = 4096,
        .compressed = request->compressed,
        .workers = request->workers,
        .bytes_per_second = request->bytes_per_second,
        .progress = progress_update,
        .opaque = &mirror->progress,
    };

    return params.bytes ? blk_copy_run(&params, err) : 0;
}

int mirror_prove_target(struct mirror *mirror, struct blk_error *err)
{
    const struct mirror_request *request = mirror->request;
    const struct blk_driver *driver = target_driver(mirror, err);
    struct image_args args = request->target;

    if (!driver)
        return -EINVAL;
    /* Never guessed: a guest may have written into a raw image what looks like another format. */
    args.format = driver->name;
    int ret =
        image_open(&args, request->target_name, 0, request->source_cache, &mirror->target, err);
    if (ret < 0)
        return ret;
    return prove_same_content(mirror->source, mirror->target, request->workers, err);
}

/* Only now: a copy that turns out wrong must not pass for that backup. */
int mirror_carry_identity(struct mirror *mirror, struct blk_error *err)
{
    struct blk_node *target = blk_skip_filters(mirror->target);
    struct blk_cache_mode cache, source_cache = mirror->target->cache;
    struct blk_identity identity;
    enum blk_copied copied = mirror->request->top ? BLK_COPIED_LAYER : BLK_COPIED_WHOLE;

    /* One of a newer form cannot be carried, and is no reason to fail. */
    if (blk_identity_of_copy(mirror->source, copied, &identity, NULL) < 0)
        return 0;
    identity.bitmap_count = 0; /* nor are the bitmaps copied */
    if (!blk_identity_fits(target) || blk_size(mirror->source) != blk_size(mirror->target) ||
        (blk_id_is_none(&identity.backup) && blk_id_is_none(&identity.parent)))
        return 0;
    int ret = image_cache(mirror->request->target_cache, &cache, err);
    if (ret == 0)
        ret = blk_reopen(mirror->target, true, cache, err);
    if (ret < 0)
        return ret;
    blk_identity_set(target, &identity);
    return blk_reopen(mirror->target, false, source_cache, err);
}
