/* SPDX-License-Identifier: MIT */
/* Under which name the program runs, from argv[0]. */
#include "cmd/common/program.h"

#include <string.h>

static const char *const names[] = {
    [PROGRAM_BLKIMG] = "blkimg",
    [PROGRAM_QEMU_IMG] = "qemu-img",
    [PROGRAM_QEMU_IO] = "qemu-io",
};

static enum program called_as = PROGRAM_BLKIMG;
static bool printed_help;

void program_set(const char *argv0)
{
    const char *slash = argv0 ? strrchr(argv0, '/') : NULL;
    const char *base = slash ? slash + 1 : argv0 ? argv0 : "";

    for (int i = PROGRAM_QEMU_IMG; i <= PROGRAM_QEMU_IO; i++)
        if (strcmp(base, names[i]) == 0)
            called_as = (enum program)i;
}

enum program program_called_as(void)
{
    return called_as;
}

const char *program_name(void)
{
    return names[called_as];
}

void program_note_help(void)
{
    printed_help = true;
}

bool program_noted_help(void)
{
    return printed_help;
}
