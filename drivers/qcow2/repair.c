/*
 * Making the counts right: a new refcount structure is built in free space from the references that the check
 * found, and one write of the header's sector switches to it. Killed at any moment the image has the old structure or
 * the new one, and the repair can be run again.
 */
#include <errno.h>
#include <string.h>

#include "drivers/qcow2/check.h"

/* What the image refers to now must stay readable until the switch, whatever its counts say. */
static int protect_all(const struct qcow2_check *check, struct qcow2_shadow *shadow,
                       struct blk_error *err)
{
    uint64_t cluster_bytes = qcow2_state(check->node)->cluster_bytes;
    int ret = 0;

    for (uint64_t i = 0; i < check->clusters && ret == 0; i++)
        if (qcow2_check_refs(check, i))
            ret = qcow2_shadow_protect(shadow, i * cluster_bytes, cluster_bytes, err);
    return ret;
}

/* The counts that the references ask for, without those of the refcount structure that is to go. */
static int counts_from_references(const struct qcow2_check *check, struct qcow2_shadow *shadow,
                                  struct blk_error *err)
{
    struct blk_check ignored = { .leaks = 0 };
    struct qcow2_check fresh;

    int ret = qcow2_check_begin(&fresh, check->node, &ignored, err);
    if (ret < 0)
        return ret;
    ret = qcow2_check_collect(&fresh, false, err);
    for (uint64_t i = 0; i < fresh.clusters && i < shadow->clusters && ret == 0; i++) {
        uint64_t refs = qcow2_check_refs(&fresh, i);
        if (refs)
            qcow2_count_put(shadow->counts, shadow->order, i, refs);
    }
    qcow2_check_end(&fresh);
    return ret;
}

/* Lowers what is too high and leaves the rest. */
static void drop_leaks(const struct qcow2_check *check, struct qcow2_shadow *shadow)
{
    for (uint64_t i = 0; i < shadow->clusters; i++) {
        uint64_t refs = qcow2_check_refs(check, i);
        if (qcow2_shadow_get(shadow, i) > refs)
            qcow2_count_put(shadow->counts, shadow->order, i, refs);
    }
}

int qcow2_repair_counts(struct qcow2_check *check, bool leaks_only, struct blk_error *err)
{
    struct blk_node *node = check->node;
    struct qcow2_header next = qcow2_state(node)->header;
    struct qcow2_shadow shadow;

    if (check->overflow && !leaks_only)
        return blk_fail_why(err, ERANGE, "the refcount width is too small for its references; "
                            "'blkimg amend -o refcount_bits=…' widens it", "repairing '%s'",
                            node->name);
    int ret = qcow2_shadow_begin(node, check->order, leaks_only, &shadow, err);
    if (ret < 0)
        return ret;
    ret = protect_all(check, &shadow, err);
    if (ret == 0 && leaks_only)
        drop_leaks(check, &shadow);
    else if (ret == 0)
        ret = counts_from_references(check, &shadow, err);
    if (ret == 0)
        ret = qcow2_shadow_finish(&shadow, leaks_only, &next, err);
    if (ret == 0)
        ret = blk_child_flush(qcow2_file(node), err);
    if (ret == 0)
        ret = qcow2_header_switch(node, &next, err);
    qcow2_shadow_end(&shadow);
    return ret;
}
