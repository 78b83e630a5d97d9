/* SPDX-License-Identifier: MIT */
/* The version, and the libraries that this build uses. */
#include "cmd/version.h"

#include <jansson.h>
#include <stdio.h>
#include <zlib.h>

#include "cmd/common/program.h"
#include "config.h"

#ifdef HAVE_ZSTD
#include <zstd.h>
#endif
#ifdef HAVE_ISAL
#include <isa-l.h>
#endif
#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef HAVE_LIBCRYPTO
#include <openssl/opensslv.h>
#endif

/* The QEMU whose behaviour is kept to: scripts compare it. */
#define QEMU_VERSION "7.2.0"

void print_version(void)
{
    program_note_help();
    if (program_called_as() == PROGRAM_BLKIMG)
        printf("blkimg version %s\n", VERSION);
    else
        printf("%s version %s (blkimg %s)\n", program_name(), QEMU_VERSION, VERSION);
    printf("built with: popt, jansson %s, zlib %s", JANSSON_VERSION, zlibVersion());
#ifdef HAVE_ZSTD
    printf(", zstd %s", ZSTD_versionString());
#endif
#ifdef HAVE_ISAL
    printf(", ISA-L %d.%d.%d", ISAL_MAJOR_VERSION, ISAL_MINOR_VERSION, ISAL_PATCH_VERSION);
#endif
#ifdef HAVE_LIBDEFLATE
    printf(", libdeflate %s", LIBDEFLATE_VERSION_STRING);
#endif
#ifdef HAVE_LIBCRYPTO
    printf(", libcrypto %s", OPENSSL_VERSION_STR);
#endif
#ifdef HAVE_LIBURING
    printf(", liburing"); /* before 2.4 it does not tell its version */
#endif
    putchar('\n');
}
