/* SPDX-License-Identifier: MIT */
/*
 * The order of the steps makes the status true: copy everything, check that no source became
 * shorter, close the sources, and only then close the target, which flushes and publishes it. If
 * anything fails before that, a new target never appears and an old one stays.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/options.h"
#include "blockcore/graph/pieces.h"
#include "blockcore/jobs/copy/copy.h"
#include "cmd/common/backing.h"
#include "cmd/common/dependents.h"
#include "cmd/common/same_file.h"
#include "cmd/convert/convert.h"

struct conversion {
    const struct convert_options *options;
    const struct convert_sources *sources;
    struct blk_node *target;
    uint64_t cluster_bytes; /* of a target that is written compressed; else 1 */
    struct progress progress;
    uint64_t done;        /* by the copies that have ended */
    uint64_t start;       /* of the input that is being copied, in the joined inputs */
    uint64_t bytes_moved; /* read and written */
    struct convert_salvaged salvaged;
};

/* ---- the target ---- */

static int check_compression(const struct convert_options *o, const struct blk_driver *driver,
                             const struct blk_options *creation, struct blk_error *err)
{
    if (!o->compressed)
        return 0;
    int ret = blk_driver_require(driver, BLK_COMPRESSION, err, "compressing to '%s'", o->output);
    if (ret < 0)
        return ret;
    const char *prealloc = creation ? blk_options_peek(creation, "preallocation") : NULL;
    if (prealloc && strcmp(prealloc, "off") != 0)
        return blk_fail_why(err, EINVAL, "compressed clusters cannot be preallocated",
                            "compressing with preallocation '%s'", prealloc);
    return 0;
}

/* The message says what the backing file looks like, but nothing relies on a guess. */
static int convert_refuse_unnamed(const struct convert_options *o, struct blk_error *err)
{
    BLK_AUTOFREE char *name = blk_resolve_backing_name(o->output, o->backing);
    struct image_args args = { .lock_wait = o->source.lock_wait };
    struct blk_node *backing;

    int ret = image_open(&args, name, BLK_NO_IO | BLK_NO_BACKING, NULL, &backing, err);
    if (ret < 0)
        return ret;
    BLK_AUTOFREE char *why =
        blk_xasprintf("backing format must be specified (-F); it looks like %s",
                      blk_format_name(blk_skip_filters(backing)));
    blk_drop(backing);
    return blk_fail_why(err, EINVAL, why, "backing file '%s'", o->backing);
}

/*
 * A target that is written in place is lost as soon as writing starts, so errors must show before.
 */
static int convert_look_at_backing(const struct convert_options *o, const char *name,
                                   struct blk_error *err)
{
    struct image_args args = { .format = o->backing_format,
                               .lock_wait = o->target.lock_wait,
                               .trust = o->target.trust };
    struct blk_node *backing;

    int ret = backing_open(&args, name, 0, o->output, &backing, err);
    return ret < 0 ? ret : blk_close(backing, NULL, err);
}

/* -B and -F become creation options; those given with -o count as -B and -F. */
static int read_backing(struct convert_options *o, const struct option_tables *tables,
                        struct blk_options *creation, struct blk_error *err)
{
    if (o->backing)
        blk_options_set(creation, "backing_file", o->backing);
    if (o->backing_format)
        blk_options_set(creation, "backing_fmt", o->backing_format);
    o->backing = blk_options_peek(creation, "backing_file");
    o->backing_format = blk_options_peek(creation, "backing_fmt");

    if (!o->backing && o->backing_format)
        return blk_fail_why(err, EINVAL, "no backing file is given (-B)",
                            "creating '%s' with a backing format", o->output);
    if (!o->backing)
        return 0;
    int ret = blk_driver_require(blk_driver_find(tables->format), BLK_BACKING, err,
                                 "creating '%s' over '%s'", o->output, o->backing);
    if (ret < 0)
        return ret;
    if (!o->backing_format)
        return convert_refuse_unnamed(o, err);
    if (o->input_count > 1)
        return blk_fail_why(err, EINVAL, "a backing file needs a single input",
                            "creating '%s' over a backing file", o->output);
    BLK_AUTOFREE char *name = blk_resolve_backing_name(o->output, o->backing);
    if (blk_same_file(o->output, name))
        return blk_fail_why(err, EINVAL, "it cannot be its own backing file", "creating '%s'",
                            o->output);
    return convert_look_at_backing(o, name, err);
}

/* The flags of the target's node: zeroes may become holes unless -S 0 says otherwise. */
static unsigned target_flags(const struct convert_options *o)
{
    return BLK_WRITABLE | (o->sparse_bytes ? BLK_UNMAP : 0);
}

static int create_with(const struct convert_options *o, const struct blk_driver *driver,
                       struct blk_options *creation, uint64_t bytes, struct blk_node **target,
                       struct blk_error *err)
{
    blk_options_setf(creation, "size", "%" PRIu64, bytes);
    const struct image_creation what = {
        .name = o->output,
        .driver = driver,
        .options = creation,
        .flags = target_flags(o),
        .cache = o->target_cache,
    };
    return image_create(&o->target, &what, target, err);
}

/* Checks all that can be checked about the target, options included, before an input is opened. */
static int prepare_creation(struct convert_options *o, const struct blk_driver **driver,
                            struct blk_options *creation, struct blk_error *err)
{
    struct option_tables tables;

    *driver = image_driver_of_new(o->target.format, err);
    if (!*driver)
        return -EINVAL;
    int ret = create_tables(*driver, o->output, &tables, err);
    if (ret < 0)
        return ret;
    ret = create_options_parse(&o->creation, &tables, creation, err);
    if (ret < 0)
        return ret;
    ret = read_backing(o, &tables, creation, err);
    if (ret < 0)
        return ret;
    return check_compression(o, *driver, creation, err);
}

static int open_convert_target(const struct convert_options *o, uint64_t bytes,
                               struct blk_node **target, struct blk_error *err)
{
    int ret = check_no_dependents(&o->target, o->output, err);
    if (ret < 0)
        return ret;
    ret = image_open(&o->target, o->output, target_flags(o), o->target_cache, target, err);
    if (ret < 0)
        return ret;
    struct blk_node *format = blk_skip_filters(*target);
    ret = check_compression(o, blk_driver_find(blk_format_name(format)), NULL, err);
    if (ret < 0)
        return ret;
    if (blk_size(*target) < bytes)
        return blk_fail_why(err, ENOSPC, "it is smaller than the source",
                            "target '%s' with %" PRIu64 " bytes instead of %" PRIu64, o->output,
                            blk_size(*target), bytes);
    if (o->target_is_zero && blk_child(format, BLK_ROLE_BACKING))
        return blk_fail_why(err, EINVAL, "it has a backing file", "--target-is-zero with '%s'",
                            o->output);
    return 0;
}

/* ---- copying ---- */

static void on_convert_progress(void *opaque, uint64_t done, uint64_t total)
{
    struct conversion *c = opaque;
    (void)total;
    progress_update(&c->progress, c->done + done, convert_total(c->sources));
}

static void on_salvaged(void *opaque, uint64_t offset, uint64_t bytes, const struct blk_error *why)
{
    struct conversion *c = opaque;
    convert_salvaged_add(&c->salvaged, c->start + offset, bytes, why);
}

/* Copies the part [start, end) of input `i`; offsets are those of the joined images. */
static int copy_part(struct conversion *c, size_t i, uint64_t start, uint64_t end, bool reads_zero,
                     struct blk_error *err)
{
    const struct convert_options *o = c->options;
    struct blk_node *source = c->sources->roots[i];
    struct blk_node *base = blk_child(blk_skip_filters(source), BLK_ROLE_BACKING);
    if (start >= end)
        return 0;

    struct blk_copy_params params = {
        .source = source,
        .source_offset = start - c->sources->starts[i],
        .target = c->target,
        .target_offset = start,
        .bytes = end - start,
        /* The target's backing file takes the place of the source's, if there is one. */
        .only_allocated = o->backing && base,
        .base = base,
        .target_reads_zero = reads_zero,
        .sparse_bytes = o->sparse_bytes,
        .compressed = o->compressed,
        .allow_copy_range = o->copy_range,
        .share = o->share,
        .in_order = !o->out_of_order,
        .salvage = o->salvage,
        .workers = o->workers,
        .moved = &c->bytes_moved,
        .bytes_per_second = o->bytes_per_second,
        .progress = on_convert_progress,
        .opaque = c,
        .salvaged = on_salvaged,
    };
    c->start = c->sources->starts[i];
    int ret = blk_copy_run(&params, err);
    c->done += end - start;
    return ret;
}

/* A cluster that must be written as a whole, being compressed, but belongs to several inputs. */
static int copy_joint(struct conversion *c, uint64_t offset, bool reads_zero, struct blk_error *err)
{
    uint64_t bytes = u64_min(c->cluster_bytes, convert_total(c->sources) - offset);
    void *buf = blk_buffer_alloc(bytes);
    if (!buf)
        return blk_fail(err, ENOMEM, "copying to '%s'", c->target->name);

    int ret = convert_read(c->sources, offset, bytes, buf, err);
    if (ret == 0 && c->options->sparse_bytes && bytes_are_zero(buf, bytes))
        ret = reads_zero ? 0 : blk_write_zeroes(c->target, offset, bytes, BLK_REQ_MAY_UNMAP, err);
    else if (ret == 0)
        ret = blk_write_compressed(c->target, offset, bytes, buf, err);
    c->done += bytes;
    free(buf);
    return ret;
}

/*
 * Where the part of the target that reads as zeroes starts: at 0 in a new image without a backing
 * file, at the end of a shorter backing file, nowhere in an image that existed.
 */
static uint64_t zero_from(const struct conversion *c)
{
    const struct convert_options *o = c->options;
    uint64_t total = convert_total(c->sources);

    if (o->target_is_zero || (!o->no_create && c->target->reads_zero))
        return 0;
    struct blk_node *backing = blk_child(blk_skip_filters(c->target), BLK_ROLE_BACKING);
    if (o->no_create || !backing)
        return total;
    /* Rounded to a chunk of the engine, so that no cluster is split. */
    return u64_min(round_up(blk_size(backing), 2 * MIB), total);
}

static int copy_inputs(struct conversion *c, struct blk_error *err)
{
    const struct convert_sources *sources = c->sources;
    uint64_t zero = zero_from(c), at = 0;
    int ret = 0;

    for (size_t i = 0; i < sources->count && ret == 0; i++) {
        /* Only the last input may end within a cluster; others share it with the next. */
        uint64_t end = sources->starts[i + 1];
        uint64_t own_end = i + 1 == sources->count ? end : round_down(end, c->cluster_bytes);
        if (at < own_end) {
            ret = copy_part(c, i, at, u64_min(own_end, u64_max(at, zero)), false, err);
            if (ret == 0)
                ret = copy_part(c, i, u64_max(at, zero), own_end, true, err);
            at = own_end;
        }
        if (ret == 0 && at < end) {
            ret = copy_joint(c, at, at >= zero, err);
            at = u64_min(at + c->cluster_bytes, convert_total(sources));
        }
    }
    return ret;
}

static int find_cluster(struct conversion *c, struct blk_error *err)
{
    c->cluster_bytes = 1;
    if (!c->options->compressed)
        return 0;
    int ret = blk_cluster_bytes(c->target, &c->cluster_bytes, err);
    c->cluster_bytes = u64_max(c->cluster_bytes, 1);
    return ret;
}

static int copy_and_check(struct conversion *c, struct blk_error *err)
{
    int ret = find_cluster(c, err);
    if (ret < 0)
        return ret;

    progress_start(&c->progress, c->options->progress);
    ret = copy_inputs(c, err);
    for (size_t i = 0; i < c->sources->count && ret == 0; i++)
        ret = check_not_shrunk(c->sources->roots[i], err);
    progress_finish(&c->progress, ret == 0);
    convert_salvaged_end(&c->salvaged, c->options->quiet);
    return ret;
}

/* ---- the steps ---- */

/* What is opened is closed by the caller, also after a failure. */
static int open_both(struct conversion *c, struct convert_sources *sources,
                     const struct blk_driver *driver, struct blk_options *creation,
                     struct blk_error *err)
{
    const struct convert_options *o = c->options;

    int ret = convert_open_sources(o, sources, err);
    if (ret < 0)
        return ret;
    if (o->bitmaps)
        ret = convert_load_bitmaps(o, sources->roots[0], err);
    if (ret < 0)
        return ret;
    if (o->bitmaps && !o->no_create)
        ret = blk_bitmaps_can_create(driver, o->output, creation, err);
    if (ret < 0)
        return ret;
    uint64_t bytes = convert_total(sources);
    return o->no_create ? open_convert_target(o, bytes, &c->target, err)
                        : create_with(o, driver, creation, bytes, &c->target, err);
}

static int copy_all(struct conversion *c, struct blk_error *err)
{
    const struct convert_options *o = c->options;
    struct blk_node *first = c->sources->roots[0];

    int ret = o->bitmaps ? convert_check_bitmaps(first, c->target, err) : 0;
    if (ret < 0)
        return ret;
    ret = copy_and_check(c, err);
    if (ret < 0)
        return ret;
    if (o->bitmaps)
        ret = convert_copy_bitmaps(first, c->target, err);
    if (ret < 0)
        return ret;
    convert_carry_identity(o, first, c->target);
    return 0;
}

static int convert(const struct command *command, const struct convert_options *o,
                   const struct blk_driver *driver, struct blk_options *creation)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct convert_sources sources = { .roots = NULL };
    struct conversion c = { .options = o, .sources = &sources };

    int ret = open_both(&c, &sources, driver, creation, &err);
    if (ret == 0)
        ret = copy_all(&c, &err);
    if (ret < 0)
        blk_fail_if_unset(&err, -ret, "converting to '%s'", o->output);
    json_t *result = result_new(o->format, command, o->output);
    if (c.target) {
        result_set_text(result, "format", blk_format_name(blk_skip_filters(c.target)));
        result_set_bytes(result, "virtual-size", blk_size(c.target));
    }
    result_set_bytes(result, "bytes", c.bytes_moved);
    result_set_text(result, "backing-filename", o->backing);
    return convert_finish(&sources, c.target, ret < 0 ? report_error(&err) : EXIT_OK, result);
}

int convert_run(const struct command *command, struct convert_options *options)
{
    struct blk_error err = BLK_ERROR_INIT;
    const struct blk_driver *driver = NULL;
    struct blk_options *creation = blk_options_new();
    int status;

    if (!options->no_create && prepare_creation(options, &driver, creation, &err) < 0)
        status = report_error(&err);
    else
        status = convert(command, options, driver, creation);
    blk_options_free(creation);
    return status;
}
