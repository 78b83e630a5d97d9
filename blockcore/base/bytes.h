/* SPDX-License-Identifier: MIT */
/*
 * On-disk integers, field by field: big endian as in qcow2 (and network formats). Plus the few
 * integer helpers that every layer needs.
 */
#ifndef BLOCKCORE_BASE_BYTES_H
#define BLOCKCORE_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline uint16_t be16_get(const void *from)
{
    const uint8_t *p = from;
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t be32_get(const void *from)
{
    const uint8_t *p = from;
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t be64_get(const void *from)
{
    const uint8_t *p = from;
    return (uint64_t)be32_get(p) << 32 | be32_get(p + 4);
}

static inline void be16_put(void *to, uint16_t value)
{
    uint8_t *p = to;
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline void be32_put(void *to, uint32_t value)
{
    uint8_t *p = to;
    be16_put(p, (uint16_t)(value >> 16));
    be16_put(p + 2, (uint16_t)value);
}

static inline void be64_put(void *to, uint64_t value)
{
    uint8_t *p = to;
    be32_put(p, (uint32_t)(value >> 32));
    be32_put(p + 4, (uint32_t)value);
}

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

#define BLK_SECTOR_BYTES 512

static inline uint64_t u64_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t u64_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/*
 * `unit` is any value above 0. The sum in round_up must not overflow: image sizes are below 2^63.
 */
static inline uint64_t round_down(uint64_t value, uint64_t unit)
{
    return value - value % unit;
}

static inline uint64_t round_up(uint64_t value, uint64_t unit)
{
    return round_down(value + unit - 1, unit);
}

static inline uint64_t div_round_up(uint64_t value, uint64_t unit)
{
    return value / unit + (value % unit != 0);
}

static inline bool is_power_of_two(uint64_t value)
{
    return value && !(value & (value - 1));
}

/* Whether [offset, offset + bytes) lies within [0, limit), without overflow. */
static inline bool range_within(uint64_t offset, uint64_t bytes, uint64_t limit)
{
    return bytes <= limit && offset <= limit - bytes;
}

static inline bool ranges_overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a_bytes && b_bytes && a < b + b_bytes && b < a + a_bytes;
}

/* Whether all `bytes` at `buf` are zero (bytes.c; written so that the compiler vectorises it). */
bool bytes_are_zero(const void *buf, size_t bytes);

#endif
