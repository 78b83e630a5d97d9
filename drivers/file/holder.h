/* SPDX-License-Identifier: MIT */
/* Who holds a lock: only for messages. */
#ifndef DRIVERS_FILE_HOLDER_H
#define DRIVERS_FILE_HOLDER_H

#include <stddef.h>
#include <sys/types.h>

/*
 * Writes "process 1234 (qemu-io)" into `out`, or "another process" when that cannot be found out:
 * the holder of byte `byte` of the file behind `fd`, another open file description than `fd`
 * itself.
 */
void file_describe_holder(int fd, off_t byte, char *out, size_t out_bytes);

#endif
