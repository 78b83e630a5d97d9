/* SPDX-License-Identifier: MIT */
/* On-disk integers, rounding, ranges, and the search for a byte that is not zero. */
#include "blockcore/base/bytes.h"
#include "tests/unit/check.h"

TEST(big_endian_both_ways)
{
    uint8_t buf[8];
    be64_put(buf, UINT64_C(0x8182838485868788));
    for (int i = 0; i < 8; i++)
        CHECK_INT(buf[i], 0x81 + i);
    CHECK(be64_get(buf) == UINT64_C(0x8182838485868788));
    CHECK_INT(be32_get(buf + 1), 0x82838485);
    CHECK_INT(be16_get(buf + 6), 0x8788);
    be32_put(buf + 1, 0xfffefdfc);
    be16_put(buf + 6, 0xfbfa);
    CHECK_INT(be32_get(buf + 1), 0xfffefdfc);
    CHECK_INT(be16_get(buf + 6), 0xfbfa);
}

TEST(rounding)
{
    CHECK_INT(round_up(5, 4), 8);
    CHECK_INT(round_up(8, 4), 8);
    CHECK_INT(round_up(0, 4), 0);
    CHECK_INT(round_up(7, 6), 12);
    CHECK_INT(round_down(7, 6), 6);
    CHECK_INT(div_round_up(9, 4), 3);
    CHECK(div_round_up(UINT64_MAX, 2) == UINT64_C(1) << 63);
    CHECK(is_power_of_two(UINT64_C(1) << 63));
    CHECK(!is_power_of_two(0) && !is_power_of_two(6));
}

TEST(ranges)
{
    CHECK(range_within(0, 10, 10) && range_within(10, 0, 10));
    CHECK(!range_within(1, 10, 10) && !range_within(11, 0, 10));
    CHECK(!range_within(UINT64_MAX, 2, 10) && !range_within(2, UINT64_MAX, 10));
    CHECK(ranges_overlap(0, 10, 9, 1) && ranges_overlap(9, 1, 0, 10));
    CHECK(!ranges_overlap(0, 10, 10, 1) && !ranges_overlap(10, 1, 0, 10));
    CHECK(!ranges_overlap(5, 0, 0, 10) && !ranges_overlap(0, 10, 5, 0));
}

TEST(one_byte_is_found_anywhere)
{
    enum { MOST = 600 };
    static uint8_t buf[MOST + 8];

    for (size_t length = 0; length <= MOST; length += length < 40 ? 1 : 37) {
        size_t start = length % 8;
        buf[start + length] = 1; /* just behind: must not count */
        CHECK(bytes_are_zero(buf + start, length));
        buf[start + length] = 0;
        for (size_t at = start; at < start + length; at++) {
            buf[at] = 0x80;
            if (bytes_are_zero(buf + start, length))
                CHECK_INT(at, -1);
            buf[at] = 0;
        }
    }
}
