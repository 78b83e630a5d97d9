/* SPDX-License-Identifier: MIT */
/*
 * The blkdebug filter: lets chosen requests to its file fail, and stops requests at breakpoints.
 *
 * "blkdebug:RULES:FILE", where RULES is a file of rules or empty; or as options, with the file as
 * "image":
 *
 *     driver=blkdebug,image.filename=x,inject-error.0.iotype=flush,inject-error.0.nth=2
 *
 * rules.h says what the rules mean. A request that is to fail fails here, before the file sees it,
 * except for a flush, which fails after the file's own, and a close, after which everything is
 * closed anyway. No message is given: blockcore's own is what a real failure would show.
 *
 * When the node is closed, rules with a `stats` file write there what became of them. So a test
 * can let the first, second, ... request fail until there is no such request any more.
 *
 * Durable writes (FUA) are left to blockcore, which makes them a write and a flush: each can fail.
 * Block status names the file, so bytes that the kernel copies from there (convert -C) are not
 * read here.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/lock.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/create.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/ops.h"
#include "blockcore/graph/options.h"
#include "drivers/blkdebug/break.h"
#include "drivers/blkdebug/rules.h"
#include "drivers/drivers.h"

struct blkdebug {
    struct blk_mutex mutex; /* guards rules and breaks; not held while the file works */
    struct blkdebug_rules rules;
    struct blkdebug_breaks breaks;

    /*
     * Zeroing: what is not a multiple of the unit is refused. Discarding: it is a request of its
     * own. Longer than max is split. A unit need not be a power of two.
     */
    uint64_t zero_unit, max_zero_bytes;
    uint64_t discard_unit, max_discard_bytes;
};

/* Returns 0, or the -errno that the request is to fail with. */
static int check_request(struct blk_node *node, enum blkdebug_iotype iotype, uint64_t offset,
                         uint64_t bytes)
{
    struct blkdebug *debug = node->state;

    LOCK_SCOPE(&debug->mutex);
    return blkdebug_rules_check(&debug->rules, iotype, offset, bytes);
}

/* ---- opening ---- */

/* Sets the options of `image` as "image.KEY". */
static void set_image_options(struct blk_options *options, const struct blk_options *image)
{
    for (size_t i = 0; i < blk_options_count(image); i++) {
        BLK_AUTOFREE char *key = blk_xasprintf("image.%s", blk_options_key(image, i));
        blk_options_set(options, key, blk_options_value(image, i));
    }
}

static int blkdebug_parse_filename(const char *filename, struct blk_options *options,
                                   struct blk_error *err)
{
    const char *rules = strchr(filename, ':') + 1;
    const char *colon = strchr(rules, ':');

    if (!colon)
        return blk_fail_why(err, EINVAL, "it must be blkdebug:RULES:FILE (RULES may be empty)",
                            "the file name '%s'", filename);
    if (colon > rules) {
        BLK_AUTOFREE char *path = blk_xstrndup(rules, (size_t)(colon - rules));
        blk_options_set(options, "config", path);
    }

    const char *name = colon + 1;
    struct blk_options *image = blk_options_new();
    int ret = blk_filename_to_options(name, image, err);
    if (ret == 0 && strncmp(name, "json:", 5) != 0) {
        /*
         * A plain name gives the options of a format over the file; here the file itself is meant.
         */
        struct blk_options *file = blk_options_take_group(image, "file");
        set_image_options(options, file);
        blk_options_free(file);
    } else if (ret == 0) {
        set_image_options(options, image);
    }
    blk_options_free(image);
    return ret;
}

/*
 * Reads a size that must be a multiple of `unit`, below 2 GiB; as in QEMU 0 stands for "not given".
 */
static int get_limit(struct blk_options *options, const char *key, uint64_t unit, uint64_t *bytes,
                     struct blk_error *err)
{
    int ret = blk_options_get_size(options, key, bytes, err);
    if (ret < 0)
        return ret;
    if (*bytes % unit || *bytes >= INT_MAX)
        return blk_fail_why(err, EINVAL, "it must fit the alignment and be below 2 GiB",
                            "option '%s' of blkdebug is %" PRIu64, key, *bytes);
    return 0;
}

/* What the file discards at once, 1 if it does not say: a piece is a multiple of it, as in QEMU. */
static int file_discard_unit(const struct blk_node *node, uint64_t *unit, struct blk_error *err)
{
    int ret = blk_child_cluster_bytes(blk_skip_filters(blk_file(node)), unit, err);
    *unit = u64_max(*unit, 1);
    return ret;
}

/* The option max-discard, cut down to whole units of what is discarded. */
static int read_max_discard(struct blk_node *node, struct blk_options *options,
                            uint64_t opt_discard, struct blk_error *err)
{
    struct blkdebug *debug = node->state;
    uint64_t below = 1;
    int ret =
        get_limit(options, "max-discard", debug->discard_unit, &debug->max_discard_bytes, err);
    if (ret == 0 && debug->max_discard_bytes && !opt_discard)
        ret = file_discard_unit(node, &below, err);
    if (ret < 0 || debug->max_discard_bytes < below)
        return ret;
    debug->discard_unit = u64_max(debug->discard_unit, below);
    debug->max_discard_bytes = round_down(debug->max_discard_bytes, debug->discard_unit);
    return 0;
}

static int read_limits(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct blkdebug *debug = node->state;
    const struct blk_limits *file = &blk_file(node)->limits;
    uint64_t align = 0, max_transfer = 0, opt_zero = 0, opt_discard = 0;
    int ret = get_limit(options, "align", 1, &align, err);

    if (ret < 0)
        return ret;
    if (align && !is_power_of_two(align))
        return blk_fail_why(err, EINVAL, "it must be a power of two",
                            "option 'align' of blkdebug is %" PRIu64, align);
    align = u64_max(align, file->request_alignment);
    ret = get_limit(options, "max-transfer", align, &max_transfer, err);
    if (ret < 0)
        return ret;
    ret = get_limit(options, "opt-write-zero", align, &opt_zero, err);
    if (ret < 0)
        return ret;
    ret = get_limit(options, "opt-discard", align, &opt_discard, err);
    if (ret < 0)
        return ret;

    node->limits = (struct blk_limits){
        .request_alignment = (uint32_t)align,
        .memory_alignment = file->memory_alignment,
        .zero_alignment = (uint32_t)opt_zero,
        .max_transfer = max_transfer ? max_transfer : file->max_transfer,
    };
    debug->zero_unit = u64_max(align, opt_zero);
    debug->discard_unit = u64_max(align, opt_discard);
    ret = get_limit(options, "max-write-zero", debug->zero_unit, &debug->max_zero_bytes, err);
    if (ret < 0)
        return ret;
    return read_max_discard(node, options, opt_discard, err);
}

/*
 * QEMU's permissions for the child are a matter between its own users of one graph: known, but
 * without effect.
 */
static void skip_permissions(struct blk_options *options)
{
    blk_options_free(blk_options_take_group(options, "take-child-perms"));
    blk_options_free(blk_options_take_group(options, "unshare-child-perms"));
}

/* What "blkdebug:RULES:FILE" cannot say. */
static const char *const wordy_options[] = {
    "inject-error",   "set-state",   "align",       "max-transfer",     "opt-write-zero",
    "max-write-zero", "opt-discard", "max-discard", "take-child-perms", "unshare-child-perms",
};

/* The node's name as a user would write it; NULL where that takes options. malloc()ed. */
static char *short_name(const struct blk_node *node, const struct blk_options *options)
{
    const char *rules = blk_options_peek(options, "config");

    for (size_t i = 0; i < sizeof(wordy_options) / sizeof(wordy_options[0]); i++)
        if (blk_options_has_group(options, wordy_options[i]))
            return NULL;
    return blk_xasprintf("blkdebug:%s:%s", rules ? rules : "", blk_file(node)->name);
}

static int read_rules(struct blkdebug *debug, struct blk_options *options, struct blk_error *err)
{
    const char *path = blk_options_get(options, "config");
    int ret = path && *path ? blkdebug_rules_read_file(&debug->rules, path, err) : 0;

    if (ret == 0)
        ret = blkdebug_rules_take_options(&debug->rules, options, err);
    debug->rules.state = 1;
    return ret;
}

static int blkdebug_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct blkdebug *debug = node->state;
    BLK_AUTOFREE char *name = short_name(node, options);
    int ret = read_rules(debug, options, err);

    if (ret == 0)
        ret = read_limits(node, options, err);
    if (ret < 0) {
        blkdebug_rules_free(&debug->rules);
        return ret;
    }
    skip_permissions(options);
    if (name)
        blk_node_rename(node, name);
    blk_mutex_init(&debug->mutex);
    blkdebug_breaks_init(&debug->breaks);
    blk_node_set_size(node, blk_size(blk_file(node)));
    return 0;
}

/* The file has been made, and this node opened over it: what fails now must leave nothing of it. */
static int blkdebug_made(struct blk_node *node, struct blk_error *err)
{
    int ret = check_request(node, BLKDEBUG_CREATE, 0, 0);
    return ret < 0 ? blk_fail(err, -ret, "creating '%s'", node->name) : 0;
}

static const struct blk_creation_ops blkdebug_creation_ops = { .made = blkdebug_made };

/* ---- closing ---- */

static int blkdebug_publish(struct blk_node *node, struct blk_published *published,
                            struct blk_error *err)
{
    (void)published, (void)err;
    return check_request(node, BLKDEBUG_PUBLISH, 0, 0);
}

static int blkdebug_release(struct blk_node *node, struct blk_error *err)
{
    struct blkdebug *debug = node->state;
    int ret = check_request(node, BLKDEBUG_CLOSE, 0, 0);
    int stats_ret = blkdebug_rules_write_stats(&debug->rules, err);
    blkdebug_rules_free(&debug->rules);
    blkdebug_breaks_destroy(&debug->breaks);
    blk_mutex_destroy(&debug->mutex);
    return ret < 0 ? ret : stats_ret;
}

/* ---- requests ---- */

static int blkdebug_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                          struct blk_error *err)
{
    int ret = check_request(node, BLKDEBUG_READ, offset, bytes);
    return ret < 0 ? ret : blk_child_pread(blk_file(node), offset, bytes, buf, err);
}

static int blkdebug_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                           unsigned flags, struct blk_error *err)
{
    int ret = check_request(node, BLKDEBUG_WRITE, offset, bytes);
    if (ret == 0)
        ret = blk_child_pwrite(blk_file(node), offset, bytes, buf, flags, err);
    if (ret == 0)
        blk_node_grow_size(node, offset + bytes);
    return ret;
}

/* The longest piece of a range that is taken at once; `max` of 0: all of it. */
static uint64_t piece_of(uint64_t bytes, uint64_t max)
{
    return max ? u64_min(bytes, max) : bytes;
}

static int blkdebug_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                 unsigned flags, struct blk_error *err)
{
    const struct blkdebug *debug = node->state;
    uint64_t end = offset + bytes;

    if (offset % debug->zero_unit || bytes % debug->zero_unit)
        return -ENOTSUP;
    for (uint64_t piece; offset < end; offset += piece) {
        piece = piece_of(end - offset, debug->max_zero_bytes);
        int ret = check_request(node, BLKDEBUG_WRITE_ZEROES, offset, piece);
        if (ret == 0)
            ret = blk_child_write_zeroes(blk_file(node), offset, piece, flags, err);
        if (ret < 0)
            return ret;
        blk_node_grow_size(node, offset + piece);
    }
    return 0;
}

static int blkdebug_discard(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err)
{
    const struct blkdebug *debug = node->state;
    uint64_t end = offset + bytes, unit = debug->discard_unit;

    for (uint64_t piece; offset < end; offset += piece) {
        /* Head and tail, which are no whole units, are requests of their own, as in QEMU. */
        piece = end - offset;
        if (offset % unit)
            piece = u64_min(piece, unit - offset % unit);
        else if (piece > unit)
            piece = round_down(piece, unit);
        piece = piece_of(piece, debug->max_discard_bytes);
        int ret = check_request(node, BLKDEBUG_DISCARD, offset, piece);
        if (ret == 0)
            ret = blk_child_discard(blk_file(node), offset, piece, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int blkdebug_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                 unsigned want, struct blk_extent *extent, struct blk_error *err)
{
    (void)want;
    (void)err;
    int ret = check_request(node, BLKDEBUG_BLOCK_STATUS, offset, bytes);
    if (ret < 0)
        return ret;
    *extent = (struct blk_extent){
        .bytes = bytes,
        .flags = BLK_EXT_PASS,
        .host = blk_file(node),
        .host_offset = offset,
    };
    return 0;
}

/* Comes after the file's own flush. */
static int blkdebug_flush_to_disk(struct blk_node *node, struct blk_error *err)
{
    (void)err;
    return check_request(node, BLKDEBUG_FLUSH, 0, 0);
}

static int blkdebug_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc,
                             bool exact, struct blk_error *err)
{
    int ret = check_request(node, BLKDEBUG_TRUNCATE, 0, 0);
    if (ret == 0)
        ret = blk_child_truncate(blk_file(node), size, prealloc, exact, err);
    if (ret == 0)
        blk_node_set_size(node, blk_size(blk_file(node)));
    return ret;
}

/* ---- events and breakpoints ---- */

static void blkdebug_event(struct blk_node *node, enum blk_event event)
{
    struct blkdebug *debug = node->state;

    LOCK_SCOPE(&debug->mutex);
    blkdebug_rules_event(&debug->rules, event);
    blkdebug_breaks_meet(&debug->breaks, event, &debug->mutex);
}

static int blkdebug_set_break(struct blk_node *node, const char *event, const char *tag,
                              struct blk_error *err)
{
    struct blkdebug *debug = node->state;
    int number = blk_event_parse(event);

    if (number < 0)
        return blk_fail_why(err, ENOENT, "there is no such event", "breakpoint at '%s'", event);
    LOCK_SCOPE(&debug->mutex);
    blkdebug_breaks_set(&debug->breaks, (enum blk_event)number, tag);
    return 0;
}

static int blkdebug_remove_break(struct blk_node *node, const char *tag, struct blk_error *err)
{
    struct blkdebug *debug = node->state;

    LOCK_SCOPE(&debug->mutex);
    bool found = blkdebug_breaks_remove(&debug->breaks, tag);
    return found ? 0 : blk_fail(err, ENOENT, "removing the breakpoint '%s'", tag);
}

static int blkdebug_resume(struct blk_node *node, const char *tag, struct blk_error *err)
{
    struct blkdebug *debug = node->state;

    LOCK_SCOPE(&debug->mutex);
    bool found = blkdebug_breaks_resume(&debug->breaks, tag);
    return found ? 0 : blk_fail(err, ENOENT, "resuming the request at '%s'", tag);
}

static bool blkdebug_is_suspended(struct blk_node *node, const char *tag)
{
    struct blkdebug *debug = node->state;

    LOCK_SCOPE(&debug->mutex);
    return blkdebug_breaks_is_suspended(&debug->breaks, tag);
}

static const struct blk_debug_ops blkdebug_debug_ops = {
    .event = blkdebug_event,
    .set_break = blkdebug_set_break,
    .remove_break = blkdebug_remove_break,
    .resume = blkdebug_resume,
    .is_suspended = blkdebug_is_suspended,
};

const struct blk_driver blk_driver_blkdebug = {
    .name = "blkdebug",
    .kind = BLK_FILTER,
    .state_bytes = sizeof(struct blkdebug),
    .growable = true,
    .prefix = "blkdebug",
    .parse_filename = blkdebug_parse_filename,
    .file_group = "image",
    .open = blkdebug_open,
    .publish = blkdebug_publish,
    .release = blkdebug_release,
    .data = {
        .pread = blkdebug_pread,
        .pwrite = blkdebug_pwrite,
        .write_zeroes = blkdebug_write_zeroes,
        .discard = blkdebug_discard,
        .block_status = blkdebug_block_status,
        .truncate = blkdebug_truncate,
        .flush_to_disk = blkdebug_flush_to_disk,
    },
    .creation = &blkdebug_creation_ops,
    .debug = &blkdebug_debug_ops,
};
