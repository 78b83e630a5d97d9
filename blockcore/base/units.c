/* SPDX-License-Identifier: MIT */
/* Parsing and printing sizes as qemu-img does, to the rounding. */
#include "blockcore/base/units.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int blk_parse_uint(const char *text, uint64_t *value)
{
    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, hex ? 16 : 10);
    if (*end || end == text)
        return -EINVAL;
    if (errno)
        return -ERANGE;
    *value = number;
    return 0;
}

/* The power of two of a suffix letter, or -1. */
static int suffix_shift(char suffix)
{
    static const char letters[] = "bkmgtpe";
    const char *at = suffix ? strchr(letters, tolower((unsigned char)suffix)) : NULL;
    return at ? (int)(at - letters) * 10 : -1;
}

/* Past what strtoull() takes before a number, but for a minus. */
static const char *skip_plus(const char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    return *text == '+' ? text + 1 : text;
}

int blk_parse_size(const char *text, uint64_t *bytes)
{
    text = skip_plus(text);
    if (!isdigit((unsigned char)*text))
        return -EINVAL;

    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    char *end;
    errno = 0;
    unsigned long long whole = strtoull(text, &end, hex ? 16 : 10);
    if (errno)
        return -ERANGE;

    /* A fraction is decimal digits only: strtod() alone would also take exponents and "inf". */
    double fraction = 0;
    if (*end == '.' && !hex) {
        size_t digits = strspn(end + 1, "0123456789");
        char *after = end + 1 + digits;
        char saved[32];
        snprintf(saved, sizeof(saved), "0.%.*s", (int)(digits < 25 ? digits : 25), end + 1);
        fraction = digits ? strtod(saved, NULL) : 0;
        end = after;
    }

    uint64_t unit = 1;
    if (*end) {
        int shift = suffix_shift(*end);
        /* In hexadecimal, B and E are digits and were taken; a real suffix still works. */
        if (shift < 0 || end[1])
            return -EINVAL;
        unit = UINT64_C(1) << shift;
    }
    if (fraction != 0 && unit == 1)
        return -EINVAL;

    uint64_t product;
    if (__builtin_mul_overflow((uint64_t)whole, unit, &product))
        return -ERANGE;
    uint64_t part = (uint64_t)(fraction * (double)unit + 0.5);
    if (__builtin_add_overflow(product, part, bytes))
        return -ERANGE;
    return 0;
}

void blk_format_size(uint64_t bytes, char out[32])
{
    static const char *const suffixes[] = { "", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei" };

    /* The unit changes at 1000, not at 1024, so that three digits are enough. */
    double value = (double)bytes;
    size_t index = 0;
    for (; value >= 1000; index++)
        value /= 1024;
    snprintf(out, 32, "%0.3g %sB", value, suffixes[index]);
}
