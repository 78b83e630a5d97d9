/* SPDX-License-Identifier: MIT */
/*
 * Amend: the options of an image that can be changed after it was made.
 *
 * Everything is validated before anything is written. Then one step after the other is done, each
 * by one switch of the header (C4, C8), in an order in which the image is valid after each:
 * version up, refcount width, flags and names, size, version down.
 */
#include "drivers/qcow2/header/identity.h"
#include "drivers/qcow2/shape/amend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/backing.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/links.h"
#include "blockcore/graph/names.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/open_files.h"
#include "blockcore/graph/options.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/shape/create.h"
#include "drivers/qcow2/shape/shape.h"
#include "drivers/qcow2/snapshot/snapshot.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/epoch.h"
#include "drivers/qcow2/tables/shadow.h"

const struct blk_option_desc qcow2_amend_options[] = {
    { "encrypt.state", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.keyslot", BLK_OPT_NUMBER, "Encryption: not supported", NULL },
    { "encrypt.old-secret", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.new-secret", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.iter-time", BLK_OPT_NUMBER, "Encryption: not supported", NULL },
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "compat", BLK_OPT_STRING, "Version of the format: 0.10 (v2) or 1.1 (v3)", NULL },
    { "backing_file", BLK_OPT_STRING, "Cannot be changed here; use rebase", NULL },
    { "backing_fmt", BLK_OPT_STRING, "Cannot be changed here; use rebase", NULL },
    { "data_file", BLK_OPT_STRING, "Name of the external data file; empty: none", NULL },
    { "data_file_raw", BLK_OPT_BOOL, "Can be turned off: the data file need not be readable as raw",
      NULL },
    { "lazy_refcounts", BLK_OPT_BOOL, "Let other programs postpone refcount updates", NULL },
    { "refcount_bits", BLK_OPT_NUMBER, "Width of a reference count: a power of two, 1 to 64",
      NULL },
    { NULL, 0, NULL, NULL },
};

/* What the image is to become; what is not given stays as it is. */
struct wanted {
    uint32_t version;
    unsigned refcount_order;
    uint64_t size;
    bool lazy_refcounts, data_file_raw;
    const char *data_file; /* NULL: as it is; "": no name */
};

/* ---- what is asked for ---- */

static int refuse_option(const struct blk_node *node, struct blk_error *err, const char *option,
                         const char *why)
{
    return blk_fail_why(err, ENOTSUP, why, "amending '%s': option '%s'", node->name, option);
}

static int parse(struct blk_node *node, struct blk_options *options, struct wanted *wanted,
                 struct blk_error *err)
{
    const struct qcow2_header *header = &qcow2_state(node)->header;
    const char *compat = blk_options_get(options, "compat");
    uint64_t refcount_bits = UINT64_C(1) << header->refcount_order;
    int ret;

    *wanted = (struct wanted){
        .version = header->version,
        .size = header->size,
        .lazy_refcounts = header->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS,
        .data_file_raw = header->autoclear & QCOW2_AUTOCLEAR_RAW_DATA,
        .data_file = blk_options_get(options, "data_file"),
    };
    ret = compat ? qcow2_parse_compat(compat, &wanted->version, err) : 0;
    if (ret < 0)
        return ret;
    ret = blk_options_get_uint(options, "refcount_bits", &refcount_bits, err);
    if (ret < 0)
        return ret;
    ret = qcow2_parse_refcount_bits(refcount_bits, &wanted->refcount_order, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_size(options, "size", &wanted->size, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_bool(options, "data_file_raw", &wanted->data_file_raw, err);
    if (ret < 0)
        return ret;
    bool lazy = wanted->version == 3 && wanted->lazy_refcounts;
    ret = blk_options_get_bool(options, "lazy_refcounts", &lazy, err);
    wanted->lazy_refcounts = lazy;
    return ret;
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* Backing file and encryption cannot be amended; naming what is there is no change. */
static int check_fixed_options(struct blk_node *node, struct blk_options *options,
                               struct blk_error *err)
{
    const char *file = blk_options_get(options, "backing_file");
    const char *format = blk_options_get(options, "backing_fmt");

    if (file && !same_text(file, node->backing_name))
        return refuse_option(node, err, "backing_file", "use rebase to change the backing file");
    if (format && !same_text(format, node->backing_format))
        return refuse_option(node, err, "backing_fmt", "use rebase to change the backing file");
    for (const struct blk_option_desc *desc = qcow2_amend_options; desc->name; desc++)
        if (strncmp(desc->name, "encrypt.", 8) == 0 && blk_options_get(options, desc->name))
            return refuse_option(node, err, desc->name, "encryption is not supported");
    return 0;
}

/* What has the file of that name open, as seen from the current directory; NULL: nothing. */
static const struct blk_node *find_user(const char *name)
{
    BLK_AUTOFREE char *path = *name ? blk_file_path(name) : NULL;
    return path ? blk_open_files_find(path) : NULL;
}

/* Whether the name is that of a file open for something else. */
static bool is_other_part(const struct blk_node *node, const char *name)
{
    const struct blk_node *user = find_user(name);
    return user && !blk_open_files_share(user, blk_child(node, BLK_ROLE_DATA));
}

/* Whether the image shows what another file holds once its header has that name. */
static bool is_other_data(const struct blk_node *node, const char *name)
{
    const struct blk_node *user = find_user(name);
    return *name && !(user && blk_open_files_share(user, blk_child(node, BLK_ROLE_DATA)));
}

static int check_wanted(struct blk_node *node, const struct wanted *wanted, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);

    bool same_width = s->refcount_order == wanted->refcount_order;
    if (wanted->version < 3 && wanted->refcount_order != 4)
        return refuse_option(node, err, same_width ? "compat" : "refcount_bits",
                             "version 2 (compat=0.10) has refcounts of 16 bits");
    if (wanted->version < 3 && wanted->lazy_refcounts)
        return refuse_option(node, err, "lazy_refcounts",
                             "version 2 (compat=0.10) does not have them");
    if (wanted->data_file && !s->data_file)
        return refuse_option(node, err, "data_file", "the image has no external data file");
    if (wanted->data_file && is_other_part(node, wanted->data_file))
        return refuse_option(node, err, "data_file",
                             "that file is the image itself or one of its chain");
    if (wanted->data_file_raw && !s->data_file_raw)
        return refuse_option(node, err, "data_file_raw",
                             "what the data file holds already need not be where a raw image "
                             "has it");
    if (wanted->data_file)
        return blk_check_name_to_store(blk_bottom(qcow2_file(node))->name, wanted->data_file, err);
    return 0;
}

/* ---- version up ---- */

/* Entries that version 3 accepts: those without VM state size and disk size get them. */
static int visit_upgrade(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    struct qcow2_snapshot copy = *snapshot;
    if (copy.extra_bytes < 16)
        copy.raw = NULL;
    return qcow2_snapshot_table_add(opaque, &copy, err);
}

static int upgrade_with(struct blk_node *node, struct qcow2_shadow *shadow,
                        struct qcow2_snapshot_table *table, struct blk_error *err)
{
    struct qcow2_header next = qcow2_state(node)->header;
    struct qcow2_tail tail;
    uint64_t old_bytes;

    int ret = qcow2_snapshot_table_walk(node, visit_upgrade, table, &old_bytes, err);
    if (ret == 0)
        ret = qcow2_snapshot_table_replace(shadow, table, old_bytes, &next, err);
    if (ret == 0)
        ret = qcow2_shadow_finish(shadow, true, &next, err);
    if (ret == 0)
        ret = qcow2_barrier(node, err);
    if (ret < 0)
        return ret;

    next.version = 3;
    qcow2_tail_copy(&tail, &qcow2_state(node)->tail);
    qcow2_tail_add_feature_names(&tail);
    ret = qcow2_header_relayout(node, &next, &tail, err);
    qcow2_tail_free(&tail);
    if (ret == 0)
        qcow2_forget_tables(node);
    return ret;
}

static int upgrade(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_shadow shadow;
    struct qcow2_snapshot_table table = { .data = NULL };

    int ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;
    ret = qcow2_shadow_begin(node, qcow2_state(node)->refcount_order, true, NULL, &shadow, err);
    if (ret == 0)
        ret = upgrade_with(node, &shadow, &table, err);
    qcow2_shadow_end(&shadow);
    free(table.data);
    if (ret < 0)
        blk_context(err, "changing the version to 3");
    return ret;
}

/* ---- refcount width ---- */

static int change_width(struct blk_node *node, unsigned order, const struct blk_progress *progress,
                        struct blk_error *err)
{
    struct qcow2_shadow shadow;
    struct qcow2_header next;

    int ret = qcow2_commit_all(node, err);
    if (ret < 0)
        return ret;
    next = qcow2_state(node)->header;
    ret = qcow2_shadow_begin(node, order, true, progress, &shadow, err);
    if (ret == 0)
        ret = qcow2_shadow_finish(&shadow, true, &next, err);
    qcow2_shadow_end(&shadow);
    if (ret == 0)
        ret = qcow2_barrier(node, err);
    if (ret == 0)
        ret = qcow2_header_switch(node, &next, err);
    if (ret == 0)
        qcow2_forget_tables(node);
    if (ret < 0)
        blk_context(err, "changing the width of refcounts to %u bits", 1u << order);
    return ret;
}

/* ---- flags and names ---- */

static void set_bit(uint64_t *bits, uint64_t bit, bool value)
{
    *bits = value ? *bits | bit : *bits & ~bit;
}

static int change_flags(struct blk_node *node, const struct wanted *wanted, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_header next = s->header;
    struct qcow2_tail tail;

    set_bit(&next.compatible, QCOW2_COMPAT_LAZY_REFCOUNTS, wanted->lazy_refcounts);
    set_bit(&next.autoclear, QCOW2_AUTOCLEAR_RAW_DATA, wanted->data_file_raw);
    bool same = next.compatible == s->header.compatible && next.autoclear == s->header.autoclear;
    if (same && !wanted->data_file)
        return 0;

    if (wanted->data_file && is_other_data(node, wanted->data_file)) {
        int ret = blk_identity_lose(node, true, err);
        if (ret < 0)
            return ret;
    }
    qcow2_tail_copy(&tail, &s->tail);
    qcow2_identity_apply(node, &tail);
    if (wanted->data_file && *wanted->data_file)
        qcow2_tail_set(&tail, QCOW2_EXT_DATA_FILE, wanted->data_file,
                       (uint32_t)strlen(wanted->data_file));
    else if (wanted->data_file)
        qcow2_tail_remove(&tail, QCOW2_EXT_DATA_FILE);
    int ret = wanted->data_file && *wanted->data_file
                  ? blk_sync_named(node, wanted->data_file, "raw", err)
                  : 0;
    if (ret == 0)
        ret = qcow2_commit_all(node, err);
    if (ret == 0)
        ret = qcow2_header_relayout(node, &next, &tail, err);
    qcow2_tail_free(&tail);
    if (ret < 0)
        return ret;
    s->data_file_raw = wanted->data_file_raw;
    qcow2_identity_note(node);
    return 0;
}

/* ---- all steps ---- */

/* The progress of one of several steps, as a part of all. */
struct steps {
    const struct blk_progress *all;
    uint64_t step, count;
};

static void on_step(void *opaque, uint64_t done, uint64_t total)
{
    const struct steps *steps = opaque;
    blk_progress_tell(steps->all, steps->step * total + done, steps->count * total);
}

int qcow2_amend(struct blk_node *node, struct blk_options *options, bool force,
                const struct blk_progress *progress, struct blk_error *err)
{
    ASSERT_ALONE();
    const struct qcow2_header *header = &qcow2_state(node)->header;
    struct wanted wanted;
    int ret;

    (void)force; /* about encryption keys only */
    ret = check_fixed_options(node, options, err);
    if (ret < 0)
        return ret;
    ret = parse(node, options, &wanted, err);
    if (ret < 0)
        return ret;
    ret = check_wanted(node, &wanted, err);
    if (ret < 0)
        return ret;

    bool up = wanted.version > header->version, down = wanted.version < header->version;
    bool other_width = wanted.refcount_order != header->refcount_order;
    struct steps steps = { progress, 0, (uint64_t)up + other_width + down };
    const struct blk_progress step = { on_step, &steps };
    if (up) {
        ret = upgrade(node, err);
        on_step(&steps, 1, 1);
        steps.step++;
    }
    if (ret == 0 && other_width) {
        ret = change_width(node, wanted.refcount_order, &step, err);
        steps.step++;
    }
    if (ret == 0 && header->version >= 3)
        ret = change_flags(node, &wanted, err);
    if (ret == 0 && wanted.size != header->size)
        ret = blk_child_truncate(node, wanted.size, BLK_PREALLOC_OFF, false, err);
    if (ret == 0 && down)
        ret = qcow2_downgrade(node, &step, err);
    return ret;
}
