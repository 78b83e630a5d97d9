/* SPDX-License-Identifier: MIT */
/*
 * SIGINT, SIGTERM and SIGHUP: the work stops between two requests, everything is closed as usual,
 * and the exit status is 128 + signal.
 */
#ifndef BLOCKCORE_BASE_CANCEL_H
#define BLOCKCORE_BASE_CANCEL_H

/*
 * Installs the handlers; a signal that was ignored at start (nohup) stays ignored. A second signal
 * does not kill.
 */
void blk_cancel_init(void);

/* The signal that asked to stop, or 0. Checked by long loops between requests. */
int blk_cancelled(void);

#endif
