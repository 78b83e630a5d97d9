/* SPDX-License-Identifier: MIT */
/*
 * Claims: who copies which clusters; and whether the snapshot still holds. What waits for a claim
 * or for the end of a save wakes up when one is removed.
 */
#include <stdio.h>

#include "blockcore/base/assert.h"
#include "blockcore/base/bytes.h"
#include "blockcore/filters/cbw/record.h"

int cbw_check_locked(struct blk_cbw *cbw, struct blk_error *err)
{
    ASSERT_LOCKED(&cbw->mutex);
    if (!cbw->broken)
        return 0;
    char why[sizeof(err->why)];
    snprintf(why, sizeof(why), "the snapshot is broken since a save failed: %.600s: %.300s",
             cbw->why.what, cbw->why.why);
    return blk_fail_why(err, cbw->why.code, why, "reading the frozen content of '%s'",
                        cbw->source->name);
}

int blk_cbw_check(struct blk_cbw *cbw, struct blk_error *err)
{
    LOCK_SCOPE(&cbw->mutex);
    return cbw_check_locked(cbw, err);
}

void cbw_claim_add(struct blk_cbw *cbw, struct cbw_claim *claim, uint64_t offset, uint64_t bytes)
{
    ASSERT_LOCKED(&cbw->mutex);
    uint64_t start = round_down(offset, cbw->cluster_bytes);
    uint64_t end = u64_min(round_up(offset + bytes, cbw->cluster_bytes), cbw->size);
    struct cbw_claim **tail = &cbw->claims;

    ASSERT(start < end);
    *claim = (struct cbw_claim){ .offset = start, .bytes = end - start };
    while (*tail)
        tail = &(*tail)->next;
    *tail = claim;
}

bool cbw_claim_is_free(const struct blk_cbw *cbw, const struct cbw_claim *claim)
{
    ASSERT_LOCKED(&cbw->mutex);
    for (const struct cbw_claim *other = cbw->claims; other != claim; other = other->next)
        if (ranges_overlap(other->offset, other->bytes, claim->offset, claim->bytes))
            return false;
    return true;
}

void cbw_claim_remove(struct blk_cbw *cbw, struct cbw_claim *claim)
{
    ASSERT_LOCKED(&cbw->mutex);
    struct cbw_claim **at = &cbw->claims;
    while (*at != claim)
        at = &(*at)->next;
    *at = claim->next;
    pthread_cond_broadcast(&cbw->changed);
}
