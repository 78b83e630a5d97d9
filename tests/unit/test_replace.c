/* SPDX-License-Identifier: MIT */
/*
 * Replacing nodes in a graph.
 */
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "blockcore/graph/close.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/replace.h"
#include "tests/unit/check.h"

static const struct blk_driver plain = {
    .name = "plain",
    .kind = BLK_FORMAT,
    .supports_backing = true,
    .state_bytes = 1,
};

static struct blk_node *new_node(const char *name)
{
    return blk_node_new(&plain, name, 0, (struct blk_cache_mode){ .direct = false });
}

TEST(a_child_is_replaced_and_removed)
{
    struct blk_node *root = new_node("root"), *old = new_node("old"), *next = new_node("next");
    blk_node_attach(root, BLK_ROLE_BACKING, old);
    blk_node_ref(old);

    CHECK_INT(blk_graph_replace_node(root, old, next, NULL), 0);
    CHECK(blk_child(root, BLK_ROLE_BACKING) == next);
    CHECK_INT(blk_graph_replace_node(root, next, NULL, NULL), 0);
    CHECK(!blk_child(root, BLK_ROLE_BACKING));
    CHECK_INT(old->refs, 1);
    CHECK_INT(next->refs, 1);
    blk_drop(old);
    blk_drop(next);
    blk_drop(root);
}

TEST(no_loop_is_made)
{
    struct blk_node *root = new_node("root"), *mid = new_node("mid"), *base = new_node("base");
    struct blk_error err = BLK_ERROR_INIT;
    blk_node_attach(root, BLK_ROLE_BACKING, mid);
    blk_node_attach(mid, BLK_ROLE_BACKING, base);

    CHECK_INT(blk_graph_replace_node(root, base, root, &err), -ELOOP);
    CHECK(blk_child(mid, BLK_ROLE_BACKING) == base && blk_child(root, BLK_ROLE_BACKING) == mid);
    blk_drop(root);
}

/* root -> mid -> base, and root's data file is base too. */
TEST(every_edge_to_a_node_follows)
{
    struct blk_node *root = new_node("root"), *mid = new_node("mid"), *base = new_node("base");
    struct blk_node *next = new_node("next");
    blk_node_attach(root, BLK_ROLE_BACKING, mid);
    blk_node_attach(mid, BLK_ROLE_BACKING, base);
    blk_node_ref(base);
    blk_node_attach(root, BLK_ROLE_DATA, base);
    blk_node_ref(base);

    CHECK_INT(blk_graph_replace_node(root, base, next, NULL), 0);
    CHECK(blk_child(mid, BLK_ROLE_BACKING) == next && blk_child(root, BLK_ROLE_DATA) == next);
    CHECK_INT(base->refs, 1);
    CHECK_INT(next->refs, 3);
    CHECK_INT(blk_graph_replace_node(root, base, next, NULL), -ENOENT);
    CHECK_INT(blk_graph_replace_node(root, next, root, NULL), -ELOOP);
    CHECK_INT(next->refs, 3);
    blk_drop(base);
    blk_drop(next);
    blk_drop(root);
}

/* A filter put above a node keeps its own edge to it. */
TEST(a_node_is_put_above_another)
{
    struct blk_node *root = new_node("root"), *base = new_node("base"),
                    *filter = new_node("filter");
    blk_node_attach(root, BLK_ROLE_BACKING, base);
    blk_node_ref(base);
    blk_node_attach(filter, BLK_ROLE_FILE, base);
    blk_node_ref(base);

    CHECK_INT(blk_graph_replace_node(root, base, filter, NULL), 0);
    CHECK(blk_child(root, BLK_ROLE_BACKING) == filter && blk_child(filter, BLK_ROLE_FILE) == base);
    CHECK_INT(base->refs, 2);
    blk_drop(base);
    blk_drop(filter);
    blk_drop(root);
}

/* The drain waits for a request that is in flight. */
static void *replace(void *argument)
{
    struct blk_node **nodes = argument;
    blk_graph_replace_node(nodes[0], nodes[1], nodes[2], NULL);
    return NULL;
}

TEST(requests_in_flight_are_waited_for)
{
    struct blk_node *nodes[] = { new_node("root"), new_node("old"), new_node("next") };
    struct timespec pause = { .tv_nsec = 30000000 };
    pthread_t thread;
    blk_node_attach(nodes[0], BLK_ROLE_BACKING, nodes[1]);
    blk_node_ref(nodes[1]);

    blk_gate_enter(&nodes[0]->gate);
    REQUIRE(pthread_create(&thread, NULL, replace, nodes) == 0);
    nanosleep(&pause, NULL);
    CHECK(blk_child(nodes[0], BLK_ROLE_BACKING) == nodes[1]);
    blk_gate_leave(&nodes[0]->gate);
    pthread_join(thread, NULL);
    CHECK(blk_child(nodes[0], BLK_ROLE_BACKING) == nodes[2]);
    for (int i = 0; i < 3; i++)
        blk_drop(nodes[i]);
}
