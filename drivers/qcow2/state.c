/* SPDX-License-Identifier: MIT */
/*
 * The state of an open image: its lock, what the header decides of it, the tables it forgets, and
 * the poison that ends all writing.
 */
#include "blockcore/graph/flush.h"
#include "drivers/qcow2/state.h"

#include <stdlib.h>

#include "blockcore/graph/io.h"

void qcow2_lock(struct qcow2_state *s)
{
    blk_write_lock(&s->lock);
}

void qcow2_unlock(struct qcow2_state *s)
{
    qcow2_cache_trim(&s->l2_cache);
    qcow2_cache_trim(&s->refblock_cache);
    blk_write_unlock(&s->lock);
}

void qcow2_derive(struct qcow2_state *s)
{
    const struct qcow2_header *header = &s->header;

    s->cluster_bits = header->cluster_bits;
    s->cluster_bytes = UINT32_C(1) << header->cluster_bits;
    s->extended = header->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
    s->l2_entry_bytes = s->extended ? 16 : 8;
    s->l2_entries = s->cluster_bytes / s->l2_entry_bytes;
    s->slice_entries = s->l2_cache.entry_bytes / s->l2_entry_bytes;
    s->subclusters = s->extended ? QCOW2_SUBCLUSTERS : 1;
    s->subcluster_bytes = s->cluster_bytes / s->subclusters;
    s->refcount_order = header->refcount_order;
    s->refcount_max = qcow2_count_max(header->refcount_order);
    s->refblock_entries = ((uint64_t)s->cluster_bytes * 8) >> header->refcount_order;
    s->data_file = header->incompatible & QCOW2_INCOMPAT_DATA_FILE;
    s->data_file_raw = s->data_file && header->autoclear & QCOW2_AUTOCLEAR_RAW_DATA;
    s->l1_entries = header->l1_entries;
    s->l1_offset = header->l1_offset;
}

bool qcow2_poison(struct qcow2_state *s, int code)
{
    int none = 0;
    return atomic_compare_exchange_strong(&s->poisoned, &none, code);
}

int qcow2_check_poison(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int code = atomic_load(&s->poisoned);
    if (!code)
        return 0;
    return blk_fail_why(err, code,
                        atomic_load(&s->found_corrupt)
                            ? "Image is corrupt: its tables contradict each other"
                            : "an earlier failure left its tables in an unknown state",
                        "writing to '%s'", node->name);
}

int qcow2_barrier(struct blk_node *node, struct blk_error *err)
{
    struct blk_node *data = node->children[BLK_ROLE_DATA];
    int ret = 0;
    if (data && !data->unnamed)
        ret = blk_child_flush(data, err);
    if (ret == 0 && !qcow2_file(node)->unnamed)
        ret = blk_child_flush(qcow2_file(node), err);
    return ret;
}

void qcow2_drop_inactive(struct qcow2_state *s)
{
    free(s->inactive.ranges);
    free(s->inactive.l2.slots);
    s->inactive = (struct qcow2_inactive){ .count = 0 };
}

void qcow2_drop_tables(struct qcow2_state *s)
{
    qcow2_cache_clear(&s->l2_cache);
    qcow2_cache_clear(&s->refblock_cache);
    free(s->l1);
    free(s->l1_dirty);
    free(s->reftable);
    free(s->frees.list);
    free(s->places.list);
    free(s->metadata.slots);
    s->l1 = NULL;
    s->l1_dirty = NULL;
    s->l1_any_dirty = false;
    s->reftable = NULL;
    s->reftable_entries = 0;
    s->reftable_dirty_start = s->reftable_dirty_end = 0;
    s->reftable_moved = s->reftable_unplaced = false;
    s->free_hint = 0;
    s->compressed_next = 0;
    s->frees = (struct qcow2_frees){ .count = 0 };
    s->places = (struct qcow2_places){ .count = 0 };
    s->metadata = (struct qcow2_cluster_set){ .capacity = 0 };
    s->metadata_known = false;
    qcow2_drop_inactive(s);
    s->preallocation = -1;
}

void qcow2_forget_tables(struct blk_node *node)
{
    struct qcow2_state *s = qcow2_state(node);
    QCOW2_LOCK_SCOPE(s);
    qcow2_drop_tables(s);
    qcow2_derive(s);
}
