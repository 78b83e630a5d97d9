/* SPDX-License-Identifier: MIT */
/* The help of a command, made from its table of options (cmdline.h). */
#ifndef CMD_COMMON_USAGE_H
#define CMD_COMMON_USAGE_H

#include "cmd/command.h"
#include "cmd/common/cmdline.h"

/* `blkimg COMMAND --help`: how to call it, wrapped, and a line for each option. */
void usage_print_help(const struct command *command, const struct cmd_option *options);

/* A line for each form of the command, as in `blkimg help`: scripts look for words in them. */
void usage_print_syntax(const struct command *command, const struct cmd_option *options);

#endif
