/* SPDX-License-Identifier: MIT */
/*
 * blkimg rebase: gives an overlay another backing file, or none.
 *
 * In safe mode the guest's view stays what it is. First it is found out where the old and the new
 * backing file differ behind the overlay; there the overlay's own view is written into it, which
 * changes nothing for the guest whichever of the two shows elsewhere. Only when that is stable and
 * mapped does the header name the new one (change_backing sees to it), in one sector. So the image
 * can be read at any moment, and rebase can be run again.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/clock.h"
#include "blockcore/base/memory.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/backing.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/reopen.h"
#include "blockcore/graph/replace.h"
#include "blockcore/graph/status.h"
#include "blockcore/jobs/copy/copy.h"
#include "blockcore/jobs/difference.h"
#include "cmd/common/common.h"
#include "cmd/common/same_file.h"

static int rebase_main(int argc, char **argv);

const struct command cmd_rebase = {
    .name = "rebase",
    .summary = "Change the backing file of an overlay",
    .usage = "-b [-F] filename",
    .run = rebase_main,
};

#define WORKERS 4

/* The command line. */
struct rebase_request {
    struct image_args image;
    const char *filename;
    const char *backing, *backing_format; /* -b and -F; NULL or "": none */
    const char *cache, *source_cache;     /* -t and -T */
    bool unsafe, compressed, show_progress;
};

struct rebase {
    const struct rebase_request *request;
    struct blk_node *root;    /* the overlay; writable */
    struct blk_node *top;     /* root without filters */
    struct blk_node *backing; /* the new backing file until it is in the graph; NULL: none */
    struct blk_node *former;  /* the old one, once it is replaced */
    struct progress progress;
    uint64_t progress_base;   /* bytes of work done before the current pass */
    uint64_t different_bytes; /* what was written into the overlay */
    uint64_t bytes_moved;     /* of that, as data */
};

/* ---- opening ---- */

/* -T is for the backing files, old and new; -t for the overlay. */
static int open_overlay_once(struct rebase *rebase, struct blk_error *err)
{
    const struct rebase_request *request = rebase->request;
    unsigned flags = BLK_WRITABLE | BLK_UNMAP | (request->unsafe ? BLK_NO_BACKING : 0);
    struct image_args args = request->image;
    struct blk_cache_mode cache;

    args.force_share = false; /* it is for the backing files */
    int ret = image_cache(request->cache, &cache, err);
    if (ret < 0)
        return ret;
    ret = image_open(&args, request->filename, flags,
                     request->unsafe ? request->cache : request->source_cache, &rebase->root, err);
    if (ret < 0)
        return ret;
    rebase->top = blk_skip_filters(rebase->root);
    ret = blk_require(rebase->top, BLK_BACKING, err, "rebasing '%s'", rebase->root->name);
    if (ret < 0)
        return ret;
    return request->unsafe ? 0 : blk_reopen(rebase->root, true, cache, err);
}

static int open_overlay(struct rebase *rebase, struct blk_error *err)
{
    uint64_t start = blk_now_ns();
    int ret = open_overlay_once(rebase, err);
    while (ret == -EDEADLK) {
        ret = image_give_way(&rebase->request->image, start, &rebase->root, err);
        if (ret == 0)
            ret = open_overlay_once(rebase, err);
    }
    return ret;
}

static int open_new_backing(struct rebase *rebase, unsigned flags, struct blk_error *err)
{
    const struct rebase_request *request = rebase->request;
    struct blk_open how = {
        .filename = request->backing,
        .format = request->backing_format,
        .flags = flags,
    };

    int ret = image_cache(request->source_cache, &how.cache, err);
    if (ret < 0)
        return ret;
    if (request->image.force_share)
        how.flags |= BLK_FORCE_SHARE;
    return blk_open_new_backing(rebase->top, &how, &rebase->backing, err);
}

/*
 * A backing file without a format would be probed by whoever opens the image: what a guest writes
 * would decide.
 */
static int rebase_refuse_unnamed(struct rebase *rebase, struct blk_error *err)
{
    const char *name = rebase->request->backing;
    struct blk_error unreadable = BLK_ERROR_INIT;

    int ret = open_new_backing(rebase, BLK_NO_IO | BLK_NO_BACKING,
                               rebase->request->unsafe ? &unreadable : err);
    if (ret < 0 && !rebase->request->unsafe)
        return ret;
    BLK_AUTOFREE char *why =
        rebase->backing ? blk_xasprintf("backing format must be specified (-F); it looks like %s",
                                        blk_format_name(blk_skip_filters(rebase->backing)))
                        : blk_xstrdup("backing format must be specified (-F)");
    return blk_fail_why(err, EINVAL, why, "rebasing '%s' onto '%s'", rebase->root->name, name);
}

/* ---- the work ---- */

static void on_rebase_progress(void *opaque, uint64_t done, uint64_t total)
{
    struct rebase *rebase = opaque;
    (void)total;
    /* Two passes over the image: comparing and writing. */
    progress_update(&rebase->progress, rebase->progress_base + done, 2 * blk_size(rebase->root));
}

/* The unit in which the overlay can be written without reading anything for it. */
static int rebase_granularity(struct rebase *rebase, uint64_t bytes, unsigned *bits,
                              struct blk_error *err)
{
    uint64_t unit = rebase->top->limits.zero_alignment;

    int ret = rebase->request->compressed ? blk_cluster_bytes(rebase->root, &unit, err) : 0;
    if (ret < 0)
        return ret;
    *bits = BLK_BITMAP_MIN_GRANULARITY_BITS;
    while (*bits < BLK_BITMAP_MAX_GRANULARITY_BITS && UINT64_C(1) << *bits < unit)
        ++*bits;
    /* Huge images of tiny clusters: more is written than must be, but the marks fit into memory. */
    *bits = blk_dirty_bitmap_fit_granularity(bytes, *bits);
    return 0;
}

/* Marks where, within `bytes`, the two backing files differ; `behind` as in difference.h. */
static int find_differences(struct rebase *rebase, uint64_t bytes, struct blk_node *behind,
                            struct blk_dirty_bitmap **marks, struct blk_error *err)
{
    const struct blk_difference_params params = {
        .first = blk_child(rebase->top, BLK_ROLE_BACKING),
        .second = rebase->backing,
        .bytes = bytes,
        .behind = behind,
        .workers = WORKERS,
        .progress = behind ? on_rebase_progress : NULL,
        .opaque = rebase,
    };
    unsigned bits = 0;

    *marks = NULL;
    int ret = rebase_granularity(rebase, bytes, &bits, err);
    if (ret == 0)
        ret = blk_dirty_bitmap_new("rebase", bytes, bits, marks, err);
    return ret == 0 ? blk_difference_mark(&params, *marks, err) : ret;
}

/*
 * Internal snapshots show the backing file too, and what they hold cannot be changed: they are safe
 * only where the new one is like the old one.
 */
static int check_snapshots(struct rebase *rebase, struct blk_error *err)
{
    struct blk_node *top = rebase->top;
    struct blk_snapshot *list = NULL;
    struct blk_dirty_bitmap *marks = NULL;
    size_t count = 0;

    if (!blk_supports(top, BLK_SNAPSHOTS))
        return 0;
    int ret = blk_snapshot_list(rebase->root, &list, &count, err);
    uint64_t bytes = 0;
    for (size_t i = 0; i < count && ret == 0; i++)
        bytes = u64_max(bytes, list[i].disk_bytes ? list[i].disk_bytes : blk_size(top));
    blk_snapshots_free(list, count);

    if (ret == 0 && bytes)
        ret = find_differences(rebase, bytes, NULL, &marks, err);
    if (ret == 0 && marks && blk_dirty_bitmap_count(marks))
        ret = blk_fail_why(err, EINVAL,
                           "its internal snapshots depend on the old backing file, and the "
                           "new one differs; -u rebases anyway",
                           "rebasing '%s'", rebase->root->name);
    blk_dirty_bitmap_free(marks);
    return ret;
}

/* Writes the overlay's view of the marked ranges into the overlay itself. */
static int copy_up(struct rebase *rebase, const struct blk_dirty_bitmap *marks,
                   struct blk_error *err)
{
    const struct blk_copy_params params = {
        .source = rebase->root,
        .target = rebase->root,
        .bytes = blk_size(rebase->root),
        .mask = marks,
        .sparse_bytes = UINT64_C(1) << marks->granularity_bits,
        .compressed = rebase->request->compressed,
        .workers = WORKERS,
        .moved = &rebase->bytes_moved,
        .progress = on_rebase_progress,
        .opaque = rebase,
    };
    return blk_copy_run(&params, err);
}

/*
 * Sees that the overlay decides all of the range. Zeroes that were there anyway, behind the end of
 * a short backing file or without one, may have been left out where the format cannot mark them.
 */
static int fix_range(struct rebase *rebase, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    static const uint8_t zeroes[64 * 1024];
    int ret = 0;

    while (bytes && ret == 0) {
        struct blk_extent extent;
        ret = blk_block_status(rebase->top, offset, bytes, 0, &extent, err);
        if (ret < 0)
            break;
        uint64_t piece = extent.bytes;
        if (!(extent.flags & BLK_EXT_ALLOCATED)) {
            if (blk_cancelled())
                return blk_fail_why(err, ECANCELED, "stopped by a signal", "rebasing '%s'",
                                    rebase->root->name);
            piece = u64_min(piece, sizeof(zeroes));
            ret = blk_pwrite(rebase->root, offset, piece, zeroes, 0, err);
        }
        offset += piece;
        bytes -= piece;
    }
    return ret;
}

static int fix_zeroes(struct rebase *rebase, const struct blk_dirty_bitmap *marks,
                      struct blk_error *err)
{
    uint64_t at = 0, start, bytes;
    int ret = 0;

    while (ret == 0 && blk_dirty_bitmap_next(marks, at, blk_size(rebase->root), &start, &bytes)) {
        ret = fix_range(rebase, start, bytes, err);
        at = start + bytes;
    }
    return ret;
}

static int keep_view(struct rebase *rebase, struct blk_error *err)
{
    struct blk_dirty_bitmap *marks;
    uint64_t bytes = blk_size(rebase->root);

    int ret = bytes ? check_snapshots(rebase, err) : 0;
    if (!bytes || ret < 0)
        return ret;
    ret = find_differences(rebase, bytes, rebase->top, &marks, err);
    if (ret == 0)
        rebase->different_bytes = blk_dirty_bitmap_count(marks);
    if (ret == 0 && rebase->different_bytes) {
        rebase->progress_base = bytes;
        ret = copy_up(rebase, marks, err);
        if (ret == 0)
            ret = fix_zeroes(rebase, marks, err);
    }
    blk_dirty_bitmap_free(marks);
    if (ret == 0)
        ret = check_not_shrunk(rebase->root, err);
    if (ret == 0 && rebase->backing)
        ret = check_not_shrunk(rebase->backing, err);
    return ret;
}

/* The backing file that the header gets; NULL: none. */
static const char *new_name(const struct rebase_request *request)
{
    return request->backing && *request->backing ? request->backing : NULL;
}

/*
 * What can be known of the name beforehand: that the header has no room for it should not come out
 * after an hour of copying.
 */
static int check_name(struct rebase *rebase, struct blk_error *err)
{
    const struct rebase_request *request = rebase->request;
    const char *name = new_name(request);

    if (!name)
        return 0;
    BLK_AUTOFREE char *path = blk_resolve_backing_name(blk_bottom(rebase->root)->name, name);
    /* Else opening it finds that out, and longer loops too. */
    if (request->unsafe && blk_same_file(blk_bottom(rebase->root)->name, path))
        return blk_fail_why(err, EINVAL, "an image cannot be its own backing file", "rebasing '%s'",
                            rebase->root->name);
    return blk_can_change_backing(rebase->top, name, request->backing_format, err);
}

static int rebase_change_backing(struct rebase *rebase, struct blk_error *err)
{
    const struct rebase_request *request = rebase->request;
    const char *name = new_name(request);

    if (blk_cancelled())
        return blk_fail_why(err, ECANCELED, "stopped by a signal", "rebasing '%s'",
                            rebase->root->name);
    int ret = blk_change_backing(rebase->top, name, name ? request->backing_format : NULL, err);
    if (ret < 0)
        return ret;
    struct blk_node *former = blk_child(rebase->top, BLK_ROLE_BACKING);
    if (!former)
        return 0;
    blk_node_ref(former);
    rebase->former = former;
    return blk_graph_replace_node(rebase->root, former, rebase->backing, err);
}

/*
 * The image shows what it showed: it stays the backup that it is, made on what is below now. The
 * header says so in the write that names the new backing file.
 */
static int keep_identity(struct rebase *rebase, const struct blk_id *backup, struct blk_error *err)
{
    struct blk_identity now;

    int ret = blk_identity_of(rebase->top, &now, err);
    if (ret < 0)
        return ret;
    if (!blk_id_equal(&now.backup, backup)) {
        now.backup = *backup;
        blk_identity_set(rebase->top, &now);
    }
    return blk_identity_move(rebase->top, rebase->backing, err);
}

/* Copies what would change, so that the image shows on the new backing file what it shows now. */
static int move_over(struct rebase *rebase, struct blk_error *err)
{
    struct blk_identity before;

    int ret = blk_identity_of(rebase->top, &before, err);
    if (ret == 0)
        ret = keep_view(rebase, err);
    return ret < 0 ? ret : keep_identity(rebase, &before.backup, err);
}

/* An image that says what it was made on says from now on that it was made on the new one. */
static int adopt_parent(struct rebase *rebase, struct blk_error *err)
{
    struct blk_identity top, below;

    int ret = blk_identity_of(rebase->top, &top, err);
    if (ret == 0)
        ret = blk_identity_of(blk_skip_filters(rebase->backing), &below, err);
    if (ret < 0 || blk_id_is_none(&top.parent) ||
        (!blk_id_is_known(&top.parent) && blk_id_is_none(&below.backup)))
        return ret;
    return blk_identity_move(rebase->top, rebase->backing, err);
}

/* What tells the chain of a backing file, see blk_identity_look(); 0 where it cannot be opened. */
static uint64_t look_below(struct rebase *rebase, const char *name, const char *format)
{
    const struct blk_open how = {
        .filename = name,
        .format = format,
        .flags = BLK_FORCE_SHARE | BLK_TRUST,
        .cache = rebase->top->cache,
    };
    struct blk_error unreadable = BLK_ERROR_INIT;
    struct blk_node *backing;

    if (blk_open_new_backing(rebase->top, &how, &backing, &unreadable) < 0)
        return 0;
    uint64_t look = blk_identity_look(backing);
    blk_drop(backing);
    return look;
}

/*
 * Whether the image is known to show on the new backing file what it shows now: nothing changes but
 * how the file is called, or both are the same backup. *look: of the new one, 0 if not known.
 */
static bool is_same_below(struct rebase *rebase, const struct blk_identity *identity,
                          uint64_t *look)
{
    const char *name = new_name(rebase->request), *format = rebase->request->backing_format;
    const struct blk_node *top = rebase->top;

    *look = name ? look_below(rebase, name, format) : 0;
    if (!name || !top->backing_name)
        return !name && !top->backing_name;
    if (strcmp(name, top->backing_name) == 0 && top->backing_format &&
        strcmp(format, top->backing_format) == 0)
        return true;
    return *look && (*look == identity->below ||
                     *look == look_below(rebase, top->backing_name, top->backing_format));
}

/*
 * -u copies nothing, and no bitmap records what shows through another backing file: it cannot be
 * the source of an incremental backup any more. A backup that was complete by itself is another
 * disk; one that says what it was made on still holds its part.
 */
static int lose_unless_same(struct rebase *rebase, struct blk_error *err)
{
    struct blk_identity identity;
    uint64_t look;

    int ret = blk_identity_of(rebase->top, &identity, err);
    bool whole = ret == 0 && blk_id_is_none(&identity.parent);
    if (ret < 0 || (!identity.bitmap_count && (!whole || blk_id_is_none(&identity.backup))))
        return ret;
    if (!is_same_below(rebase, &identity, &look))
        return blk_identity_lose(rebase->top, whole, err);
    if (!look || look == identity.below || !identity.bitmap_count)
        return 0;
    identity.below = look;
    blk_identity_set(rebase->top, &identity);
    return 0;
}

/*
 * -u: the user says that the new backing file is right. Where it can be seen that it is another
 * backup than the one that the image was made on, that takes --trust. A file that is not there yet,
 * or cannot be read, is left to whoever reads the chain.
 */
static int check_new_backing(struct rebase *rebase, struct blk_error *err)
{
    struct blk_error unreadable = BLK_ERROR_INIT;

    if (open_new_backing(rebase, BLK_NO_IO | BLK_NO_BACKING | BLK_FORCE_SHARE, &unreadable) < 0)
        return 0;
    int ret =
        rebase->request->image.trust ? 0 : blk_identity_check(rebase->top, rebase->backing, err);
    if (ret == 0)
        ret = adopt_parent(rebase, err);
    blk_drop(rebase->backing);
    rebase->backing = NULL;
    return ret;
}

static int do_rebase(struct rebase *rebase, struct blk_error *err)
{
    const struct rebase_request *request = rebase->request;
    bool named = new_name(request);

    int ret = open_overlay(rebase, err);
    if (ret < 0)
        return ret;
    if (request->compressed)
        ret = blk_require(rebase->top, BLK_COMPRESSION, err, "compressing to '%s'",
                          rebase->root->name);
    if (ret < 0)
        return ret;
    if (named && !request->backing_format)
        ret = rebase_refuse_unnamed(rebase, err);
    if (ret < 0)
        return ret;
    ret = check_name(rebase, err);
    if (ret == 0 && request->unsafe)
        ret = lose_unless_same(rebase, err);
    if (ret < 0)
        return ret;
    if (named)
        ret = request->unsafe ? check_new_backing(rebase, err) : open_new_backing(rebase, 0, err);
    if (ret < 0)
        return ret;

    progress_start(&rebase->progress, request->show_progress);
    if (!request->unsafe)
        ret = move_over(rebase, err);
    if (ret == 0)
        ret = rebase_change_backing(rebase, err);
    progress_finish(&rebase->progress, ret == 0);
    return ret;
}

/* ---- the command ---- */

static json_t *rebase_describe(enum output_format format, const struct rebase *rebase)
{
    const struct rebase_request *request = rebase->request;
    json_t *result = result_new(format, &cmd_rebase, request->filename);

    result_set_text(result, "mode", request->unsafe ? "unsafe" : "safe");
    if (new_name(request)) {
        result_set_text(result, "backing-filename", request->backing);
        result_set_text(result, "backing-filename-format", request->backing_format);
    }
    result_set_bytes(result, "copied-bytes", rebase->different_bytes);
    result_set_bytes(result, "bytes", rebase->bytes_moved);
    return result;
}

static int rebase_image(const struct rebase_request *request, enum output_format format)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct rebase rebase = { .request = request };

    int status = do_rebase(&rebase, &err) < 0 ? report_error(&err) : EXIT_OK;
    struct blk_node *roots[] = { rebase.former, rebase.backing, rebase.root };
    return finish(status, roots, 3, rebase_describe(format, &rebase));
}

static int rebase_check_request(const struct rebase_request *request)
{
    struct blk_error err = BLK_ERROR_INIT;

    if (!request->backing && !request->unsafe)
        return report_usage(&cmd_rebase, "expects a backing file (-b) or -u");
    if (request->compressed && request->unsafe)
        return report_usage(&cmd_rebase, "-c and -u exclude each other: nothing is copied");
    if (request->backing_format && !image_driver(request->backing_format, &err))
        return report_error(&err);
    return EXIT_OK;
}

static int rebase_main(int argc, char **argv)
{
    struct rebase_request request = { .image = IMAGE_ARGS_INIT };
    enum output_format format = OUTPUT_HUMAN;
    bool quiet = false;
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&request.image),
        { 'b', "backing", CMD_STRING, &request.backing, "FILE",
          "the new backing file; \"\" for none" },
        { 'F', "backing-format", CMD_STRING, &request.backing_format, "FMT",
          "format of the backing file" },
        { 'u', "unsafe", CMD_FLAG, &request.unsafe, NULL,
          "change the name only; both must have the same content" },
        { 'c', "compress", CMD_FLAG, &request.compressed, NULL, "compress what is copied" },
        { 't', "cache", CMD_STRING, &request.cache, "CACHE", "cache mode of the image" },
        { 'T', "source-cache", CMD_STRING, &request.source_cache, "CACHE",
          "cache mode of the backing files" },
        { 'p', "progress", CMD_FLAG, &request.show_progress, NULL, "show the progress" },
        { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
        RESULT_OPTION(&format),
        CMD_OPTIONS_END,
    };

    int status = cmd_parse_image(&cmd_rebase, options, argc, argv, &request.filename);
    if (status != CMD_RUN)
        return status;
    request.show_progress = request.show_progress && !quiet && format == OUTPUT_HUMAN;
    status = rebase_check_request(&request);
    return status ? status : rebase_image(&request, format);
}
