/* SPDX-License-Identifier: MIT */
/*
 * The header and its extensions in a check: errors that do no harm here, but keep QEMU from opening
 * the image. Fields that make an image unreadable are refused when it is opened (header/header.c).
 *
 * A repair removes what carries no information. It leaves what may be the only record of something:
 * which format the backing file has (if it were guessed, a guest could choose it), and where the
 * keys of an encrypted disk are.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/state.h"

/* What QEMU has room for; no format has a longer name. */
#define MAX_BACKING_FORMAT_BYTES 15

/* ---- findings ---- */

/* QEMU checks the offset even if there are no snapshots. */
static bool is_snapshots_offset_wrong(const struct qcow2_state *s)
{
    return !s->header.snapshot_count && (s->header.snapshots_offset % s->cluster_bytes ||
                                         s->header.snapshots_offset > INT64_MAX);
}

static bool is_raw_without_data_file(const struct qcow2_state *s)
{
    return s->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA && !s->data_file;
}

static bool is_backing_format_too_long(const struct qcow2_state *s)
{
    const struct qcow2_extension *format = qcow2_tail_find(&s->tail, QCOW2_EXT_BACKING_FORMAT);
    return format && format->bytes > MAX_BACKING_FORMAT_BYTES;
}

/* While the bitmaps count, a wrong length is found when their directory is read. */
static bool is_bitmaps_extension_wrong(const struct qcow2_state *s)
{
    const struct qcow2_extension *bitmaps = qcow2_tail_find(&s->tail, QCOW2_EXT_BITMAPS);
    return bitmaps && bitmaps->bytes != QCOW2_BITMAPS_EXT_BYTES &&
           !(s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS);
}

/* Whether another extension of that type, with other content, follows and counts instead. */
static bool is_overruled(const struct qcow2_tail *tail, const struct qcow2_extension *extension)
{
    const struct qcow2_extension *last = qcow2_tail_find(tail, extension->type);

    return last->bytes != extension->bytes || memcmp(last->data, extension->data, last->bytes) != 0;
}

static bool is_known(uint32_t type)
{
    return type == QCOW2_EXT_BACKING_FORMAT || type == QCOW2_EXT_BITMAPS ||
           type == QCOW2_EXT_LUKS || type == QCOW2_EXT_DATA_FILE;
}

/* ---- looking ---- */

static void check_extensions(struct qcow2_check *check)
{
    const struct qcow2_state *s = qcow2_state(check->node);

    for (size_t i = 0; i < s->tail.count; i++) {
        const struct qcow2_extension *extension = &s->tail.extensions[i];
        if (!is_known(extension->type) || !is_overruled(&s->tail, extension))
            continue;
        qcow2_check_corruption(
            check, "header extension 0x%08x occurs twice, with different content", extension->type);
        check->mend_header = check->mend_extensions = true;
    }
    if (is_backing_format_too_long(s)) {
        qcow2_check_corruption(check,
                               "the name of the backing file's format is longer than %d bytes",
                               MAX_BACKING_FORMAT_BYTES);
        check->mend_header = check->mend_extensions = true;
    }
    if (is_bitmaps_extension_wrong(s)) {
        qcow2_check_corruption(check, "the bitmaps extension has an invalid length");
        check->mend_header = check->mend_extensions = true;
    }
    if (qcow2_tail_find(&s->tail, QCOW2_EXT_LUKS) && s->header.crypt != QCOW2_CRYPT_LUKS)
        qcow2_check_corruption(check, "there is an encryption header, but the image is not "
                                      "encrypted with LUKS: the encryption method may be lost");
}

void qcow2_check_header(struct qcow2_check *check)
{
    const struct qcow2_state *s = qcow2_state(check->node);

    if (is_snapshots_offset_wrong(s)) {
        qcow2_check_corruption(check,
                               "the snapshot table has the invalid offset 0x%" PRIx64 ", though "
                               "there are no snapshots",
                               s->header.snapshots_offset);
        check->mend_header = true;
    }
    if (is_raw_without_data_file(s)) {
        qcow2_check_corruption(check,
                               "the header says that the data file is raw, but there is none");
        check->mend_header = true;
    }
    check_extensions(check);
}

/* ---- mending ---- */

/* Drops extensions that another one of the same type overrules. */
static void drop_overruled(struct qcow2_tail *tail)
{
    struct qcow2_tail old = *tail;

    qcow2_tail_copy(tail, &old);
    for (size_t i = 0; i < old.count; i++)
        if (is_known(old.extensions[i].type) && is_overruled(&old, &old.extensions[i]))
            qcow2_tail_remove(tail, old.extensions[i].type);
    for (size_t i = 0; i < old.count; i++) {
        const struct qcow2_extension *last = qcow2_tail_find(&old, old.extensions[i].type);
        if (!qcow2_tail_find(tail, last->type))
            qcow2_tail_set(tail, last->type, last->data, last->bytes);
    }
    qcow2_tail_free(&old);
}

/* Changes the extensions where cluster 0 has room for their new layout. */
static int mend_extensions(struct qcow2_check *check, struct qcow2_tail *tail,
                           struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    struct blk_error why = BLK_ERROR_INIT;

    drop_overruled(tail);
    if (is_bitmaps_extension_wrong(s))
        qcow2_tail_remove(tail, QCOW2_EXT_BITMAPS);
    if (is_backing_format_too_long(s) && !tail->backing_name)
        qcow2_tail_remove(tail, QCOW2_EXT_BACKING_FORMAT);
    else if (is_backing_format_too_long(s))
        qcow2_check_note(check, "The format of the backing file is left as it is: set it with "
                                "'blkimg rebase -u'");
    if (qcow2_header_can_relayout(check->node, tail, &why) < 0) {
        qcow2_check_note(check, "The header extensions are left as they are: %s", why.why);
        blk_error_clear(&why);
        return 0;
    }
    return qcow2_header_relayout(check->node, &s->header, tail, err);
}

int qcow2_mend_header(struct qcow2_check *check, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    struct qcow2_header next = s->header;
    struct qcow2_tail tail;

    if (is_snapshots_offset_wrong(s))
        next.snapshots_offset = 0;
    if (is_raw_without_data_file(s))
        next.autoclear &= ~QCOW2_AUTOCLEAR_RAW_DATA;
    int ret = qcow2_header_switch(check->node, &next, err);
    if (ret < 0 || !check->mend_extensions)
        return ret;
    qcow2_tail_copy(&tail, &s->tail);
    ret = mend_extensions(check, &tail, err);
    qcow2_tail_free(&tail);
    return ret;
}
