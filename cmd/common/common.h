/* SPDX-License-Identifier: MIT */
/*
 * What the subcommands share. A command looks like this (cmd/resize.c is a short real one):
 *
 *     static int flatten_main(int argc, char **argv);
 *
 *     const struct command cmd_flatten = {
 *         .name = "flatten",
 *         .summary = "Do this and that",
 *         .usage = "filename",
 *         .run = flatten_main,
 *     };
 *
 *     static int flatten_main(int argc, char **argv)
 *     {
 *         struct image_args image = IMAGE_ARGS_INIT;
 *         bool quiet = false;
 *         const struct cmd_option options[] = {
 *             IMAGE_OPTIONS(&image),
 *             { 'q', "quiet", CMD_FLAG, &quiet, NULL, "print nothing but errors" },
 *             CMD_OPTIONS_END,
 *         };
 *         const char *filename;
 *         int status = cmd_parse_image(&cmd_flatten, options, argc, argv, &filename);
 *         if (status != CMD_RUN)
 *             return status;
 *
 *         struct blk_error err = BLK_ERROR_INIT;
 *         struct blk_node *root;
 *         if (image_open(&image, filename, BLK_WRITABLE, NULL, &root, &err) < 0)
 *             return report_error(&err);
 *         status = flatten(root, &err) < 0 ? report_error(&err) : EXIT_OK;
 *         return finish(status, &root, 1, NULL);
 *     }
 *
 * and there is one line for it in the table of cmd/main.c. What must hold:
 * - Every failure passes through report_error(), report_failure() or report_usage(), once: one line
 *   on stderr. Nothing else is written there.
 * - Every root that was opened ends in finish() (or in blk_drop() where an error was already
 *   reported and nothing was written). finish() turns a failed close into exit status 5; a command
 *   never returns EXIT_OK after it has merely dropped a root.
 * - Only main() closes stdout, and reports what could not be written. A flush in between (a prompt,
 *   progress, the order of lines) needs no check: main() sees its failure, too.
 * - After a signal blockcore's calls return -ECANCELED; report that like any error. main() makes
 *   128 + signal of it.
 */
#ifndef CMD_COMMON_COMMON_H
#define CMD_COMMON_COMMON_H

#include "blockcore/base/error.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/ops.h"
#include "cmd/command.h"
#include "cmd/common/cmdline.h"
#include "cmd/common/create_options.h"
#include "cmd/common/image.h"
#include "cmd/common/json_print.h"
#include "cmd/common/progress.h"
#include "cmd/common/report.h"

#endif
