/* SPDX-License-Identifier: MIT */
/* Time that no change of the clock disturbs, and the pause that keeps a copy to its rate. */
#include "blockcore/base/clock.h"

#include <time.h>

#define PAUSE_NS 5000000

uint64_t blk_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

bool blk_rate_pause(const struct blk_rate *rate, uint64_t bytes)
{
    if (!rate->bytes_per_second)
        return false;
    double due_ns = (double)bytes / (double)rate->bytes_per_second * 1e9;
    if ((double)(blk_now_ns() - rate->started_ns) >= due_ns)
        return false;
    nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
    return true;
}
