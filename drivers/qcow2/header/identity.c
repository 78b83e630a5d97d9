/* SPDX-License-Identifier: MIT */
/*
 * The identity of backups as a header extension of our own, which QEMU keeps as it keeps all that
 * it does not know.
 *
 * Layout: layout version u32 (1 or 2), bitmap count u32, backup id, parent id (16 bytes each), then
 * for each bitmap the hash of its name u64 and the id it counts from (16 bytes); in version 2 also
 * what tells the backing chain u64. It lies in the first sector with the other extensions, so it
 * changes with the directory of the bitmaps, in the same write.
 */
#include "drivers/qcow2/header/identity.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/header/header.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/state.h"

#define EXT_IDENTITY UINT32_C(0x626b6964) /* "bkid" */
#define LAYOUT_PLAIN 1
#define LAYOUT_BELOW 2
#define FIXED_BYTES (8 + 2 * BLK_ID_BYTES)
#define BITMAP_BYTES (8 + BLK_ID_BYTES)
#define MAX_BYTES (FIXED_BYTES + BLK_IDENTITY_BITMAPS * BITMAP_BYTES + 8)

static const uint8_t *take_id(const uint8_t *from, struct blk_id *id)
{
    memcpy(id->bytes, from, BLK_ID_BYTES);
    return from + BLK_ID_BYTES;
}

static uint8_t *put_id(uint8_t *to, const struct blk_id *id)
{
    memcpy(to, id->bytes, BLK_ID_BYTES);
    return to + BLK_ID_BYTES;
}

/* Whether this version knows the form, of which it takes the number of bitmaps. */
static bool is_known_form(const struct qcow2_extension *extension, uint32_t *layout,
                          uint32_t *count)
{
    if (extension->bytes < FIXED_BYTES)
        return false;
    *layout = be32_get(extension->data);
    *count = be32_get(extension->data + 4);
    return (*layout == LAYOUT_PLAIN || *layout == LAYOUT_BELOW) && *count <= BLK_IDENTITY_BITMAPS &&
           extension->bytes == FIXED_BYTES + *count * BITMAP_BYTES + (*layout == LAYOUT_BELOW) * 8u;
}

static int qcow2_identity_get(struct blk_node *node, struct blk_identity *identity,
                              struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    const struct qcow2_extension *extension = qcow2_tail_find(&s->tail, EXT_IDENTITY);

    *identity = (struct blk_identity){ .bitmap_count = 0 };
    if (s->next_identity) {
        *identity = *s->next_identity;
        return 0;
    }
    if (!extension)
        return 0;
    uint32_t layout, count;
    if (!is_known_form(extension, &layout, &count))
        return blk_fail_why(err, EINVAL, "its backup identity is of an unknown form", "'%s'",
                            node->name);

    const uint8_t *from = take_id(extension->data + 8, &identity->backup);
    from = take_id(from, &identity->parent);
    for (; identity->bitmap_count < count; identity->bitmap_count++) {
        identity->bitmaps[identity->bitmap_count].name_hash = be64_get(from);
        from = take_id(from + 8, &identity->bitmaps[identity->bitmap_count].since);
    }
    if (layout == LAYOUT_BELOW)
        identity->below = be64_get(from);
    return 0;
}

static void qcow2_identity_set(struct blk_node *node, const struct blk_identity *identity)
{
    struct qcow2_state *s = qcow2_state(node);

    if (!s->next_identity)
        s->next_identity = blk_xcalloc(1, sizeof(*s->next_identity));
    *s->next_identity = *identity;
    blk_bitmaps_of(node)->changed = true;
}

/* Where both ids lie, one behind the other. QEMU may have put the extension behind sector 0. */
static int find_ids(struct blk_node *node, uint64_t *place, struct blk_error *err)
{
    const struct qcow2_header *header = &qcow2_state(node)->header;
    uint64_t end =
        header->backing_offset ? header->backing_offset : UINT64_C(1) << header->cluster_bits;
    uint8_t mark[8];

    for (uint64_t at = header->header_bytes; range_within(at, sizeof(mark), end);
         at += sizeof(mark) + round_up(be32_get(mark + 4), 8)) {
        int ret = blk_child_pread(qcow2_file(node), at, sizeof(mark), mark, err);
        if (ret < 0)
            return ret;
        *place = at + sizeof(mark) + 8;
        if (be32_get(mark) == EXT_IDENTITY)
            return 0;
        if (be32_get(mark) == QCOW2_EXT_END)
            break;
    }
    return blk_fail_why(err, EINVAL, "its header has changed", "'%s'", node->name);
}

void qcow2_identity_note(struct blk_node *node)
{
    struct blk_identity identity;

    atomic_store(&node->is_backup, qcow2_identity_get(node, &identity, NULL) == 0 &&
                                       !blk_id_is_none(&identity.backup));
}

static int qcow2_identity_put(struct blk_node *node, const struct blk_id *backup,
                              const struct blk_id *parent, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct blk_identity identity;
    uint8_t ids[2 * BLK_ID_BYTES];
    uint64_t place = 0;

    int ret = qcow2_identity_get(node, &identity, err);
    if (ret == 0)
        ret = find_ids(node, &place, err);
    if (ret < 0)
        return ret;
    put_id(put_id(ids, backup ? backup : &identity.backup), parent ? parent : &identity.parent);
    ret = qcow2_header_patch(node, place, ids, sizeof(ids), err);
    for (size_t i = 0; i < s->tail.count && ret == 0; i++)
        if (s->tail.extensions[i].type == EXT_IDENTITY)
            memcpy((uint8_t *)s->tail.extensions[i].data + 8, ids, sizeof(ids));
    return ret;
}

void qcow2_identity_apply(struct blk_node *node, struct qcow2_tail *tail)
{
    const struct blk_identity *identity = qcow2_state(node)->next_identity;
    uint8_t data[MAX_BYTES];

    if (!identity)
        return;
    bool below = identity->bitmap_count && identity->below;
    be32_put(data, below ? LAYOUT_BELOW : LAYOUT_PLAIN);
    be32_put(data + 4, (uint32_t)identity->bitmap_count);
    uint8_t *to = put_id(data + 8, &identity->backup);
    to = put_id(to, &identity->parent);
    for (size_t i = 0; i < identity->bitmap_count; i++) {
        be64_put(to, identity->bitmaps[i].name_hash);
        to = put_id(to + 8, &identity->bitmaps[i].since);
    }
    if (below) {
        be64_put(to, identity->below);
        to += 8;
    }
    qcow2_tail_set(tail, EXT_IDENTITY, data, (uint32_t)(to - data));
}

int qcow2_identity_give_up(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    bool changed = blk_bitmaps_of(node)->changed;
    struct qcow2_tail tail;

    if (!s->next_identity && !qcow2_tail_find(&s->tail, EXT_IDENTITY))
        return 0;
    qcow2_tail_copy(&tail, &s->tail);
    /* One of an unknown form is removed: who knows it must not go on from it. */
    if (blk_identity_lose(node, true, NULL) < 0)
        qcow2_tail_remove(&tail, EXT_IDENTITY);
    qcow2_identity_apply(node, &tail);
    int ret = qcow2_header_relayout(node, &s->header, &tail, err);
    qcow2_tail_free(&tail);
    if (ret < 0)
        return ret;
    free(s->next_identity);
    s->next_identity = NULL;
    node->bitmaps->changed = changed;
    qcow2_identity_note(node);
    return 0;
}

const struct blk_identity_ops qcow2_identity_ops = {
    .get = qcow2_identity_get,
    .set = qcow2_identity_set,
    .put = qcow2_identity_put,
};
