/* SPDX-License-Identifier: MIT */
/* map, alloc, length and info: what is known of the open image. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "blockcore/base/bytes.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/ops.h"
#include "blockcore/graph/status.h"
#include "cmd/common/json_print.h"
#include "cmd/io/io.h"

/* ---- allocation ---- */

/*
 * Finds how far from `offset` (at most `bytes`) the image is allocated, or is not. In a format
 * without backing files all is: nothing can show through.
 */
static int next_run(struct blk_node *image, uint64_t offset, uint64_t bytes, bool *allocated,
                    uint64_t *run, struct blk_error *err)
{
    for (*run = 0; *run < bytes;) {
        struct blk_extent extent;
        int ret = blk_block_status(image, offset + *run, bytes - *run, 0, &extent, err);
        if (ret < 0)
            return ret;
        bool is_allocated = extent.flags & BLK_EXT_ALLOCATED || !blk_supports(image, BLK_BACKING);
        if (*run && is_allocated != *allocated)
            return 0;
        *allocated = is_allocated;
        *run += extent.bytes;
    }
    return 0;
}

static void print_run(bool allocated, uint64_t offset, uint64_t bytes)
{
    char length[64], where[64];
    io_format_bytes((double)bytes, length);
    io_format_bytes((double)offset, where);
    printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64 ")\n", length, bytes,
           allocated ? "   " : "not", where, offset);
}

int io_map(struct io_session *session, int argc, char **argv)
{
    (void)argc, (void)argv;
    struct blk_node *image = blk_skip_filters(session->node);
    struct blk_error err = BLK_ERROR_INIT;
    uint64_t size = blk_size(image), run;
    bool allocated;

    for (uint64_t offset = 0; offset < size; offset += run) {
        if (next_run(image, offset, size - offset, &allocated, &run, &err) < 0)
            return io_report_error(&err);
        print_run(allocated, offset, run);
    }
    return 0;
}

int io_alloc(struct io_session *session, int argc, char **argv)
{
    struct blk_node *image = blk_skip_filters(session->node);
    struct blk_error err = BLK_ERROR_INIT;
    uint64_t offset, bytes = BLK_SECTOR_BYTES, run, counted = 0;
    bool allocated;

    if (io_parse_bytes(argv[1], &offset) < 0 || (argc == 3 && io_parse_bytes(argv[2], &bytes) < 0))
        return -EINVAL;
    uint64_t size = blk_size(image);
    bytes = offset < size ? u64_min(bytes, size - offset) : 0;

    for (uint64_t done = 0; done < bytes; done += run) {
        if (next_run(image, offset + done, bytes - done, &allocated, &run, &err) < 0)
            return io_report_error(&err);
        counted += allocated ? run : 0;
    }
    char where[64];
    io_format_bytes((double)offset, where);
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", counted, bytes, where);
    return 0;
}

int io_length(struct io_session *session, int argc, char **argv)
{
    (void)argc, (void)argv;
    char text[64];
    io_format_bytes((double)blk_size(session->node), text);
    puts(text);
    return 0;
}

/* ---- info ---- */

/* QEMU's tools name a driver twice that stands for a file name's prefix, too. */
static void print_format_name(const struct blk_driver *driver)
{
    printf("format name: %s\n", driver->name);
    if (driver->kind == BLK_PROTOCOL || driver->prefix)
        printf("format name: %s\n", driver->name);
}

int io_info(struct io_session *session, int argc, char **argv)
{
    (void)argc, (void)argv;
    struct blk_node *node = session->image;
    struct blk_error err = BLK_ERROR_INIT;
    BLK_AUTO_INFO struct blk_info info = { .cluster_bytes = 0 };
    char cluster[64], vm_state[64];

    io_pool_wait(session->pool); /* what is asked runs alone */
    print_format_name(blk_driver_find(blk_format_name(node)));
    if (blk_get_info(node, &info, &err) < 0)
        return io_report_error(&err);
    io_format_bytes((double)info.cluster_bytes, cluster);
    io_format_bytes((double)info.vm_state_offset, vm_state);
    printf("cluster size: %s\nvm state offset: %s\n", cluster, vm_state);
    /* A filter says it of the format below, where it is not its own. */
    if (info.specific_type && blk_kind_of(node) != BLK_FILTER) {
        json_t *specific = json_of_value(&info.specific);
        printf("Format specific information:\n");
        json_print_members(stdout, specific, 1);
        json_decref(specific);
    }
    return 0;
}
