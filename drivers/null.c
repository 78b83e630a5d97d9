/* SPDX-License-Identifier: MIT */
/*
 * null-co and null-aio: a medium that drops writes and reads as zeroes, for measuring what is above
 * it.
 *
 * Options: size (1 GiB), latency-ns (0) before each request completes, read-zeroes (off): whether
 * block status may say that it all reads as zeroes. Reads return zeroes in either case, so that no
 * memory of this process leaks.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/options.h"
#include "drivers/drivers.h"

struct null_state {
    uint64_t latency_ns;
    bool read_zeroes;
};

static int null_parse_filename(const char *filename, struct blk_options *options,
                               struct blk_error *err)
{
    (void)options;
    const char *rest = strchr(filename, ':');
    if (rest && strcmp(rest, "://") == 0)
        return 0;
    return blk_fail_why(err, EINVAL, "after the driver's name only '://' is allowed",
                        "Could not open '%s'", filename);
}

static int null_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct null_state *s = node->state;
    uint64_t size = GIB;

    int ret = blk_options_get_size(options, "size", &size, err);
    if (ret == 0)
        ret = blk_options_get_uint(options, "latency-ns", &s->latency_ns, err);
    if (ret == 0)
        ret = blk_options_get_bool(options, "read-zeroes", &s->read_zeroes, err);
    if (ret < 0)
        return ret;
    if (size > BLK_MAX_BYTES)
        return blk_fail_why(err, EFBIG, "the size is too large", "Could not open '%s'", node->name);
    if (s->latency_ns > INT64_MAX)
        return blk_fail_why(err, ERANGE, "latency-ns is too large", "Could not open '%s'",
                            node->name);

    if (strcmp(node->name, node->driver->name) == 0) {
        char name[32];
        snprintf(name, sizeof(name), "%s://", node->driver->name);
        blk_node_rename(node, name);
    }
    node->reads_zero = s->read_zeroes;
    blk_node_set_size(node, size);
    return 0;
}

static int delay(const struct blk_node *node)
{
    const struct null_state *s = node->state;
    if (!s->latency_ns)
        return 0;

    struct timespec left = { .tv_sec = (time_t)(s->latency_ns / 1000000000),
                             .tv_nsec = (long)(s->latency_ns % 1000000000) };
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
    return 0;
}

static int null_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                      struct blk_error *err)
{
    (void)offset;
    (void)err;
    memset(buf, 0, bytes);
    return delay(node);
}

static int null_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                       unsigned flags, struct blk_error *err)
{
    (void)offset;
    (void)bytes;
    (void)buf;
    (void)flags;
    (void)err;
    return delay(node);
}

static int null_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                             struct blk_error *err)
{
    return null_pwrite(node, offset, bytes, NULL, flags, err);
}

static int null_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                             struct blk_extent *extent, struct blk_error *err)
{
    const struct null_state *s = node->state;
    (void)want;
    (void)err;
    *extent = (struct blk_extent){ .bytes = bytes };
    if (s->read_zeroes) {
        extent->flags = BLK_EXT_ZERO | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID;
        extent->host = node;
        extent->host_offset = offset;
    }
    return 0;
}

static int null_flush(struct blk_node *node, struct blk_error *err)
{
    (void)err;
    return delay(node);
}

static int null_allocated_bytes(struct blk_node *node, uint64_t *bytes, struct blk_error *err)
{
    (void)node;
    (void)err;
    *bytes = 0;
    return 0;
}

#define NULL_DRIVER(driver_name) \
    { \
        .name = driver_name, .kind = BLK_PROTOCOL, .fixed_places = true, \
        .state_bytes = sizeof(struct null_state), .supports_fua = true, .prefix = driver_name, \
        .parse_filename = null_parse_filename, .open = null_open, \
        .allocated_bytes = null_allocated_bytes, \
        .data = { \
            .pread = null_pread, \
            .pwrite = null_pwrite, \
            .write_zeroes = null_write_zeroes, \
            .block_status = null_block_status, \
            .flush_to_disk = null_flush, \
        }, \
    }

const struct blk_driver blk_driver_null_co = NULL_DRIVER("null-co");
const struct blk_driver blk_driver_null_aio = NULL_DRIVER("null-aio");
