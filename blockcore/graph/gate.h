/* SPDX-License-Identifier: MIT */
/*
 * The in-flight count of a node. Each request that enters the graph passes the gate once; a
 * structural change (reopen, replace, truncate, close, ops.h) closes the gate, waits until nothing
 * is in flight, and opens it again afterwards. Never nested: only requests from outside the graph
 * pass it.
 */
#ifndef BLOCKCORE_GRAPH_GATE_H
#define BLOCKCORE_GRAPH_GATE_H

#include <stdbool.h>

#include "blockcore/base/lock.h"

struct blk_gate {
    struct blk_mutex mutex; /* guards the fields below */
    pthread_cond_t changed;
    unsigned in_flight;
    unsigned closed; /* how many drains are active */
};

void blk_gate_init(struct blk_gate *gate);
void blk_gate_destroy(struct blk_gate *gate);

/* Waits while the gate is closed, then counts one request in. */
void blk_gate_enter(struct blk_gate *gate);
void blk_gate_leave(struct blk_gate *gate);

/*
 * Keeps new requests out and waits for those in flight. Must not be called from a request. The
 * thread that began a drain ends it.
 */
void blk_gate_drain_begin(struct blk_gate *gate);
void blk_gate_drain_end(struct blk_gate *gate);

/*
 * How many drains of this thread are active. A driver's operation that runs alone does not know
 * which root its caller has drained, only that it must have drained one.
 */
extern _Thread_local unsigned blk_drains;

#define ASSERT_ALONE() ASSERT(blk_drains > 0)

static inline struct blk_gate *blk_gate_drain_scope(struct blk_gate *gate)
{
    blk_gate_drain_begin(gate);
    return gate;
}

static inline void blk_gate_drain_scope_end(struct blk_gate **gate)
{
    blk_gate_drain_end(*gate);
}

/* Drained from here to the end of the scope. */
#define BLK_DRAIN_SCOPE(gate) \
    __attribute__((cleanup(blk_gate_drain_scope_end), unused)) struct blk_gate *blk_drained = \
        blk_gate_drain_scope(gate)

#endif
