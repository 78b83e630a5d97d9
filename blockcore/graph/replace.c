/* SPDX-License-Identifier: MIT */
/* Edges are counted and checked for loops before any of them is led elsewhere. */
#include "blockcore/graph/replace.h"

#include <errno.h>

#include "blockcore/base/assert.h"

/* Whether `node` is in the graph of `root`, or `root` itself. */
static bool graph_has(const struct blk_node *root, const struct blk_node *node)
{
    if (root == node)
        return true;
    for (int role = 0; role < BLK_ROLE_COUNT; role++)
        if (root->children[role] && graph_has(root->children[role], node))
            return true;
    return false;
}

int blk_graph_check_loop(const struct blk_node *parent, const struct blk_node *child,
                         struct blk_error *err)
{
    if (!graph_has(child, parent))
        return 0;
    return blk_fail_why(err, ELOOP, "it is above it", "putting '%s' below '%s'", child->name,
                        parent->name);
}

/*
 * The edges below `parent` that lead to `from`, outside of `to`'s graph: counted, and checked for
 * loops.
 */
static int count_edges(struct blk_node *parent, const struct blk_node *from,
                       const struct blk_node *to, unsigned *count, struct blk_error *err)
{
    int ret = 0;

    for (int role = 0; role < BLK_ROLE_COUNT && ret == 0; role++) {
        struct blk_node *child = parent->children[role];
        if (child == from) {
            ++*count;
            ret = to ? blk_graph_check_loop(parent, to, err) : 0;
        } else if (child && child != to) {
            ret = count_edges(child, from, to, count, err);
        }
    }
    return ret;
}

static void lead_edges(struct blk_node *parent, struct blk_node *from, struct blk_node *to)
{
    for (int role = 0; role < BLK_ROLE_COUNT; role++) {
        struct blk_node *child = parent->children[role];
        if (child == from) {
            if (to)
                blk_node_ref(to);
            parent->children[role] = to;
            from->refs--;
            ASSERT(from->refs > 0);
        } else if (child && child != to) {
            lead_edges(child, from, to);
        }
    }
}

int blk_graph_replace_node(struct blk_node *root, struct blk_node *from, struct blk_node *to,
                           struct blk_error *err)
{
    unsigned count = 0;
    ASSERT(from != to);
    int ret = count_edges(root, from, to, &count, err);

    if (ret < 0)
        return ret;
    if (!count)
        return blk_fail_why(err, ENOENT, "it is not below it", "replacing '%s' below '%s'",
                            from->name, root->name);

    blk_gate_drain_begin(&root->gate);
    lead_edges(root, from, to);
    blk_gate_drain_end(&root->gate);
    return 0;
}
