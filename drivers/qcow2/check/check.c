/* SPDX-License-Identifier: MIT */
/*
 * The order of a check: count the references, compare them with the refcounts, look at the entries
 * of the active tables. A repair makes the counts right first and then looks again: what it reports
 * as fixed is what the second look no longer finds.
 */
#include <errno.h>
#include <inttypes.h>

#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/header/identity.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/epoch.h"

/*
 * Whether an entry of the active tables can be wrong. Not where each has COPIED and nothing else to
 * judge, and where all that they lead to is referred to once, as the counts say.
 */
static bool may_have_wrong_entries(const struct qcow2_check *check)
{
    return check->odd_entries || check->shared || check->counts_differ || check->broken_counts ||
           check->overflow || check->incomplete || check->tangled;
}

static int look(struct qcow2_check *check, struct blk_error *err)
{
    qcow2_check_header(check);
    int ret = qcow2_check_collect(check, true, err);
    if (ret == 0)
        ret = qcow2_check_compare(check, err);
    if (ret == 0 && may_have_wrong_entries(check))
        ret = qcow2_check_entries(check, QCOW2_MEND_NOTHING, err);
    qcow2_check_report_rest(check);
    return ret;
}

/* Checks once more, silently: what is left? */
static int look_again(struct blk_node *node, struct blk_check *left, struct blk_error *err)
{
    struct qcow2_check check;

    *left = (struct blk_check){ .leaks = 0 };
    int ret = qcow2_check_begin(&check, node, left, err);
    if (ret < 0)
        return ret;
    ret = look(&check, err);
    qcow2_check_end(&check);
    return ret;
}

/* Lists the counts that are about to be repaired. */
static int announce(struct qcow2_check *check, struct blk_error *err)
{
    check->announce = true;
    int ret = check->counts_differ ? qcow2_check_compare(check, err) : 0;
    check->announce = false;
    return ret;
}

/* In an image that is not fully understood nothing is freed, so counts that are too high stay. */
static bool needs_counts(const struct qcow2_check *check)
{
    return check->broken_counts || check->counts_low || check->mend_snapshots ||
           (check->counts_differ && !check->incomplete);
}

static int mend_all(struct qcow2_check *check, struct blk_error *err)
{
    int ret = qcow2_check_entries(check, QCOW2_MEND_CLEAR, err);
    if (ret == 0)
        ret = blk_child_flush(qcow2_file(check->node), err);
    if (ret == 0 && needs_counts(check))
        ret = qcow2_repair_counts(check, err);
    if (ret == 0)
        ret = qcow2_check_entries(check, QCOW2_MEND_SET, err);
    if (ret == 0)
        ret = blk_child_flush(qcow2_file(check->node), err);
    return ret;
}

/* COPIED was right for counts that were too high; where they are 1 now, it is missing. */
static int mend_leaks(struct qcow2_check *check, struct blk_error *err)
{
    int ret = qcow2_repair_leaks(check, err);
    if (ret == 0 && !check->incomplete)
        ret = qcow2_check_entries(check, QCOW2_MEND_SET, err);
    return ret < 0 ? ret : blk_child_flush(qcow2_file(check->node), err);
}

/* An image without errors is neither corrupt nor dirty. */
static int clear_marks(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_header next = qcow2_state(node)->header;

    next.incompatible &= ~(QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DIRTY);
    if (next.incompatible == qcow2_state(node)->header.incompatible)
        return 0;
    return qcow2_header_switch(node, &next, err);
}

static int repair_image(struct qcow2_check *check, unsigned repair, struct blk_error *err)
{
    struct blk_check *result = check->result;
    struct blk_check left;

    check->may_raise = repair & BLK_REPAIR_ERRORS;
    int ret = announce(check, err);
    if (ret == 0 && repair & BLK_REPAIR_ERRORS)
        ret = mend_all(check, err);
    else if (ret == 0 && result->leaks && !check->broken_counts)
        ret = mend_leaks(check, err);
    qcow2_check_report_rest(check);
    if (ret < 0)
        return ret;

    qcow2_forget_tables(check->node);
    ret = look_again(check->node, &left, err);
    if (ret < 0)
        return ret;
    result->leaks_fixed = result->leaks - u64_min(left.leaks, result->leaks);
    result->corruptions_fixed =
        result->corruptions - u64_min(left.corruptions, result->corruptions);
    if (left.corruptions || !(repair & BLK_REPAIR_ERRORS))
        return 0;
    return clear_marks(check->node, err);
}

/*
 * Starts the check over, silently, as everything has been reported. The figures of the first look
 * stay: what is left at the end tells what was fixed. Leaks that were hidden before are added.
 */
static int start_over(struct qcow2_check *check, struct blk_error *err)
{
    struct blk_check *result = check->result, again = { .leaks = 0 };
    struct blk_node *node = check->node;

    qcow2_check_end(check);
    qcow2_forget_tables(node);
    int ret = qcow2_check_begin(check, node, &again, err);
    if (ret == 0)
        ret = look(check, err);
    check->result = result;
    result->leaks = u64_max(result->leaks, again.leaks);
    return ret;
}

/* Removes what keeps the image from being understood, as far as the repair allows. */
static int clear_the_way(struct qcow2_check *check, unsigned repair, struct blk_error *err)
{
    bool lost = repair & BLK_REPAIR_LOST && check->result->lost_bytes;
    /*
     * What lies past the end of a file that was cut off is the only sign of the cut: it goes last.
     */
    bool keep = check->result->lost_bytes && !lost;
    bool bitmaps = repair & BLK_REPAIR_ERRORS && check->mend_bitmaps && !keep;
    bool header = repair & BLK_REPAIR_ERRORS && check->mend_header;
    int ret = header ? qcow2_mend_header(check, err) : 0;

    if (ret == 0 && bitmaps)
        ret = qcow2_mend_bitmaps(check, err);
    if (ret == 0 && lost) {
        check->discard_lost = true;
        qcow2_check_note(check, "%" PRIu64 " bytes of guest data are given up as lost",
                         check->result->lost_bytes);
        if (check->lost_active)
            ret = qcow2_identity_give_up(check->node, err);
        if (ret == 0)
            ret = blk_child_flush(qcow2_file(check->node), err);
        if (ret == 0)
            ret = qcow2_check_entries(check, QCOW2_MEND_CLEAR, err);
        if (ret == 0)
            ret = blk_child_flush(qcow2_file(check->node), err);
    }
    return ret == 0 && (header || bitmaps || lost) ? start_over(check, err) : ret;
}

int qcow2_check(struct blk_node *node, unsigned repair, struct blk_check *result,
                struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_check check;

    int ret = blk_is_writable(node) ? qcow2_commit_all(node, err) : 0;
    if (ret == 0)
        ret = qcow2_check_begin(&check, node, result, err);
    if (ret < 0)
        return ret;
    result->has_allocation = true;
    result->total_clusters = div_round_up(blk_size(node), s->cluster_bytes);
    ret = look(&check, err);
    if (ret == 0)
        ret = clear_the_way(&check, repair, err);
    if (ret == 0 && repair &&
        (result->corruptions || result->leaks ||
         s->header.incompatible & (QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DIRTY)))
        ret = repair_image(&check, repair, err);
    qcow2_check_end(&check);
    return ret;
}

int qcow2_repair_dirty(struct blk_node *node, struct blk_error *err)
{
    struct blk_check result = { .leaks = 0 };

    int ret = qcow2_check(node, BLK_REPAIR_ERRORS | BLK_REPAIR_LEAKS, &result, err);
    if (ret < 0) {
        blk_context(err, "repairing '%s', which was not closed cleanly", node->name);
        return ret;
    }
    if (result.corruptions > result.corruptions_fixed)
        return blk_fail_why(err, EIO, "it has errors that cannot be repaired; see 'blkimg check'",
                            "repairing '%s', which was not closed cleanly", node->name);
    return 0;
}
