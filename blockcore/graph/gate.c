/* SPDX-License-Identifier: MIT */
/* The in-flight count and who waits for it: see gate.h. */
#include "blockcore/graph/gate.h"

#include "blockcore/base/assert.h"

_Thread_local unsigned blk_drains;

void blk_gate_init(struct blk_gate *gate)
{
    *gate = (struct blk_gate){ .in_flight = 0 };
    blk_mutex_init(&gate->mutex);
    pthread_cond_init(&gate->changed, NULL);
}

void blk_gate_destroy(struct blk_gate *gate)
{
    ASSERT(gate->in_flight == 0);
    pthread_cond_destroy(&gate->changed);
    blk_mutex_destroy(&gate->mutex);
}

void blk_gate_enter(struct blk_gate *gate)
{
    LOCK_SCOPE(&gate->mutex);
    while (gate->closed)
        blk_cond_wait(&gate->changed, &gate->mutex);
    gate->in_flight++;
}

void blk_gate_leave(struct blk_gate *gate)
{
    LOCK_SCOPE(&gate->mutex);
    ASSERT(gate->in_flight > 0);
    if (--gate->in_flight == 0 && gate->closed)
        pthread_cond_broadcast(&gate->changed);
}

void blk_gate_drain_begin(struct blk_gate *gate)
{
    LOCK_SCOPE(&gate->mutex);
    gate->closed++;
    while (gate->in_flight)
        blk_cond_wait(&gate->changed, &gate->mutex);
    blk_drains++;
}

void blk_gate_drain_end(struct blk_gate *gate)
{
    LOCK_SCOPE(&gate->mutex);
    ASSERT(gate->closed > 0 && blk_drains > 0);
    gate->closed--;
    blk_drains--;
    pthread_cond_broadcast(&gate->changed);
}
