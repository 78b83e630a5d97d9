/* SPDX-License-Identifier: MIT */
/*
 * Making an empty image: header, refcount table and blocks, L1 table, in this order at the
 * beginning of the file. Then preallocation, by the opened image itself.
 *
 * The file has no name yet, or its old magic is destroyed (C6), so nothing here needs an order or
 * a barrier.
 */
#include "drivers/qcow2/shape/create.h"

#include <errno.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/create.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/options.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/shape/shape.h"
#include "drivers/qcow2/state.h"

/* Where the tables of the new image are. All in clusters. */
struct plan {
    uint64_t table_at, table_clusters;
    uint64_t blocks_at, block_clusters;
    uint64_t l1_at, l1_clusters, l1_entries;
    uint64_t clusters; /* in total */
};

struct qcow2_refcount_need qcow2_refcount_need(uint64_t clusters, unsigned cluster_bits,
                                               unsigned refcount_order)
{
    uint64_t table_entries = UINT64_C(1) << (cluster_bits - 3);
    uint64_t block_entries = UINT64_C(8) << cluster_bits >> refcount_order;
    struct qcow2_refcount_need need = { 0, 0 };

    /* The structure counts itself, too: it grows until it covers that. */
    for (;;) {
        uint64_t all = clusters + need.table_clusters + need.block_clusters;
        uint64_t blocks = div_round_up(all, block_entries);
        uint64_t tables = div_round_up(blocks, table_entries);
        if (blocks == need.block_clusters && tables == need.table_clusters)
            return need;
        need.block_clusters = blocks;
        need.table_clusters = tables;
    }
}

static struct plan make_plan(const struct qcow2_request *request)
{
    struct plan plan = { .table_at = 1 };
    plan.l1_entries =
        qcow2_l1_entries_for(request->size, request->cluster_bits, request->extended_l2);
    plan.l1_clusters = div_round_up(plan.l1_entries * 8, UINT64_C(1) << request->cluster_bits);

    struct qcow2_refcount_need need =
        qcow2_refcount_need(1 + plan.l1_clusters, request->cluster_bits, request->refcount_order);
    plan.table_clusters = need.table_clusters;
    plan.block_clusters = need.block_clusters;
    plan.blocks_at = plan.table_at + plan.table_clusters;
    plan.l1_at = plan.blocks_at + plan.block_clusters;
    plan.clusters = plan.l1_at + plan.l1_clusters;
    return plan;
}

/* ---- what does not go together ---- */

/* Returns why not, or NULL. */
static const char *contradiction(const struct qcow2_request *request)
{
    bool v3 = request->version == 3;
    uint64_t l1_entries =
        qcow2_l1_entries_for(request->size, request->cluster_bits, request->extended_l2);

    if (!v3 && request->refcount_order != 4)
        return "a refcount_bits other than 16 needs compat=1.1";
    if (!v3 && request->lazy_refcounts)
        return "lazy_refcounts needs compat=1.1";
    if (!v3 && request->extended_l2)
        return "extended_l2 needs compat=1.1";
    if (!v3 && request->compression != QCOW2_DEFLATE)
        return "a compression_type other than zlib needs compat=1.1";
    if (!v3 && request->data_file)
        return "data_file needs compat=1.1";
    if (request->extended_l2 && request->cluster_bits < QCOW2_MIN_EXTENDED_CLUSTER_BITS)
        return "extended_l2 needs a cluster_size of at least 16k";
    if (request->data_file_raw && !request->data_file)
        return "data_file_raw needs data_file";
    if (request->data_file_raw && request->backing_file)
        return "data_file_raw and backing_file exclude each other";
    if (request->backing_file && !request->extended_l2 &&
        request->preallocation != BLK_PREALLOC_OFF)
        return "preallocation with a backing file needs extended_l2";
    if (request->backing_format && !request->backing_file)
        return "backing_fmt needs backing_file";
    if (request->backing_file && strlen(request->backing_file) > QCOW2_MAX_BACKING_NAME)
        return "the name of the backing file is longer than 1023 bytes";
    if (l1_entries * 8 > QCOW2_MAX_L1_BYTES)
        return "the size is too large for the cluster_size";
    return NULL;
}

/* ---- writing ---- */

static struct qcow2_header make_header(const struct qcow2_request *request, const struct plan *plan)
{
    unsigned bits = request->cluster_bits;
    struct qcow2_header header = {
        .version = request->version,
        .cluster_bits = bits,
        .size = request->size,
        .l1_entries = (uint32_t)plan->l1_entries,
        .l1_offset = plan->l1_entries ? plan->l1_at << bits : 0,
        .reftable_offset = plan->table_at << bits,
        .reftable_clusters = (uint32_t)plan->table_clusters,
        .refcount_order = request->refcount_order,
        .compression = (uint8_t)request->compression,
    };
    if (request->compression != QCOW2_DEFLATE)
        header.incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    if (request->extended_l2)
        header.incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
    if (request->data_file)
        header.incompatible |= QCOW2_INCOMPAT_DATA_FILE;
    if (request->lazy_refcounts)
        header.compatible |= QCOW2_COMPAT_LAZY_REFCOUNTS;
    if (request->data_file_raw)
        header.autoclear |= QCOW2_AUTOCLEAR_RAW_DATA;
    return header;
}

static void make_tail(const struct qcow2_request *request, struct qcow2_tail *tail)
{
    *tail = (struct qcow2_tail){ .count = 0 };
    if (request->backing_format)
        qcow2_tail_set(tail, QCOW2_EXT_BACKING_FORMAT, request->backing_format,
                       (uint32_t)strlen(request->backing_format));
    if (request->data_file)
        qcow2_tail_set(tail, QCOW2_EXT_DATA_FILE, request->data_file,
                       (uint32_t)strlen(request->data_file));
    if (request->version == 3)
        qcow2_tail_add_feature_names(tail);
    qcow2_tail_set_backing(tail, request->backing_file);
}

static int write_header(struct blk_node *file, const struct qcow2_request *request,
                        const struct plan *plan, struct blk_error *err)
{
    uint64_t cluster_bytes = UINT64_C(1) << request->cluster_bits;
    BLK_AUTOFREE uint8_t *cluster = blk_buffer_alloc(cluster_bytes);
    if (!cluster)
        return blk_fail(err, ENOMEM, "creating '%s'", file->name);

    struct qcow2_header header = make_header(request, plan);
    struct qcow2_tail tail;
    make_tail(request, &tail);
    int ret = qcow2_header_encode(&header, &tail, cluster, err);
    qcow2_tail_free(&tail);
    return ret < 0 ? ret : blk_child_pwrite(file, 0, cluster_bytes, cluster, 0, err);
}

/*
 * The refcount table with its blocks behind it, which count the first plan->clusters clusters
 * once each.
 */
static int write_refcounts(struct blk_node *file, const struct qcow2_request *request,
                           const struct plan *plan, struct blk_error *err)
{
    unsigned bits = request->cluster_bits;
    uint64_t bytes = (plan->table_clusters + plan->block_clusters) << bits;
    BLK_AUTOFREE uint8_t *buf = blk_buffer_alloc(bytes);
    if (!buf)
        return blk_fail(err, ENOMEM, "creating '%s'", file->name);

    memset(buf, 0, bytes);
    for (uint64_t i = 0; i < plan->block_clusters; i++)
        be64_put(buf + i * 8, (plan->blocks_at + i) << bits);
    uint8_t *counts = buf + (plan->table_clusters << bits);
    for (uint64_t i = 0; i < plan->clusters; i++)
        qcow2_count_put(counts, request->refcount_order, i, 1);
    return blk_child_pwrite(file, plan->table_at << bits, bytes, buf, 0, err);
}

/* Written, not left out: in place on a device something else is there. */
static int write_empty_l1(struct blk_node *file, const struct qcow2_request *request,
                          const struct plan *plan, struct blk_error *err)
{
    uint64_t bytes = round_up(plan->l1_entries * 8, BLK_SECTOR_BYTES);
    if (!bytes)
        return 0;
    BLK_AUTOFREE uint8_t *zeroes = blk_buffer_alloc(bytes);
    if (!zeroes)
        return blk_fail(err, ENOMEM, "creating '%s'", file->name);
    memset(zeroes, 0, bytes);
    return blk_child_pwrite(file, plan->l1_at << request->cluster_bits, bytes, zeroes, 0, err);
}

/* ---- preallocation ---- */

/* The image opened for a moment over the same nodes, which the caller keeps. */
static int open_created(struct blk_create *create, struct blk_node **node, struct blk_error *err)
{
    const struct blk_open_over over = {
        .driver = create->driver,
        .file = create->file,
        .data = create->data,
        .flags = BLK_WRITABLE | BLK_NO_BACKING,
        .cache = create->cache,
    };
    int ret = blk_open_over(&over, node, err);
    if (ret < 0)
        return ret;
    blk_node_ref(create->file);
    if (create->data)
        blk_node_ref(create->data);
    return 0;
}

static int preallocate_image(struct blk_create *create, const struct qcow2_request *request,
                             enum blk_prealloc mode, struct blk_error *err)
{
    struct blk_node *node;
    int ret = open_created(create, &node, err);
    if (ret < 0)
        return ret;
    ret = qcow2_preallocate(node, 0, request->size, mode, err);
    if (ret < 0)
        blk_drop(node);
    else
        ret = blk_close(node, NULL, err);
    if (ret < 0)
        blk_context(err, "preallocating");
    return ret;
}

/*
 * The data file has the image's size from the beginning, as QEMU makes it. The space that a
 * preallocation sets aside is in it, as the guest's clusters are.
 */
static int make_data_file(struct blk_create *create, const struct qcow2_request *request,
                          struct blk_error *err)
{
    enum blk_prealloc mode = request->preallocation;
    if (mode == BLK_PREALLOC_METADATA)
        mode = BLK_PREALLOC_OFF;
    int ret = blk_create_data(create, request->data_file, err);
    if (ret == 0)
        ret = blk_child_truncate(create->data, request->size, mode, false, err);
    return ret;
}

int qcow2_write_image(struct blk_create *create, struct blk_error *err)
{
    struct qcow2_request request;
    struct blk_node *file = create->file;

    blk_options_get(create->options, "nocow"); /* the file's, which may not know it */
    int ret = qcow2_request_parse(create->options, &request, err);
    if (ret < 0) {
        blk_context(err, "creating '%s'", file->name);
        return ret;
    }
    const char *why = contradiction(&request);
    if (why)
        return blk_fail_why(err, EINVAL, why, "creating '%s'", file->name);

    /*
     * A raw data file is only what it promises when every guest cluster lies at its own place in
     * it.
     */
    enum blk_prealloc mode = request.preallocation;
    if (request.data_file_raw && mode == BLK_PREALLOC_OFF)
        mode = BLK_PREALLOC_METADATA;

    /* A device refuses that; it should do so while it still holds what it held. */
    if (!request.data_file && (mode == BLK_PREALLOC_FALLOC || mode == BLK_PREALLOC_FULL)) {
        ret = blk_child_truncate(file, blk_size(file), mode, false, err);
        if (ret < 0)
            return ret;
    }
    struct plan plan = make_plan(&request);
    ret = request.data_file ? make_data_file(create, &request, err) : 0;
    if (ret < 0)
        return ret;
    ret = write_header(file, &request, &plan, err);
    if (ret < 0)
        return ret;
    ret = write_refcounts(file, &request, &plan, err);
    if (ret < 0)
        return ret;
    ret = write_empty_l1(file, &request, &plan, err);
    if (ret < 0)
        return ret;
    return mode == BLK_PREALLOC_OFF ? 0 : preallocate_image(create, &request, mode, err);
}
