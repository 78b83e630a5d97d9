/* SPDX-License-Identifier: MIT */
/*
 * The -o options of create, convert, dd, measure and amend: checked against the tables of the
 * format's driver and of the protocol below it before anything is touched, so that an unknown
 * option stops the command and is named.
 */
#ifndef CMD_COMMON_CREATE_OPTIONS_H
#define CMD_COMMON_CREATE_OPTIONS_H

#include <stdbool.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/options.h"
#include "cmd/common/cmdline.h"

/* The tables that apply; a NULL table is empty. A name in both belongs to the first. */
struct option_tables {
    const char *format; /* for messages */
    const struct blk_option_desc *own, *below;
};

/*
 * The tables for creating `driver` at `filename` (NULL: only the driver's). Errors: -ENOTSUP when
 * the driver or the protocol cannot create; those of a file name that means nothing.
 */
int create_tables(const struct blk_driver *driver, const char *filename,
                  struct option_tables *tables, struct blk_error *err);

/* Whether any of the texts asks for help ("help" or "?" among its words). */
bool create_options_want_help(const struct cmd_list *texts);

/* Prints the options in qemu-img's form. `whole`: with what the protocol has. */
void create_options_help(const struct option_tables *tables, bool whole);

/* The same for amend. */
void amend_options_help(const struct option_tables *tables);

/* Adds all texts to `options`, later ones winning, and checks every name and value. */
int create_options_parse(const struct cmd_list *texts, const struct option_tables *tables,
                         struct blk_options *options, struct blk_error *err);

/* Prints " name=value" as qemu-img does, in the tables' order: what is set, and some defaults. */
void create_options_print(const struct option_tables *tables, const struct blk_options *options);

#endif
