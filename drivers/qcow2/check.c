/*
 * The order of a check: count the references, compare them with the refcounts, look at the entries
 * of the active tables. A repair makes the counts right first and then looks again: what it reports
 * as fixed is what the second look no longer finds.
 */
#include "drivers/qcow2/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "blockcore/memory.h"

__attribute__((format(printf, 3, 0)))
static void say(struct qcow2_check *check, bool is_error, const char *text, va_list args)
{
    if (!check->result->message)
        return;
    char line[1024];
    vsnprintf(line, sizeof(line), text, args);
    check->result->message(check->result->opaque, is_error, line);
}

void qcow2_check_corruption(struct qcow2_check *check, const char *text, ...)
{
    va_list args;
    va_start(args, text);
    say(check, true, text, args);
    va_end(args);
    check->result->corruptions++;
}

void qcow2_check_leak(struct qcow2_check *check, uint64_t clusters, const char *text, ...)
{
    va_list args;
    va_start(args, text);
    say(check, false, text, args);
    va_end(args);
    check->result->leaks += clusters;
}

int qcow2_check_begin(struct qcow2_check *check, struct blk_node *node, struct blk_check *result,
                      struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);

    *check = (struct qcow2_check){
        .node = node,
        .result = result,
        .order = s->header.refcount_order,
        .clusters = div_round_up(blk_size(qcow2_file(node)), s->cluster_bytes),
    };
    check->refs = calloc(1, qcow2_counts_bytes(check->order, check->clusters) + 8);
    check->uses = calloc(1, check->clusters / 4 + 1);
    if (check->refs && check->uses)
        return 0;
    qcow2_check_end(check);
    return blk_fail(err, ENOMEM, "checking '%s'", node->name);
}

void qcow2_check_end(struct qcow2_check *check)
{
    free(check->refs);
    free(check->uses);
    check->refs = check->uses = NULL;
}

static int look(struct qcow2_check *check, struct blk_error *err)
{
    int ret = qcow2_check_collect(check, true, err);
    if (ret == 0)
        ret = qcow2_check_compare(check, err);
    if (ret == 0)
        ret = qcow2_check_entries(check, QCOW2_MEND_NOTHING, err);
    return ret;
}

/* Another look at the image, silently: what is left? */
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

static int mend_all(struct qcow2_check *check, struct blk_error *err)
{
    int ret = qcow2_check_entries(check, QCOW2_MEND_CLEAR, err);
    if (ret == 0)
        ret = blk_child_flush(qcow2_file(check->node), err);
    if (ret == 0 && (check->broken_counts || check->result->leaks || check->result->corruptions))
        ret = qcow2_repair_counts(check, err);
    if (ret == 0)
        ret = qcow2_check_entries(check, QCOW2_MEND_SET, err);
    if (ret == 0)
        ret = blk_child_flush(qcow2_file(check->node), err);
    return ret;
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
    int ret = 0;

    if (repair & BLK_REPAIR_ERRORS)
        ret = mend_all(check, err);
    else if (result->leaks && !check->broken_counts)
        ret = qcow2_repair_leaks(check, err);
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

int qcow2_check(struct blk_node *node, unsigned repair, struct blk_check *result,
                struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_check check;

    int ret = blk_is_writable(node) ? qcow2_settle(node, err) : 0;
    if (ret == 0)
        ret = qcow2_check_begin(&check, node, result, err);
    if (ret < 0)
        return ret;
    result->has_allocation = true;
    result->total_clusters = div_round_up(blk_size(node), s->cluster_bytes);
    ret = look(&check, err);
    if (ret == 0 && repair && (result->corruptions || result->leaks ||
                               s->header.incompatible &
                                   (QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DIRTY)))
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
