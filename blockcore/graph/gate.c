#include "blockcore/graph/gate.h"

#include <assert.h>

void blk_gate_init(struct blk_gate *gate)
{
    *gate = (struct blk_gate){ .in_flight = 0 };
    pthread_mutex_init(&gate->mutex, NULL);
    pthread_cond_init(&gate->changed, NULL);
}

void blk_gate_destroy(struct blk_gate *gate)
{
    assert(gate->in_flight == 0);
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->mutex);
}

void blk_gate_enter(struct blk_gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    while (gate->closed)
        pthread_cond_wait(&gate->changed, &gate->mutex);
    gate->in_flight++;
    pthread_mutex_unlock(&gate->mutex);
}

void blk_gate_leave(struct blk_gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    assert(gate->in_flight > 0);
    if (--gate->in_flight == 0 && gate->closed)
        pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

void blk_gate_drain_begin(struct blk_gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    gate->closed++;
    while (gate->in_flight)
        pthread_cond_wait(&gate->changed, &gate->mutex);
    pthread_mutex_unlock(&gate->mutex);
}

void blk_gate_drain_end(struct blk_gate *gate)
{
    pthread_mutex_lock(&gate->mutex);
    assert(gate->closed > 0);
    gate->closed--;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}
