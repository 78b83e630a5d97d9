/* SPDX-License-Identifier: MIT */
/*
 * How large an image would become. The numbers are qemu-img's: metadata for the whole size is
 * always counted, whatever of it would be allocated, and data in whole clusters of the new image.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/shape/create.h"
#include "drivers/qcow2/shape/shape.h"
#include "drivers/qcow2/state.h"

#define DIRECTORY_ENTRY_BYTES 24 /* before the name */

/* An image in which every guest cluster is allocated; `size` is a multiple of the cluster size. */
static uint64_t full_bytes(const struct qcow2_request *request, uint64_t size)
{
    unsigned bits = request->cluster_bits;
    uint64_t l2_entries = UINT64_C(1) << (bits - (request->extended_l2 ? 4 : 3));
    uint64_t l1_entries = UINT64_C(1) << (bits - 3);

    uint64_t data = size >> bits;
    uint64_t l2_tables = div_round_up(data, l2_entries);
    uint64_t clusters = 1 + data + l2_tables + div_round_up(l2_tables, l1_entries);
    struct qcow2_refcount_need need = qcow2_refcount_need(clusters, bits, request->refcount_order);
    return (clusters + need.table_clusters + need.block_clusters) << bits;
}

/* Bytes of the new image's clusters that get data from `source`. */
static int count_data(struct blk_node *source, uint64_t cluster_bytes, uint64_t *data,
                      struct blk_error *err)
{
    uint64_t size = blk_size(source);
    const unsigned own = BLK_EXT_DATA | BLK_EXT_ALLOCATED;

    *data = 0;
    for (uint64_t offset = 0; offset < size;) {
        struct blk_extent extent;
        int ret = blk_block_status_above(blk_layers(source, NULL), offset, size - offset,
                                         BLK_WANT_ZERO, &extent, err);
        if (ret < 0)
            return ret;
        uint64_t end = offset + extent.bytes;
        if (!(extent.flags & BLK_EXT_ZERO) && (extent.flags & own) == own) {
            /* Whole clusters; the next extent is looked for behind them. */
            end = round_up(end, cluster_bytes);
            *data += end - round_down(offset, cluster_bytes);
        }
        offset = end;
    }
    return 0;
}

/*
 * What the source's bitmaps would take: data, tables and directory. As in qemu-img, inconsistent
 * ones count too.
 */
static int count_bitmaps(struct blk_node *source, uint64_t cluster_bytes, uint64_t *bytes,
                         struct blk_error *err)
{
    struct qcow2_bitmap_directory directory;
    uint64_t directory_bytes = 0;

    *bytes = 0;
    int ret = qcow2_bitmap_directory_read(source, &directory, err);
    for (size_t i = 0; ret == 0 && i < directory.count; i++) {
        const struct qcow2_bitmap_entry *entry = &directory.entries[i];
        uint64_t bits = div_round_up(blk_size(source), UINT64_C(1) << entry->granularity_bits);
        uint64_t clusters = div_round_up(div_round_up(bits, 8), cluster_bytes);
        *bytes += clusters * cluster_bytes + round_up(clusters * 8, cluster_bytes);
        directory_bytes += round_up(DIRECTORY_ENTRY_BYTES + strlen(entry->name), 8);
    }
    *bytes += round_up(directory_bytes, cluster_bytes);
    qcow2_bitmap_directory_free(&directory);
    return ret;
}

static bool is_qcow2(const struct blk_node *node)
{
    return BLK_OP(node->driver, creation, measure) == qcow2_measure;
}

int qcow2_measure(struct blk_options *options, struct blk_node *source, struct blk_measure *measure,
                  struct blk_error *err)
{
    struct qcow2_request request;
    int ret = qcow2_request_parse(options, &request, err);
    if (ret < 0)
        return ret;
    if (request.extended_l2 && request.cluster_bits < QCOW2_MIN_EXTENDED_CLUSTER_BITS)
        return blk_fail_why(err, EINVAL, "it needs a cluster_size of at least 16k",
                            "option 'extended_l2'");

    uint64_t cluster_bytes = UINT64_C(1) << request.cluster_bits;
    uint64_t size = round_up(source ? blk_size(source) : request.size, cluster_bytes);
    if (qcow2_l1_entries_for(size, request.cluster_bits, request.extended_l2) * 8 >
        QCOW2_MAX_L1_BYTES)
        return blk_fail_why(err, EFBIG, "the size is too large for the cluster_size",
                            "measuring an image of %" PRIu64 " bytes", size);

    uint64_t data = 0;
    if (request.preallocation == BLK_PREALLOC_FALLOC || request.preallocation == BLK_PREALLOC_FULL)
        data = size;
    else if (source && request.backing_file)
        data = size; /* nobody knows how much of it the new backing file has */
    else if (source)
        ret = count_data(source, cluster_bytes, &data, err);
    if (ret < 0)
        return ret;

    measure->fully_allocated_bytes = full_bytes(&request, size);
    measure->required_bytes = measure->fully_allocated_bytes - size + data;
    measure->has_bitmaps = source && is_qcow2(source) && request.version == 3 &&
                           qcow2_state(source)->header.version == 3;
    if (!measure->has_bitmaps)
        return 0;
    return count_bitmaps(source, cluster_bytes, &measure->bitmaps_bytes, err);
}
