/* SPDX-License-Identifier: MIT */
/*
 * The copy-before-write filter: before what is in its file changes, the old data goes to its
 * target. The work is done by cbw.c and save.c; here are the options, the requests that pass
 * through, and what puts the filter into a graph.
 *
 * Options, as QEMU's: file, target, on-cbw-error (break-guest-write or break-snapshot), cbw-timeout
 * (seconds, 0: without limit), min-cluster-size (what is saved at once at least). The target is
 * written as far as writes need it. A flush of the filter does not flush it: no guest depends on
 * it; it is flushed when it is closed.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/filters/cbw/record.h"
#include "blockcore/filters/filters.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/options.h"
#include "blockcore/graph/pass.h"
#include "blockcore/graph/pieces.h"
#include "blockcore/graph/reopen.h"

/* Each save has a cluster in memory. */
#define MAX_MIN_CLUSTER_BYTES (64 * MIB)

/* ---- life ---- */

static int read_on_error(struct blk_options *options, enum blk_cbw_on_error *on_error,
                         struct blk_error *err)
{
    const char *text = blk_options_get(options, "on-cbw-error");

    *on_error = BLK_CBW_BREAK_GUEST_WRITE;
    if (!text || strcmp(text, "break-guest-write") == 0)
        return 0;
    *on_error = BLK_CBW_BREAK_SNAPSHOT;
    if (strcmp(text, "break-snapshot") == 0)
        return 0;
    return blk_fail_why(err, EINVAL, "it must be break-guest-write or break-snapshot",
                        "option 'on-cbw-error' has the value '%s'", text);
}

static int read_timeout(struct blk_options *options, uint64_t *ms, struct blk_error *err)
{
    uint64_t seconds = 0;
    int ret = blk_options_get_uint(options, "cbw-timeout", &seconds, err);
    if (ret < 0)
        return ret;
    if (seconds > UINT32_MAX)
        return blk_fail_why(err, ERANGE, "it is too large", "option 'cbw-timeout'");
    *ms = seconds * 1000;
    return 0;
}

static int read_min_cluster(struct blk_options *options, uint64_t *bytes, struct blk_error *err)
{
    int ret = blk_options_get_size(options, "min-cluster-size", bytes, err);
    if (ret < 0 || !*bytes || (is_power_of_two(*bytes) && *bytes <= MAX_MIN_CLUSTER_BYTES))
        return ret;
    return blk_fail_why(err, EINVAL, "it must be a power of two up to 64 MiB",
                        "option 'min-cluster-size' is %" PRIu64, *bytes);
}

static int read_params(struct blk_options *options, struct blk_cbw_params *params,
                       struct blk_error *err)
{
    if (blk_options_has_group(options, "bitmap"))
        return blk_fail_why(err, ENOTSUP, "a filter that is given by options saves everything",
                            "option 'bitmap' of copy-before-write");
    int ret = read_on_error(options, &params->on_error, err);
    if (ret == 0)
        ret = read_timeout(options, &params->timeout_ms, err);
    return ret < 0 ? ret : read_min_cluster(options, &params->min_cluster_bytes, err);
}

static int open_target(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    const char *reference = blk_options_peek(options, "target");
    if (reference)
        return blk_fail_why(err, EINVAL, "there are no other nodes to refer to",
                            "option 'target' has the value '%s'", reference);
    if (!blk_options_has_group(options, "target"))
        return blk_fail_why(err, EINVAL, "no target is named (option 'target.filename')",
                            "Could not open an image with driver copy-before-write");
    /* As for the file of a filter: what a plain file name stands for is a protocol. */
    bool protocol = blk_options_peek(options, "target.filename");
    return blk_open_child(node, BLK_ROLE_TARGET, options, "target", protocol, err);
}

static int cbw_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct blk_cbw_params params = { .mask = NULL };
    int ret = read_params(options, &params, err);
    if (ret == 0)
        ret = open_target(node, options, err);
    if (ret == 0)
        ret = cbw_begin(node, &params, err);
    return ret;
}

static int cbw_release(struct blk_node *node, struct blk_error *err)
{
    (void)err;
    cbw_end(node->state);
    return 0;
}

/* The file follows a reopen, the target does not: without it nothing can be saved. */
static int cbw_reopen_prepare(struct blk_reopen *reopen, struct blk_error *err)
{
    const struct blk_node *target = blk_child(reopen->node, BLK_ROLE_TARGET);
    if (!(reopen->flags & BLK_WRITABLE) || blk_is_writable(target))
        return 0;
    return blk_fail_why(err, EACCES, "its target is open read-only", "reopening '%s' for writing",
                        reopen->node->name);
}

/* ---- data ---- */

static int cbw_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                      unsigned flags, struct blk_error *err)
{
    int ret = blk_cbw_before_write(node->state, offset, bytes, err);
    return ret < 0 ? ret : blk_child_pwrite(blk_file(node), offset, bytes, buf, flags, err);
}

static int cbw_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                            struct blk_error *err)
{
    int ret = blk_cbw_before_write(node->state, offset, bytes, err);
    return ret < 0 ? ret : blk_child_write_zeroes(blk_file(node), offset, bytes, flags, err);
}

static int cbw_discard(struct blk_node *node, uint64_t offset, uint64_t bytes,
                       struct blk_error *err)
{
    int ret = blk_cbw_before_write(node->state, offset, bytes, err);
    return ret < 0 ? ret : blk_child_discard(blk_file(node), offset, bytes, err);
}

static int cbw_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                const void *buf, struct blk_error *err)
{
    int ret = blk_cbw_before_write(node->state, offset, bytes, err);
    return ret < 0 ? ret : blk_child_write_compressed(blk_file(node), offset, bytes, buf, err);
}

/* ---- shape ---- */

/* What is cut off is saved first. What is added was not there at the frozen moment. */
static int cbw_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc,
                        bool exact, struct blk_error *err)
{
    uint64_t frozen = blk_cbw_size(node->state);
    int ret = size < frozen ? blk_cbw_before_write(node->state, size, frozen - size, err) : 0;
    return ret < 0 ? ret : blk_pass_truncate(node, size, prealloc, exact, err);
}

static const struct blk_reopen_ops cbw_reopen_ops = { .prepare = cbw_reopen_prepare };

const struct blk_driver blk_driver_copy_before_write = {
    .name = "copy-before-write",
    .kind = BLK_FILTER,
    .state_bytes = sizeof(struct blk_cbw),
    .supports_fua = true,
    .open = cbw_open,
    .release = cbw_release,
    .data = {
        .pread = blk_pass_pread,
        .pwrite = cbw_pwrite,
        .write_zeroes = cbw_write_zeroes,
        .discard = cbw_discard,
        .write_compressed = cbw_write_compressed,
        .block_status = blk_pass_block_status,
        .truncate = cbw_truncate,
    },
    .reopen = &cbw_reopen_ops,
};

/* ---- for jobs ---- */

int blk_cbw_insert(struct blk_node *source, struct blk_node *target,
                   const struct blk_cbw_params *params, struct blk_node **filter,
                   struct blk_error *err)
{
    *filter = NULL;
    struct blk_node *node =
        blk_node_new(&blk_driver_copy_before_write, source->name, source->flags, source->cache);
    blk_node_attach(node, BLK_ROLE_FILE, source);
    blk_node_attach(node, BLK_ROLE_TARGET, target);
    int ret = cbw_begin(node, params, err);
    if (ret < 0) {
        node->children[BLK_ROLE_FILE] = NULL;
        node->children[BLK_ROLE_TARGET] = NULL;
        blk_node_free(node);
        return ret;
    }
    blk_node_ref(target);
    *filter = node;
    return 0;
}

struct blk_cbw *blk_cbw_of(const struct blk_node *filter)
{
    return filter->driver == &blk_driver_copy_before_write ? filter->state : NULL;
}
