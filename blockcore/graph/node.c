/* SPDX-License-Identifier: MIT */
/* The life of a node in memory, and its edges; opening and closing are elsewhere. */
#include "blockcore/graph/node.h"

#include <stdlib.h>

#include "blockcore/base/assert.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/open_files.h"
#include "blockcore/graph/options.h"

struct blk_node *blk_node_new(const struct blk_driver *driver, const char *name, unsigned flags,
                              struct blk_cache_mode cache)
{
    struct blk_node *node = blk_xcalloc(1, sizeof(*node));

    node->driver = driver;
    node->state = blk_xcalloc(1, driver->state_bytes);
    node->name = blk_xstrdup(name);
    node->flags = flags;
    node->cache = cache;
    node->limits = (struct blk_limits){ .request_alignment = 1, .memory_alignment = 1 };
    node->refs = 1;
    blk_gate_init(&node->gate);
    blk_range_lock_init(&node->ranges);
    blk_mutex_init(&node->to_disk);
    return node;
}

void blk_node_free(struct blk_node *node)
{
    for (int role = 0; role < BLK_ROLE_COUNT; role++)
        ASSERT(!node->children[role]);
    ASSERT(!node->bitmaps);
    blk_open_files_remove(node);
    blk_gate_destroy(&node->gate);
    blk_range_lock_destroy(&node->ranges);
    blk_mutex_destroy(&node->to_disk);
    free(node->state);
    free(node->name);
    free(node->backing_name);
    free(node->backing_format);
    blk_options_free(node->options);
    blk_options_free(node->defaults);
    free(node);
}

void blk_node_ref(struct blk_node *node)
{
    node->refs++;
}

void blk_node_attach(struct blk_node *parent, enum blk_role role, struct blk_node *child)
{
    ASSERT(!parent->children[role]);
    parent->children[role] = child;
}

void blk_node_rename(struct blk_node *node, const char *name)
{
    char *copy = blk_xstrdup(name);
    free(node->name);
    node->name = copy;
}

void blk_node_set_size(struct blk_node *node, uint64_t bytes)
{
    atomic_store_explicit(&node->size, bytes, memory_order_release);
}

void blk_node_grow_size(struct blk_node *node, uint64_t bytes)
{
    uint_fast64_t size = atomic_load_explicit(&node->size, memory_order_acquire);
    while (size < bytes && !atomic_compare_exchange_weak(&node->size, &size, bytes))
        ;
}

struct blk_node *blk_bottom(struct blk_node *node)
{
    while (blk_child(node, BLK_ROLE_FILE))
        node = blk_child(node, BLK_ROLE_FILE);
    return node;
}

struct blk_node *blk_skip_filters(struct blk_node *node)
{
    while (node->driver->kind == BLK_FILTER)
        node = blk_child(node, BLK_ROLE_FILE);
    return node;
}
