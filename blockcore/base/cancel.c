/* SPDX-License-Identifier: MIT */
/* The signals that end a run in good order: a handler notes the first, the work asks for it. */
#include "blockcore/base/cancel.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

static atomic_int received;

static void on_signal(int number)
{
    int none = 0;
    atomic_compare_exchange_strong(&received, &none, number);
}

void blk_cancel_init(void)
{
    static const int signals[] = { SIGINT, SIGTERM, SIGHUP };

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct sigaction old;
        sigaction(signals[i], NULL, &old);
        if (old.sa_handler == SIG_IGN)
            continue;
        /* No SA_RESTART: a wait (a lock, a prompt) ends; image I/O repeats EINTR by itself. */
        struct sigaction action = { .sa_handler = on_signal };
        sigemptyset(&action.sa_mask);
        sigaction(signals[i], &action, NULL);
    }

    /* Writing to a closed pipe or past RLIMIT_FSIZE is an error to report, not a reason to die. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

int blk_cancelled(void)
{
    return atomic_load_explicit(&received, memory_order_relaxed);
}
