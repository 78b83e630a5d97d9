/* SPDX-License-Identifier: MIT */
/*
 * Giving clusters back: at once, when nothing on the medium ever pointed to them; or later, by an
 * entry in the open epoch's list, when the change that unpointed them is stable (C3).
 */
#include "drivers/qcow2/tables/frees.h"

#include "blockcore/base/memory.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/refcount.h"

void qcow2_free_later(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      enum qcow2_free_why why)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    struct qcow2_frees *frees = &s->frees;
    uint64_t start = round_down(offset, s->cluster_bytes);
    uint64_t end = round_up(offset + bytes, s->cluster_bytes);
    bool discard = why == QCOW2_FREE_REQUEST    ? s->pass_discard.request
                   : why == QCOW2_FREE_SNAPSHOT ? s->pass_discard.snapshot
                   : why == QCOW2_FREE_SHRINK   ? true
                                                : s->pass_discard.other;

    blk_event(qcow2_file(node), BLK_EVENT_CLUSTER_FREE);
    if (!bytes)
        return;
    if (frees->count) {
        struct qcow2_free *last = &frees->list[frees->count - 1];
        if (last->offset + last->bytes == start && last->discard == discard) {
            last->bytes += end - start;
            return;
        }
    }
    if (frees->count == frees->capacity) {
        frees->capacity = frees->capacity ? frees->capacity * 2 : 64;
        frees->list = blk_xrealloc(frees->list, frees->capacity, sizeof(*frees->list));
    }
    frees->list[frees->count++] = (struct qcow2_free){ start, end - start, discard };
}

/* Whether taking one from the cluster's count frees it, and nothing will be packed into it. */
static bool is_last_use(struct blk_node *node, uint64_t cluster)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    uint64_t count = 0;
    if (s->compressed_next && (s->compressed_next - 1) >> s->cluster_bits == cluster)
        return false;
    return qcow2_refcount(node, cluster, &count, NULL) == 0 && count == 1;
}

/*
 * Lets the file forget what is about to be freed: before it is, so that nobody has been given it
 * yet.
 */
static void pass_discard(struct blk_node *node, const struct qcow2_free *entry)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t end = entry->offset + entry->bytes;

    for (uint64_t at = entry->offset; at < end;) {
        uint64_t from = at;
        qcow2_lock(s);
        while (at < end && is_last_use(node, at >> s->cluster_bits))
            at += s->cluster_bytes;
        qcow2_unlock(s);
        if (at > from)
            blk_child_discard(qcow2_file(node), from, at - from, NULL); /* a hint: may fail */
        else
            at += s->cluster_bytes;
    }
}

int qcow2_unalloc(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    QCOW2_LOCK_SCOPE(s);
    return qcow2_refcount_decrease(node, offset, bytes, err);
}

int qcow2_frees_apply(struct blk_node *node, const struct qcow2_frees *frees, struct blk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < frees->count && ret == 0; i++) {
        const struct qcow2_free *entry = &frees->list[i];
        if (entry->discard && qcow2_file(node)->flags & BLK_UNMAP)
            pass_discard(node, entry);
        ret = qcow2_unalloc(node, entry->offset, entry->bytes, err);
    }
    return ret;
}
