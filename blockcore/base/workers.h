/* SPDX-License-Identifier: MIT */
/* Threads that share one job. */
#ifndef BLOCKCORE_BASE_WORKERS_H
#define BLOCKCORE_BASE_WORKERS_H

/*
 * Runs work(job) on so many threads, the caller's among them (which is the only one for 0, too),
 * and returns when all have ended. Where the system gives no more threads, the work goes on with
 * fewer. What work() returns is not looked at.
 */
void blk_run_workers(unsigned workers, void *(*work)(void *), void *job);

#endif
