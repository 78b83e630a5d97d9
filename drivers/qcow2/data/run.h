/* SPDX-License-Identifier: MIT */
/* Where a write goes. For write.c. */
#ifndef DRIVERS_QCOW2_DATA_RUN_H
#define DRIVERS_QCOW2_DATA_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "drivers/qcow2/state.h"

/* How the clusters of a write are treated; see write.c. */
enum qcow2_way { QCOW2_WRITE_IN_PLACE, QCOW2_WRITE_KEPT, QCOW2_WRITE_NEW };

struct qcow2_run {
    enum qcow2_way way;
    bool first_data, last_data; /* all that is touched of the outer clusters is data in place */
    uint64_t guest;             /* of the first cluster */
    uint64_t clusters;
    uint64_t host;               /* of the first cluster */
    bool placed;                 /* beforehand, see qcow2_place() */
    bool unwritten;              /* what is not written there reads as zeroes */
    uint64_t from, to;           /* guest range that the request writes */
    uint64_t fill_from, fill_to; /* what has to be complete: [from, to) and old content around */
};

/*
 * [locked] Chooses run, place and what has to be filled for a write of [run->from, run->to), which
 * is in one slice; the run may end before run->to, which then is changed.
 */
int qcow2_choose_run(struct blk_node *node, struct qcow2_run *run, struct blk_error *err);

/* [locked] The run is linked, or its clusters are given back: its place is no promise any more. */
void qcow2_end_placed(struct blk_node *node, const struct qcow2_run *run);

/* The subclusters of one cluster that the guest range touches, as bits of the allocation half. */
uint64_t qcow2_subclusters_between(const struct qcow2_state *s, uint64_t from, uint64_t to);

#endif
