/* SPDX-License-Identifier: MIT */
/*
 * What a command says when it is misused or fails. Where qemu-io says the same of a misused command
 * its words are kept: scripts look for them.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/units.h"
#include "cmd/common/report.h"
#include "cmd/io/io.h"

int io_misuse(const char *command, const char *text, ...)
{
    va_list args;
    va_start(args, text);
    BLK_AUTOFREE char *message = blk_xvasprintf(text, args);
    va_end(args);
    report_failure("io: %s: %s", command, message);
    return -EINVAL;
}

int io_bad_option(const char *command)
{
    return io_misuse(command, "invalid option -- '%c', or its value is missing (see 'help %s')",
                     optopt, command);
}

int io_report_error(const struct blk_error *err)
{
    report_error(err);
    return -err->code;
}

int io_parse_bytes(const char *text, uint64_t *bytes)
{
    int ret = blk_parse_size(text, bytes);
    if (ret == 0 && *bytes > INT64_MAX)
        ret = -ERANGE;
    if (ret == 0)
        return 0;
    printf("Parsing error: %s -- %s\n",
           ret == -ERANGE ? "argument too large"
                          : "non-numeric argument, or extraneous/unrecognized suffix",
           text);
    return -EINVAL;
}
