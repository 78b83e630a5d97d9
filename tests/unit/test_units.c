/* SPDX-License-Identifier: MIT */
/* Sizes as users write and read them: what qemu-img accepts and shows. */
#include <errno.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/units.h"
#include "tests/unit/check.h"

TEST(sizes_that_are_accepted)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        { "0", 0 },
        { "512", 512 },
        { "0x200", 512 },
        { "0x10k", 16 * KIB },
        { "0xE", 14 },
        { "5b", 5 },
        { "5B", 5 },
        { "4k", 4 * KIB },
        { "4K", 4 * KIB },
        { "1.5G", 3 * GIB / 2 },
        { "1.", 1 },
        { "1.k", KIB },
        { "1.0", 1 },
        { "1.0B", 1 },
        { "1.9999k", 2048 },
        { "1.0005k", 1025 },
        { "0.0005k", 1 },
        { "12.345M", 12944671 },
        { "2T", UINT64_C(2) << 40 },
        { "1P", UINT64_C(1) << 50 },
        { "1e", UINT64_C(1) << 60 },
        { "15.5E", (UINT64_C(31) << 59) },
        { "18446744073709551615", UINT64_MAX },
        { "0007", 7 },
        { " 1M", MIB },
        { "+1M", MIB },
        { " \t\n+1.5M", 3 * MIB / 2 },
        { "+0x10k", 16 * KIB },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t bytes = 99;
        bool held = blk_parse_size(cases[i].text, &bytes) == 0 && bytes == cases[i].bytes;
        if (!CHECK(held))
            printf("# '%s' gave %" PRIu64 "\n", cases[i].text, bytes);
    }
}

TEST(sizes_that_are_refused)
{
    static const struct {
        const char *text;
        int ret;
    } cases[] = {
        { "", -EINVAL },
        { "-1", -EINVAL },
        { "k", -EINVAL },
        { ".5k", -EINVAL },
        { "1.5", -EINVAL },
        { "1.5B", -EINVAL },
        { "1.5.2G", -EINVAL },
        { "5kk", -EINVAL },
        { "1e3", -EINVAL },
        { "0x", -EINVAL },
        { "0x1.8k", -EINVAL },
        { "inf", -EINVAL },
        { "nan", -EINVAL },
        { "1 G", -EINVAL },
        { "1G ", -EINVAL },
        { "1Z", -EINVAL },
        { "16E", -ERANGE },
        { "17179869184G", -ERANGE },
        { "18446744073709551616", -ERANGE },
        { " ", -EINVAL },
        { "+", -EINVAL },
        { "++1M", -EINVAL },
        { "+ 1M", -EINVAL },
        { "+-1M", -EINVAL },
        { " -1M", -EINVAL },
        { "+.5M", -EINVAL },
        { " 1M ", -EINVAL },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t bytes;
        int ret = blk_parse_size(cases[i].text, &bytes);
        if (!CHECK_INT(ret, cases[i].ret))
            printf("# for '%s'\n", cases[i].text);
    }
}

TEST(plain_numbers)
{
    uint64_t value;
    CHECK_INT(blk_parse_uint("0x10", &value), 0);
    CHECK_INT(value, 16);
    CHECK_INT(blk_parse_uint("010", &value), 0);
    CHECK_INT(value, 10);
    CHECK_INT(blk_parse_uint("10k", &value), -EINVAL);
    CHECK_INT(blk_parse_uint("", &value), -EINVAL);
    CHECK_INT(blk_parse_uint("+1", &value), -EINVAL);
    CHECK_INT(blk_parse_uint(" 1", &value), -EINVAL);
    CHECK_INT(blk_parse_uint("99999999999999999999", &value), -ERANGE);
}

TEST(sizes_are_shown_with_three_digits)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        { 0, "0 B" },
        { 999, "999 B" },
        { 1000, "0.977 KiB" },
        { 1024, "1 KiB" },
        { 1536, "1.5 KiB" },
        { 196 * KIB, "196 KiB" },
        { 999 * KIB, "999 KiB" },
        { 1000 * KIB, "0.977 MiB" },
        { 64 * MIB, "64 MiB" },
        { 10 * GIB, "10 GiB" },
        { UINT64_MAX, "16 EiB" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[32];
        blk_format_size(cases[i].bytes, text);
        CHECK_STR(text, cases[i].text);
    }
}
