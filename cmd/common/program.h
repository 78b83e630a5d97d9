/* SPDX-License-Identifier: MIT */
/*
 * The name under which the program was called. As "qemu-img" or "qemu-io" (a symlink) it says that
 * name in its messages and shows the version that scripts look for.
 */
#ifndef CMD_COMMON_PROGRAM_H
#define CMD_COMMON_PROGRAM_H

#include <stdbool.h>

enum program { PROGRAM_BLKIMG, PROGRAM_QEMU_IMG, PROGRAM_QEMU_IO };

/* Takes it from argv[0], which may be NULL. To be called first. */
void program_set(const char *argv0);

enum program program_called_as(void);

/* "blkimg", "qemu-img" or "qemu-io". */
const char *program_name(void);

/*
 * Notes that what is printed is help or the version, and tells so afterwards: scripts read the
 * part they look for and leave ("qemu-img --help | grep -q").
 */
void program_note_help(void);
bool program_noted_help(void);

#endif
