/* SPDX-License-Identifier: MIT */
/*
 * The two levels of a flush, and why a failed one stays failed.
 *
 * flush_to_os runs down the graph in every cache mode; flush_to_disk makes the medium keep what it
 * was given, unless the cache mode is unsafe. The kernel reports a write-back error once: a
 * repeated fsync succeeds although pages were lost. So the first failure is kept in the node, and
 * every later flush returns it.
 */
#include "blockcore/graph/flush.h"

#include <errno.h>

#include "blockcore/graph/driver.h"

static int poisoned(struct blk_node *node, int code, struct blk_error *err)
{
    return blk_fail_why(err, code, "an earlier flush failed, and what it lost stays lost",
                        "flushing '%s'", node->name);
}

/* Keeps the first failure. Returns `ret`. */
static int remember(struct blk_node *node, int ret)
{
    int none = 0;
    if (ret < 0)
        atomic_compare_exchange_strong(&node->flush_error, &none, -ret);
    return ret;
}

/*
 * One at a time: the error of lost writes is given to one of two concurrent syncs, and the other
 * must not return before it is known. A caller that waited for a flush that failed does not retry.
 */
static int to_disk(struct blk_node *node, struct blk_error *err)
{
    if (!node->driver->data.flush_to_disk)
        return 0;
    LOCK_SCOPE(&node->to_disk);
    int earlier = atomic_load(&node->flush_error);
    int ret = earlier ? poisoned(node, earlier, err)
                      : remember(node, node->driver->data.flush_to_disk(node, err));
    return ret;
}

/*
 * The file child hears of both levels before they begin, whether or not this driver has anything to
 * do there.
 */
static int flush_levels(struct blk_node *node, struct blk_error *err)
{
    struct blk_node *file = blk_child(node, BLK_ROLE_FILE);
    bool both = !node->cache.no_flush;

    blk_event(file, BLK_EVENT_FLUSH_TO_OS);
    int ret = node->driver->data.flush_to_os ? node->driver->data.flush_to_os(node, err) : 0;
    if (ret == 0 && both)
        blk_event(file, BLK_EVENT_FLUSH_TO_DISK);

    for (int role = 0; role < BLK_ROLE_COUNT && ret == 0; role++) {
        struct blk_node *child = node->children[role];
        /* No data of this node is in its target, which is flushed when it is closed. */
        if (child && role != BLK_ROLE_TARGET && blk_is_writable(child))
            ret = blk_child_flush(child, err);
    }
    return ret == 0 && both ? to_disk(node, err) : ret;
}

int blk_child_flush(struct blk_node *node, struct blk_error *err)
{
    int earlier = atomic_load(&node->flush_error);
    if (earlier)
        return poisoned(node, earlier, err);
    if (!blk_is_writable(node))
        return 0;

    int ret = remember(node, flush_levels(node, err));
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "flushing '%s'", node->name);
    /* Another thread's flush may have failed meanwhile, with what was ours to hear. */
    earlier = atomic_load(&node->flush_error);
    return earlier ? poisoned(node, earlier, err) : 0;
}

int blk_flush(struct blk_node *node, struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_child_flush(node, err);
    blk_gate_leave(&node->gate);
    return ret;
}
