/* SPDX-License-Identifier: MIT */
/* Whether a buffer is zeroes: asked of all that is copied, so it has to be fast. */
#include "blockcore/base/bytes.h"

#include <string.h>

bool bytes_are_zero(const void *buf, size_t bytes)
{
    const uint8_t *p = buf;

    /* The first bytes decide for most data, before any loop is set up. */
    size_t head = bytes < 16 ? bytes : 16;
    for (size_t i = 0; i < head; i++)
        if (p[i])
            return false;
    if (bytes <= 16)
        return true;

    enum { STEP = 256 };
    size_t at = head;
    for (; at + STEP <= bytes; at += STEP) {
        uint64_t any = 0;
        for (size_t i = 0; i < STEP; i += sizeof(uint64_t)) {
            uint64_t word;
            memcpy(&word, p + at + i, sizeof(word));
            any |= word;
        }
        if (any)
            return false;
    }
    for (; at < bytes; at++)
        if (p[at])
            return false;
    return true;
}
