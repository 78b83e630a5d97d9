/* SPDX-License-Identifier: MIT */
/*
 * raw: the bytes of the file as they are, or a window of them (options offset and size).
 *
 * The size is that of the file rounded up to a sector, as QEMU's: what lies past the file's end
 * reads as zeroes. Without a fixed size the image grows with what is written past its end.
 *
 * An image that was probed as raw must stay raw: a guest that could write another format's header
 * into sector 0 would choose what the host opens next time (a backing file, say). Such writes are
 * refused. As a header can be put together from pieces, every change of the head is judged by the
 * whole head that it leaves, one change at a time: under an exclusive lock of the node's range.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/create.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/ops.h"
#include "blockcore/graph/options.h"
#include "blockcore/graph/probe.h"
#include "blockcore/graph/reopen.h"
#include "drivers/drivers.h"

struct raw_state {
    uint64_t offset; /* of the image in the file */
    bool has_size;   /* the size was given and cannot change */
};

static int raw_probe(const uint8_t *head, size_t bytes)
{
    (void)head;
    (void)bytes;
    return BLK_PROBE_ANY;
}

/* ---- life ---- */

/* The part of the file that is the image. */
struct raw_window {
    uint64_t offset, size;
    bool has_size; /* the size was given and cannot change by writing */
};

static int check_window(const struct blk_node *node, const struct raw_window *window,
                        struct blk_error *err)
{
    uint64_t file_size = blk_size(blk_file(node));

    if (window->offset > file_size)
        return blk_fail_why(err, EINVAL, "it lies behind the end of the file",
                            "Could not open '%s' at offset %" PRIu64, node->name, window->offset);
    if (window->has_size && window->size % BLK_SECTOR_BYTES)
        return blk_fail_why(err, EINVAL, "it is not a multiple of 512",
                            "Could not open '%s' with size %" PRIu64, node->name, window->size);
    if (window->has_size && window->size > file_size - window->offset)
        return blk_fail_why(err, EINVAL, "the file ends before that",
                            "Could not open '%s' at offset %" PRIu64 " with size %" PRIu64,
                            node->name, window->offset, window->size);
    return 0;
}

/* Replaces in `window` what the options give. */
static int read_window(struct blk_node *node, struct blk_options *options,
                       struct raw_window *window, struct blk_error *err)
{
    if (blk_options_peek(options, "size"))
        window->has_size = true;
    int ret = blk_options_get_size(options, "offset", &window->offset, err);
    if (ret == 0)
        ret = blk_options_get_size(options, "size", &window->size, err);
    return ret < 0 ? ret : check_window(node, window, err);
}

static void set_window(struct blk_node *node, const struct raw_window *window)
{
    struct raw_state *s = node->state;
    s->offset = window->offset;
    s->has_size = window->has_size;
    blk_node_set_size(node, s->has_size
                                ? window->size
                                : round_up(blk_size(blk_file(node)) - s->offset, BLK_SECTOR_BYTES));
}

static int raw_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    const struct blk_node *file = blk_file(node);
    struct raw_window window = { .offset = 0 };

    int ret = read_window(node, options, &window, err);
    if (ret < 0)
        return ret;
    set_window(node, &window);
    node->reads_zero = file->reads_zero;
    /* Alignment is left to the file, so that no range of this node is locked above. */
    node->limits.zero_alignment = file->limits.zero_alignment;
    return 0;
}

/* Whoever is to write may have planned by a size that the file no longer has. */
static int raw_reopen_prepare(struct blk_reopen *reopen, struct blk_error *err)
{
    const struct blk_node *node = reopen->node;
    const struct raw_state *s = node->state;
    uint64_t file_size = blk_size(blk_file(node));

    if (!(reopen->flags & BLK_WRITABLE) || blk_is_writable(node))
        return 0;
    uint64_t end = s->offset + blk_size(node);
    bool same = s->has_size ? end <= file_size
                            : round_up(file_size - s->offset, BLK_SECTOR_BYTES) == blk_size(node);
    if (s->offset <= file_size && same)
        return 0;
    return blk_fail_why(err, ESTALE, "another program changed its size while it was open read-only",
                        "reopening '%s' for writing", node->name);
}

static int raw_options_read(struct blk_node *node, struct blk_options *options, void **settings,
                            struct blk_error *err)
{
    const struct raw_state *s = node->state;
    struct raw_window *window = blk_xcalloc(1, sizeof(*window));

    *settings = window;
    *window = (struct raw_window){ s->offset, blk_size(node), s->has_size };
    return read_window(node, options, window, err);
}

static void raw_options_apply(struct blk_node *node, const void *settings)
{
    set_window(node, settings);
}

static const struct blk_reopen_ops raw_reopen_ops = {
    .prepare = raw_reopen_prepare,
    .options_read = raw_options_read,
    .options_apply = raw_options_apply,
};

/* ---- creating ---- */

static const struct blk_option_desc create_options[] = {
    { "size", BLK_OPT_SIZE, "Size of the virtual disk", NULL },
    { "preallocation", BLK_OPT_STRING, "Allocate space in advance: off, falloc, full", "off" },
    { "nocow", BLK_OPT_BOOL, "No copy-on-write for this file (btrfs)", "off" },
    { NULL, 0, NULL, NULL },
};

/* Reads "size", rounded up to whole sectors. */
static int read_size(struct blk_options *options, uint64_t *size, struct blk_error *err)
{
    if (!blk_options_peek(options, "size"))
        return blk_fail_why(err, EINVAL, "its size is not given", "creating a raw image");
    int ret = blk_options_get_size(options, "size", size, err);
    if (ret < 0)
        return ret;
    if (*size > BLK_MAX_BYTES)
        return blk_fail_why(err, EFBIG, "the size is too large", "creating a raw image");
    *size = round_up(*size, BLK_SECTOR_BYTES);
    return 0;
}

static int read_preallocation(struct blk_options *options, enum blk_prealloc *mode,
                              struct blk_error *err)
{
    const char *text = blk_options_get(options, "preallocation");
    *mode = BLK_PREALLOC_OFF;
    if (!text || (blk_prealloc_parse(text, mode) == 0 && *mode != BLK_PREALLOC_METADATA))
        return 0;
    BLK_AUTOFREE char *why = blk_xasprintf(
        "Unsupported preallocation mode: %s (a raw image has off, falloc and full)", text);
    return blk_fail_why(err, EINVAL, why, "creating a raw image");
}

static int raw_write_image(struct blk_create *create, struct blk_error *err)
{
    uint64_t size = 0;
    enum blk_prealloc prealloc = BLK_PREALLOC_OFF;
    bool nocow; /* the protocol's business, but given among the format's options */

    int ret = read_size(create->options, &size, err);
    if (ret == 0)
        ret = read_preallocation(create->options, &prealloc, err);
    if (ret == 0)
        ret = blk_options_get_bool(create->options, "nocow", &nocow, err);
    return ret < 0 ? ret : blk_child_truncate(create->file, size, prealloc, false, err);
}

/* ---- data ---- */

static int raw_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                     struct blk_error *err)
{
    const struct raw_state *s = node->state;
    /* Past the end of the window the file goes on, but the image does not. */
    uint64_t inside = bytes, size = blk_size(node);
    if (s->has_size)
        inside = offset < size ? u64_min(bytes, size - offset) : 0;
    memset((uint8_t *)buf + inside, 0, bytes - inside);
    blk_event(blk_file(node), BLK_EVENT_READ_AIO);
    return blk_child_pread(blk_file(node), s->offset + offset, inside, buf, err);
}

/* Whether a change at `offset` touches what formats are probed by, and that matters. */
static bool touches_head(const struct blk_node *node, uint64_t offset)
{
    const struct raw_state *s = node->state;
    return node->probed && s->offset + offset < BLK_PROBE_BYTES;
}

/* Whether the write would make a probed raw image look like another format. */
static int check_head(const struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                      struct blk_error *err)
{
    const struct raw_state *s = node->state;
    uint64_t at = s->offset + offset;
    uint8_t head[BLK_PROBE_BYTES];

    int ret = blk_child_pread(blk_file(node), 0, sizeof(head), head, err);
    if (ret < 0)
        return ret;
    memcpy(head + at, buf, u64_min(bytes, sizeof(head) - at));
    const char *looks_like = blk_probe_name(head, sizeof(head));
    if (strcmp(looks_like, blk_driver_raw.name) == 0)
        return 0;
    char why[200];
    snprintf(why, sizeof(why),
             "it would turn this image, whose format was guessed to be raw, into %s "
             "(give the format raw to allow that)",
             looks_like);
    return blk_fail_why(err, EPERM, why, "writing to sector 0 of '%s'", node->name);
}

static int check_fixed_size(const struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err)
{
    const struct raw_state *s = node->state;
    if (!s->has_size || range_within(offset, bytes, blk_size(node)))
        return 0;
    return blk_fail_why(err, ENOSPC, "its size is fixed by the option 'size'",
                        "writing past the end of '%s'", node->name);
}

static int write_file(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                      unsigned flags, struct blk_error *err)
{
    const struct raw_state *s = node->state;
    blk_event(blk_file(node), BLK_EVENT_WRITE_AIO);
    int ret = blk_child_pwrite(blk_file(node), s->offset + offset, bytes, buf, flags, err);
    if (ret == 0)
        blk_node_grow_size(node, offset + bytes);
    return ret;
}

static int raw_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                      unsigned flags, struct blk_error *err)
{
    int ret = check_fixed_size(node, offset, bytes, err);
    if (ret < 0)
        return ret;
    if (!touches_head(node, offset))
        return write_file(node, offset, bytes, buf, flags, err);

    struct blk_range range;
    blk_range_take(&node->ranges, &range, 0, BLK_PROBE_BYTES, 1);
    ret = check_head(node, offset, bytes, buf, err);
    if (ret == 0)
        ret = write_file(node, offset, bytes, buf, flags, err);
    blk_range_release(&node->ranges, &range);
    return ret;
}

static int raw_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                            struct blk_error *err)
{
    const struct raw_state *s = node->state;
    /* Zeroes over a part of the head are a write like any other. */
    if (touches_head(node, offset) && !(s->offset + offset == 0 && bytes >= BLK_PROBE_BYTES))
        return -ENOTSUP;
    int ret = check_fixed_size(node, offset, bytes, err);
    if (ret == 0)
        ret = blk_child_write_zeroes(blk_file(node), s->offset + offset, bytes, flags, err);
    if (ret == 0)
        blk_node_grow_size(node, offset + bytes);
    return ret;
}

static int raw_discard(struct blk_node *node, uint64_t offset, uint64_t bytes,
                       struct blk_error *err)
{
    const struct raw_state *s = node->state;
    uint64_t start = s->offset + offset, end = start + bytes;
    if (touches_head(node, offset))
        start = u64_min(BLK_PROBE_BYTES, end);
    return blk_child_discard(blk_file(node), start, end - start, err);
}

static int raw_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                            struct blk_extent *extent, struct blk_error *err)
{
    const struct raw_state *s = node->state;
    struct blk_node *file = blk_file(node);
    uint64_t at = s->offset + offset, file_size = blk_size(file);
    (void)want;
    (void)err;

    *extent = (struct blk_extent){ .bytes = bytes, .host = file, .host_offset = at };
    if (at < file_size) {
        extent->flags = BLK_EXT_PASS;
        extent->bytes = u64_min(bytes, file_size - at);
    } else {
        /* What completes the last sector. */
        extent->flags = BLK_EXT_ZERO | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID;
    }
    return 0;
}

static int raw_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                          uint64_t bytes, struct blk_error *err)
{
    const struct raw_state *s = node->state;
    if (touches_head(node, offset))
        return -ENOTSUP; /* what would be written must be looked at */
    int ret = check_fixed_size(node, offset, bytes, err);
    if (ret == 0)
        ret = blk_child_copy_range(blk_file(node), s->offset + offset, from, bytes, err);
    if (ret == 0)
        blk_node_grow_size(node, offset + bytes);
    return ret;
}

static bool raw_can_share(struct blk_node *node, const struct blk_node *source)
{
    const struct raw_state *s = node->state;
    return s->offset % BLK_SHARE_BYTES == 0 && blk_can_share(blk_file(node), source);
}

/* ---- shape ---- */

static int raw_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc,
                        bool exact, struct blk_error *err)
{
    const struct raw_state *s = node->state;
    if (s->has_size)
        return blk_fail_why(err, ENOTSUP, "its size is fixed by the option 'size'", "resizing '%s'",
                            node->name);
    if (size > BLK_MAX_BYTES - s->offset)
        return blk_fail_why(err, EFBIG, "the file would be too large", "resizing '%s'", node->name);

    int ret = blk_child_truncate(blk_file(node), s->offset + size, prealloc, exact, err);
    if (ret == 0) /* a device keeps its size */
        blk_node_set_size(node, round_up(blk_size(blk_file(node)) - s->offset, BLK_SECTOR_BYTES));
    return ret;
}

static int raw_measure(struct blk_options *options, struct blk_node *source,
                       struct blk_measure *measure, struct blk_error *err)
{
    uint64_t size = 0;
    enum blk_prealloc prealloc;
    int ret = read_preallocation(options, &prealloc, err);
    if (ret == 0 && source)
        size = round_up(blk_size(source), BLK_SECTOR_BYTES);
    else if (ret == 0)
        ret = read_size(options, &size, err);
    if (ret < 0)
        return ret;
    *measure = (struct blk_measure){ .required_bytes = size, .fully_allocated_bytes = size };
    return 0;
}

static int raw_get_info(struct blk_node *node, struct blk_info *info, struct blk_error *err)
{
    return blk_child_get_info(blk_file(node), info, err);
}

static const struct blk_creation_ops raw_creation_ops = {
    .options = create_options,
    .write_image = raw_write_image,
    .measure = raw_measure,
};

const struct blk_driver blk_driver_raw = {
    .name = "raw",
    .kind = BLK_FORMAT,
    .state_bytes = sizeof(struct raw_state),
    .growable = true,
    .supports_fua = true,
    .fixed_places = true,
    .probe = raw_probe,
    .open = raw_open,
    .get_info = raw_get_info,
    .data = {
        .pread = raw_pread,
        .pwrite = raw_pwrite,
        .write_zeroes = raw_write_zeroes,
        .discard = raw_discard,
        .block_status = raw_block_status,
        .copy_range = raw_copy_range,
        .can_share = raw_can_share,
        .truncate = raw_truncate,
    },
    .creation = &raw_creation_ops,
    .reopen = &raw_reopen_ops,
};
