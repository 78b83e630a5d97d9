/* SPDX-License-Identifier: MIT */
/* What this build is made of. */
#ifndef CMD_VERSION_H
#define CMD_VERSION_H

/* Prints the version and the libraries built in. */
void print_version(void);

#endif
