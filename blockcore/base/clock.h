/* SPDX-License-Identifier: MIT */
/* The clock that only goes forward (CLOCK_MONOTONIC), and keeping to a rate by it. */
#ifndef BLOCKCORE_BASE_CLOCK_H
#define BLOCKCORE_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

/* Nanoseconds since some moment. */
uint64_t blk_now_ns(void);

struct blk_rate {
    uint64_t bytes_per_second; /* 0: no limit */
    uint64_t started_ns;
};

/*
 * If the rate does not allow `bytes` yet, sleeps for at most a few milliseconds and returns true:
 * the caller checks whether it should still go on, and asks again.
 */
bool blk_rate_pause(const struct blk_rate *rate, uint64_t bytes);

#endif
