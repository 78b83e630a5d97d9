/* SPDX-License-Identifier: MIT */
/* The gate: a drain waits for what is in flight, and keeps new requests out until it ends. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "blockcore/graph/gate.h"
#include "tests/unit/check.h"

struct visitor {
    struct blk_gate *gate;
    atomic_bool inside;
    pthread_t thread;
};

static void *visit(void *argument)
{
    struct visitor *v = argument;
    blk_gate_enter(v->gate);
    v->inside = true;
    blk_gate_leave(v->gate);
    return NULL;
}

static bool is_drained(struct blk_gate *gate)
{
    LOCK_SCOPE(&gate->mutex);
    return gate->closed && !gate->in_flight;
}

static void *drain(void *argument)
{
    struct visitor *v = argument;
    blk_gate_drain_begin(v->gate);
    v->inside = true;
    CHECK(is_drained(v->gate));
    blk_gate_drain_end(v->gate);
    return NULL;
}

TEST(requests_pass_an_open_gate_together)
{
    struct blk_gate gate;
    blk_gate_init(&gate);
    blk_gate_enter(&gate);
    blk_gate_enter(&gate);
    CHECK_INT(gate.in_flight, 2);
    blk_gate_leave(&gate);
    blk_gate_leave(&gate);
    blk_gate_destroy(&gate);
}

TEST(a_drain_waits_for_what_is_in_flight)
{
    struct blk_gate gate;
    struct visitor drainer = { .gate = &gate };
    blk_gate_init(&gate);
    blk_gate_enter(&gate);
    pthread_create(&drainer.thread, NULL, drain, &drainer);
    usleep(20000);
    CHECK(!drainer.inside);
    blk_gate_leave(&gate);
    pthread_join(drainer.thread, NULL);
    CHECK(drainer.inside);
    CHECK(!is_drained(&gate));
    blk_gate_destroy(&gate);
}

TEST(a_drain_keeps_new_requests_out)
{
    struct blk_gate gate;
    struct visitor late = { .gate = &gate };
    blk_gate_init(&gate);
    blk_gate_drain_begin(&gate);
    blk_gate_drain_begin(&gate);
    pthread_create(&late.thread, NULL, visit, &late);
    usleep(20000);
    CHECK(!late.inside);
    blk_gate_drain_end(&gate);
    usleep(20000);
    CHECK(!late.inside);
    blk_gate_drain_end(&gate);
    pthread_join(late.thread, NULL);
    CHECK(late.inside);
    blk_gate_destroy(&gate);
}

/* ---- a value that requests read and only a drained gate may change ---- */

static struct blk_gate busy_gate;
static int busy_value[2];

static void *read_values(void *argument)
{
    atomic_int *torn = argument;
    for (int i = 0; i < 3000; i++) {
        blk_gate_enter(&busy_gate);
        *torn += busy_value[0] != busy_value[1];
        blk_gate_leave(&busy_gate);
    }
    return NULL;
}

TEST(no_request_sees_a_change_half_done)
{
    pthread_t threads[4];
    atomic_int torn = 0;
    blk_gate_init(&busy_gate);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, read_values, &torn);
    for (int i = 0; i < 200; i++) {
        blk_gate_drain_begin(&busy_gate);
        busy_value[0]++;
        busy_value[1]++;
        blk_gate_drain_end(&busy_gate);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(torn, 0);
    blk_gate_destroy(&busy_gate);
}
