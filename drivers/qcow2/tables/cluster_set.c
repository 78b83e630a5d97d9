/* SPDX-License-Identifier: MIT */
/*
 * A hash set of clusters: open addressing, a slot is the cluster's index + 1.
 */
#include "drivers/qcow2/tables/cluster_set.h"

#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"

#define EMPTY UINT64_C(0)
#define DELETED UINT64_MAX

static uint64_t *slot_of(const struct qcow2_cluster_set *set, uint64_t key)
{
    size_t at = (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (set->capacity - 1);
    uint64_t *deleted = NULL;

    for (;; at = (at + 1) & (set->capacity - 1)) {
        uint64_t *slot = &set->slots[at];
        if (*slot == key)
            return slot;
        if (*slot == DELETED && !deleted)
            deleted = slot;
        if (*slot == EMPTY)
            return deleted ? deleted : slot;
    }
}

static int make_room(struct qcow2_cluster_set *set)
{
    if (set->capacity && (set->used + 1) * 3 < set->capacity * 2)
        return 0;
    struct qcow2_cluster_set larger = { .capacity = set->capacity ? set->capacity * 2 : 256 };
    larger.slots = blk_calloc(larger.capacity, sizeof(*larger.slots));
    if (!larger.slots)
        return -ENOMEM;
    for (size_t i = 0; i < set->capacity; i++) {
        if (set->slots[i] == EMPTY || set->slots[i] == DELETED)
            continue;
        *slot_of(&larger, set->slots[i]) = set->slots[i];
        larger.used++;
    }
    free(set->slots);
    *set = larger;
    return 0;
}

bool qcow2_cluster_set_contains(const struct qcow2_cluster_set *set, uint64_t cluster)
{
    return set->capacity && *slot_of(set, cluster + 1) == cluster + 1;
}

int qcow2_cluster_set_add(struct qcow2_cluster_set *set, uint64_t cluster, struct blk_error *err)
{
    if (make_room(set) < 0)
        return blk_fail(err, ENOMEM, "recording where tables are");
    uint64_t *slot = slot_of(set, cluster + 1);
    if (*slot != cluster + 1) {
        set->used += *slot == EMPTY;
        *slot = cluster + 1;
    }
    return 0;
}

void qcow2_cluster_set_remove(struct qcow2_cluster_set *set, uint64_t cluster)
{
    if (!set->capacity)
        return;
    uint64_t *slot = slot_of(set, cluster + 1);
    if (*slot == cluster + 1)
        *slot = DELETED;
}
