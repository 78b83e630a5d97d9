/* SPDX-License-Identifier: MIT */
/* What became of a request, printed as qemu-io does. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "blockcore/base/bytes.h"
#include "cmd/io/io.h"

#define DUMP_LINE_BYTES 16

void io_format_bytes(double bytes, char out[64])
{
    static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    size_t unit = 0;
    while (bytes >= 1024 && unit < ARRAY_SIZE(units) - 1) {
        bytes /= 1024;
        unit++;
    }

    char number[40];
    snprintf(number, sizeof(number), unit ? "%.3f" : "%f", bytes);
    char *zeroes = strstr(number, ".000");
    if (zeroes)
        *zeroes = '\0';
    snprintf(out, 64, "%s %s", number, units[unit]);
}

/* "00.12 sec", or "0:01:02.34" when `fixed` or from an hour on. */
static void format_time(uint64_t nanoseconds, bool fixed, char out[64])
{
    uint64_t seconds = nanoseconds / 1000000000;
    double fraction = (double)(nanoseconds % 1000000000) * 1e-9;
    if (!fixed && seconds < 3600) {
        snprintf(out, 64, "%05.2f sec", (double)seconds + fraction);
        return;
    }
    snprintf(out, 64, "%" PRIu64 ":%02" PRIu64 ":%05.2f", seconds / 3600, seconds / 60 % 60,
             (double)(seconds % 60) + fraction);
}

void io_print_report(const char *verb, uint64_t nanoseconds, uint64_t offset, uint64_t bytes,
                     bool compact)
{
    double seconds = (double)u64_max(nanoseconds, 1) * 1e-9;
    double bytes_rate = (double)bytes / seconds, request_rate = 1 / seconds;
    char amount[64], time[64], rate[64];

    format_time(nanoseconds, compact, time);
    if (compact) {
        printf("%" PRIu64 ",1,%s,%.3f,%.3f\n", bytes, time, bytes_rate, request_rate);
        return;
    }
    io_format_bytes((double)bytes, amount);
    io_format_bytes(bytes_rate, rate);
    /* One call: requests that end at the same time keep their lines together. */
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n"
           "%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n",
           verb, bytes, bytes, offset, amount, time, rate, request_rate);
}

void io_print_dump(const uint8_t *data, uint64_t bytes, uint64_t offset)
{
    for (uint64_t at = 0; at < bytes; at += DUMP_LINE_BYTES) {
        uint64_t end = u64_min(at + DUMP_LINE_BYTES, bytes);
        printf("%08" PRIx64 ":  ", offset + at);
        for (uint64_t i = at; i < end; i++)
            printf("%02x ", data[i]);
        putchar(' ');
        for (uint64_t i = at; i < end; i++)
            putchar(isalnum(data[i]) ? data[i] : '.');
        putchar('\n');
    }
}
