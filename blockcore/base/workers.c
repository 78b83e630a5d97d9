/* SPDX-License-Identifier: MIT */
/* Starting the threads of a job, and waiting for them. */
#include "blockcore/base/workers.h"

#include <pthread.h>
#include <stdlib.h>

void blk_run_workers(unsigned workers, void *(*work)(void *), void *job)
{
    unsigned extra = workers > 1 ? workers - 1 : 0, started = 0;
    pthread_t *threads = calloc(extra ? extra : 1, sizeof(*threads));

    while (threads && started < extra && pthread_create(&threads[started], NULL, work, job) == 0)
        started++;
    work(job);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    free(threads);
}
