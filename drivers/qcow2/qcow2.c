/* SPDX-License-Identifier: MIT */
/* The qcow2 driver: opening, closing, reopening, information, and the table of operations. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/info.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/options.h"
#include "blockcore/graph/reopen.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/bitmap/bitmap.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/identity.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/shape/options.h"
#include "drivers/qcow2/shape/shape.h"
#include "drivers/qcow2/snapshot/snapshot.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/l1.h"

#define MAX_REFSLICE_BYTES (64 * KIB)

static int probe(const uint8_t *head, size_t bytes)
{
    if (bytes < QCOW2_AT_BACKING_OFFSET || be32_get(head) != QCOW2_MAGIC)
        return 0;
    /* Version 1 is refused by open: better than to take the image for a raw one. */
    return be32_get(head + QCOW2_AT_VERSION) >= 1 ? 100 : 0;
}

/* ---- open ---- */

static void apply_settings(struct blk_node *node, const struct qcow2_settings *settings)
{
    struct qcow2_state *s = qcow2_state(node);
    uint32_t unit = (uint32_t)u64_max(qcow2_file(node)->limits.request_alignment, BLK_SECTOR_BYTES);

    s->l1_unit = (uint32_t)u64_min(unit, s->cluster_bytes);
    qcow2_cache_init(&s->l2_cache, &s->lock, (uint32_t)settings->slice_bytes, unit,
                     settings->l2_cache, BLK_EVENT_L2_LOAD);
    qcow2_cache_init(&s->refblock_cache, &s->lock,
                     (uint32_t)u64_min(s->cluster_bytes, MAX_REFSLICE_BYTES), unit,
                     settings->refcount_cache, BLK_EVENT_REFBLOCK_LOAD);
    s->is_l2_cache_given = settings->is_l2_given;
    s->pass_discard = settings->pass_discard;
    atomic_store(&s->overlap_checks, settings->overlap_checks);
    s->discard_no_unref = settings->discard_no_unref;
    qcow2_derive(s);
}

/* What the header names: backing file and its format. */
static void set_backing(struct blk_node *node)
{
    const struct qcow2_state *s = qcow2_state(node);
    const struct qcow2_extension *format = qcow2_tail_find(&s->tail, QCOW2_EXT_BACKING_FORMAT);

    free(node->backing_name);
    free(node->backing_format);
    node->backing_name = blk_xstrdup(s->tail.backing_name);
    node->backing_format = NULL;
    if (format && format->bytes && node->backing_name)
        node->backing_format = blk_xstrndup((const char *)format->data, format->bytes);
}

static int check_header_allows(struct blk_node *node, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    if (s->header.crypt != QCOW2_CRYPT_NONE && !(node->flags & BLK_NO_IO))
        return blk_fail_why(err, ENOTSUP, "it is encrypted", "Could not open '%s'", node->name);
    if (s->header.incompatible & QCOW2_INCOMPAT_CORRUPT && blk_is_writable(node) &&
        !(node->flags & BLK_IN_CHECK))
        return blk_fail_why(err, EACCES,
                            "Image is corrupt: it can only be read until 'blkimg "
                            "check -r all' has repaired it",
                            "Could not open '%s' for writing", node->name);
    return 0;
}

static char *data_file_name(const struct qcow2_state *s)
{
    const struct qcow2_extension *name = qcow2_tail_find(&s->tail, QCOW2_EXT_DATA_FILE);
    return name && name->bytes ? blk_xstrndup((const char *)name->data, name->bytes) : NULL;
}

/* Not for those who only look at headers: the name comes from a file that nobody vouches for. */
static int open_data_file(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    if (blk_child(node, BLK_ROLE_DATA))
        return 0; /* just made, see blk_create_data() */
    if (!s->data_file || node->flags & BLK_NO_IO) {
        struct blk_options *unused =
            s->data_file ? blk_options_take_group(options, "data-file") : NULL;
        blk_options_free(unused);
        return 0;
    }
    if (!blk_options_has_group(options, "data-file")) {
        BLK_AUTOFREE char *name = data_file_name(s);
        if (!name)
            return blk_fail_why(err, EINVAL, "neither its header nor an option names its data file",
                                "Could not open '%s'", node->name);
        /*
         * Unlike a backing file's, the name is relative to the current directory: so QEMU makes and
         * opens it.
         */
        blk_options_set(options, "data-file.filename", name);
    }
    int ret = blk_open_child(node, BLK_ROLE_DATA, options, "data-file", true, err);
    if (ret < 0)
        blk_context(err, "data file of '%s'", node->name);
    return ret;
}

/*
 * What a writer has to do before anything else: clear autoclear bits that it does not know, and
 * make a dirty image's refcounts right. A check wants to see the image as it is.
 */
static int prepare_writing(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret = 0;
    if (node->flags & BLK_IN_CHECK)
        return 0;
    if (s->header.autoclear & ~QCOW2_AUTOCLEAR_KNOWN) {
        struct qcow2_header next = s->header;
        next.autoclear &= QCOW2_AUTOCLEAR_KNOWN;
        ret = qcow2_header_switch(node, &next, err);
    }
    if (ret == 0 && s->header.incompatible & QCOW2_INCOMPAT_DIRTY)
        ret = qcow2_repair_dirty(node, err);
    return ret;
}

static void free_state(struct blk_node *node)
{
    struct qcow2_state *s = qcow2_state(node);
    qcow2_drop_tables(s);
    free(s->next_identity);
    qcow2_tail_free(&s->tail);
    blk_mutex_destroy(&s->commit_mutex);
    blk_mutex_destroy(&s->header_mutex);
    blk_rwlock_destroy(&s->lock);
}

/* What the header names was there once: a file that ends before it was cut off. */
static void note_cut(struct blk_node *node)
{
    struct qcow2_state *s = qcow2_state(node);
    const struct qcow2_header *header = &s->header;
    const struct qcow2_extension *bitmaps = qcow2_tail_find(&s->tail, QCOW2_EXT_BITMAPS);
    uint64_t end = blk_size(qcow2_file(node));

    if ((header->snapshot_count && header->snapshots_offset >= end) ||
        header->reftable_offset >= end ||
        (bitmaps && bitmaps->bytes >= 24 && header->autoclear & QCOW2_AUTOCLEAR_BITMAPS &&
         be64_get(bitmaps->data + 16) >= end))
        atomic_store(&s->saw_cut, true);
}

static int open_inner(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_settings settings;
    s->opened_bytes = blk_size(qcow2_file(node));
    int ret = qcow2_header_read(node, &s->header, &s->tail, err);
    if (ret < 0)
        return ret;
    ret = blk_child_pread(qcow2_file(node), 0,
                          u64_min(blk_size(qcow2_file(node)), sizeof(s->sector0)), s->sector0, err);
    if (ret < 0)
        return ret;

    qcow2_derive(s);
    ret = check_header_allows(node, err);
    if (ret < 0)
        return ret;
    ret = qcow2_options_open(node, options, &settings, err);
    if (ret < 0)
        return ret;
    apply_settings(node, &settings);
    set_backing(node);
    qcow2_note_bitmap_directory(s);
    blk_node_set_size(node, s->header.size);
    qcow2_identity_note(node);
    note_cut(node);
    node->limits.zero_alignment = s->subcluster_bytes;
    if (!s->data_file) {
        bool zstd = s->header.compression == QCOW2_ZSTD;
        node->pieces = (struct blk_piece_kind){ s->cluster_bytes, zstd ? BLK_ZSTD : BLK_DEFLATE };
    }

    ret = open_data_file(node, options, err);
    if (ret == 0 && blk_is_writable(node))
        ret = prepare_writing(node, err);
    if (ret == 0)
        ret = qcow2_bitmaps_open(node, err);
    return ret;
}

static int qcow2_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);

    blk_mutex_init(&s->commit_mutex);
    blk_mutex_init(&s->header_mutex);
    blk_rwlock_init(&s->lock);
    atomic_init(&s->preallocation, -1);
    int ret = open_inner(node, options, err);
    if (ret < 0)
        free_state(node);
    return ret;
}

/* ---- close ---- */

/*
 * What was written may end inside a sector: a compressed piece, or the end of a disk of odd size. A
 * loop device would cut that off.
 */
static int fill_last_sector(struct blk_node *node, struct blk_error *err)
{
    struct blk_node *file = qcow2_file(node);
    uint64_t size = blk_size(file);

    if (size <= qcow2_state(node)->opened_bytes || size % BLK_SECTOR_BYTES == 0)
        return 0;
    return blk_child_truncate(file, round_up(size, BLK_SECTOR_BYTES), BLK_PREALLOC_OFF, false, err);
}

static int qcow2_store(struct blk_node *node, struct blk_close_report *report,
                       struct blk_error *err)
{
    int ret = qcow2_bitmaps_store(node, report, err);
    return ret < 0 ? ret : fill_last_sector(node, err);
}

static int qcow2_release(struct blk_node *node, struct blk_error *err)
{
    (void)err;
    free_state(node);
    return 0;
}

/* ---- reopen ---- */

static int qcow2_reopen_prepare(struct blk_reopen *reopen, struct blk_error *err)
{
    struct blk_node *node = reopen->node;
    bool to_writable = reopen->flags & BLK_WRITABLE && !blk_is_writable(node);
    bool to_read_only = !(reopen->flags & BLK_WRITABLE) && blk_is_writable(node);
    unsigned old_flags = node->flags;

    if (to_read_only)
        return qcow2_bitmaps_store(node, NULL, err);
    if (!to_writable)
        return 0;
    node->flags = reopen->flags;
    int ret = qcow2_bitmaps_reopen(node, err);
    if (ret == 0)
        ret = check_header_allows(node, err);
    /* Tables are read again where somebody who takes no locks could have written them. */
    if (ret == 0)
        qcow2_forget_tables(node);
    if (ret == 0)
        ret = prepare_writing(node, err);
    node->flags = old_flags;
    return ret;
}

static void qcow2_reopen_commit(struct blk_reopen *reopen)
{
    const struct blk_dirty_bitmaps *bitmaps = reopen->node->bitmaps;

    for (struct blk_dirty_bitmap *b = bitmaps ? bitmaps->first : NULL; b; b = b->next)
        b->read_only = !(reopen->flags & BLK_WRITABLE);
    qcow2_options_reopened(reopen->node, reopen->flags & BLK_WRITABLE);
}

/* ---- information ---- */

static void add_specific(struct blk_node *node, struct blk_info *info)
{
    const struct qcow2_state *s = qcow2_state(node);
    const struct qcow2_header *header = &s->header;
    struct blk_value *specific = &info->specific;

    info->specific_type = "qcow2";
    blk_value_add_text(specific, "compat", header->version < 3 ? "0.10" : "1.1");
    blk_value_add_text(specific, "compression-type",
                       header->compression == QCOW2_ZSTD ? "zstd" : "zlib");
    if (header->version < 3) {
        blk_value_add_number(specific, "refcount-bits", UINT64_C(1) << s->refcount_order);
        return;
    }
    blk_value_add_bool(specific, "lazy-refcounts",
                       header->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
    qcow2_bitmaps_info(node, specific);
    blk_value_add_number(specific, "refcount-bits", UINT64_C(1) << s->refcount_order);
    BLK_AUTOFREE char *data_file = s->data_file ? data_file_name(s) : NULL;
    if (data_file)
        blk_value_add_text(specific, "data-file", data_file);
    if (s->data_file)
        blk_value_add_bool(specific, "data-file-raw", s->data_file_raw);
    blk_value_add_bool(specific, "corrupt", info->corrupt);
    blk_value_add_bool(specific, "extended-l2", s->extended);
}

static int qcow2_get_info(struct blk_node *node, struct blk_info *info, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    const struct qcow2_header *header = &s->header;
    (void)err;

    info->cluster_bytes = s->cluster_bytes;
    info->dirty = header->incompatible & QCOW2_INCOMPAT_DIRTY;
    info->corrupt = header->incompatible & QCOW2_INCOMPAT_CORRUPT;
    info->encrypted = header->crypt != QCOW2_CRYPT_NONE;
    info->has_snapshots = true;
    info->vm_state_offset = qcow2_vm_state_offset(node);
    add_specific(node, info);
    return 0;
}

/* ---- backing file ---- */

/* What follows the header when it names that backing file; the caller frees. */
static int backing_tail(struct blk_node *node, const char *name, const char *format,
                        struct qcow2_tail *tail, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    if (name && s->data_file_raw)
        return blk_fail_why(err, EINVAL, "a raw data file shows the whole content by itself",
                            "giving '%s' a backing file", node->name);
    if (name && strlen(name) > QCOW2_MAX_BACKING_NAME)
        return blk_fail_why(err, EINVAL, "the name is too long", "giving '%s' a backing file",
                            node->name);

    qcow2_tail_copy(tail, &s->tail);
    qcow2_tail_set_backing(tail, name && *name ? name : NULL);
    if (tail->backing_name && format && *format)
        qcow2_tail_set(tail, QCOW2_EXT_BACKING_FORMAT, format, (uint32_t)strlen(format));
    else
        qcow2_tail_remove(tail, QCOW2_EXT_BACKING_FORMAT);
    return 0;
}

static int qcow2_can_change_backing(struct blk_node *node, const char *name, const char *format,
                                    struct blk_error *err)
{
    struct qcow2_tail tail;
    int ret = name ? blk_check_backing(node, name, format, NULL, err) : 0;
    if (ret == 0)
        ret = backing_tail(node, name, format, &tail, err);
    if (ret < 0)
        return ret;
    ret = qcow2_header_can_relayout(node, &tail, err);
    qcow2_tail_free(&tail);
    return ret;
}

static int qcow2_change_backing(struct blk_node *node, const char *name, const char *format,
                                struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_tail tail;
    int ret = name ? blk_check_backing(node, name, format, NULL, err) : 0;
    if (ret == 0)
        ret = backing_tail(node, name, format, &tail, err);
    if (ret < 0)
        return ret;
    qcow2_identity_apply(node, &tail);
    /* Copied data must be stable before the header stops naming the file that had it. */
    ret = qcow2_commit_all(node, err);
    if (ret == 0)
        ret = qcow2_header_relayout(node, &s->header, &tail, err);
    qcow2_tail_free(&tail);
    if (ret < 0)
        return ret;
    set_backing(node);
    qcow2_identity_note(node);
    return 0;
}

/* ---- the table; snapshots, machine state and identity have theirs next to their functions ---- */

static const struct blk_creation_ops qcow2_creation_ops = {
    .options = qcow2_create_options,
    .write_image = qcow2_write_image,
    .measure = qcow2_measure,
};

static const struct blk_reopen_ops qcow2_reopen_ops = {
    .prepare = qcow2_reopen_prepare,
    .commit = qcow2_reopen_commit,
    .options_read = qcow2_options_read,
    .options_apply = qcow2_options_apply,
};

static const struct blk_backing_ops qcow2_backing_ops = {
    .change = qcow2_change_backing,
    .can_change = qcow2_can_change_backing,
};

static const struct blk_upkeep_ops qcow2_upkeep_ops = {
    .check = qcow2_check,
    .amend_options = qcow2_amend_options,
    .amend = qcow2_amend,
    .make_empty = qcow2_make_empty,
};

static const struct blk_bitmap_ops qcow2_bitmap_ops = {
    .load = qcow2_bitmap_load,
    .track = qcow2_bitmaps_track,
    .can_add = qcow2_bitmaps_can_add,
    .can_create = qcow2_bitmaps_can_create,
    .release = qcow2_bitmap_release,
};

const struct blk_driver blk_driver_qcow2 = {
    .name = "qcow2",
    .kind = BLK_FORMAT,
    .state_bytes = sizeof(struct qcow2_state),
    .supports_backing = true,
    .probe = probe,
    .open = qcow2_open,
    .store = qcow2_store,
    .release = qcow2_release,
    .get_info = qcow2_get_info,
    .data = {
        .pread = qcow2_pread,
        .pwrite = qcow2_pwrite,
        .write_zeroes = qcow2_write_zeroes,
        .discard = qcow2_discard,
        .write_compressed = qcow2_write_compressed,
        .compress = qcow2_compress,
        .write_pieces = qcow2_write_pieces,
        .read_piece = qcow2_read_piece,
        .place = qcow2_place,
        .end_places = qcow2_end_places,
        .block_status = qcow2_block_status,
        .copy_range = qcow2_copy_range,
        .can_share = qcow2_can_share,
        .truncate = qcow2_truncate,
        .flush_to_os = qcow2_flush_to_os,
    },
    .creation = &qcow2_creation_ops,
    .reopen = &qcow2_reopen_ops,
    .backing = &qcow2_backing_ops,
    .upkeep = &qcow2_upkeep_ops,
    .snapshots = &qcow2_snapshot_ops,
    .vm_state = &qcow2_vm_state_ops,
    .bitmaps = &qcow2_bitmap_ops,
    .identity = &qcow2_identity_ops,
};
