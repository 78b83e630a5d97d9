/* SPDX-License-Identifier: MIT */
/* File names: which are protocols, what they become, and where backing names lead. */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/names.h"
#include "tests/unit/check.h"

TEST(protocol_prefixes)
{
    CHECK(blk_has_protocol("file:x"));
    CHECK(blk_has_protocol("nbd://host/x"));
    CHECK(!blk_has_protocol("x"));
    CHECK(!blk_has_protocol("./file:x"));
    CHECK(!blk_has_protocol("/dev/disk:1"));
    CHECK(!blk_has_protocol(""));

    struct blk_error err = BLK_ERROR_INIT;
    CHECK_STR(blk_protocol_of("x", &err)->name, "file");
    CHECK_STR(blk_protocol_of("null-co://", &err)->name, "null-co");
    CHECK(!blk_protocol_of("fil:x", &err));
    CHECK(strstr(err.what, "'fil:x'"));
}

static void check_option(const char *filename, const char *key, const char *want)
{
    struct blk_options *options = blk_options_new();
    CHECK_INT(blk_filename_to_options(filename, options, NULL), 0);
    const char *got = blk_options_peek(options, key);
    CHECK_STR(got ? got : "(none)", want);
    blk_options_free(options);
}

TEST(names_become_options)
{
    check_option("a,b=c", "file.filename", "a,b=c");
    check_option("a", "file.driver", "file");
    check_option("a", "driver", "(none)");
    check_option("file:dir/a:b", "file.filename", "dir/a:b");
    check_option("./file:a", "file.filename", "./file:a");
    check_option("json:{\"driver\":\"raw\",\"file\":{\"filename\":\"x\"}}", "driver", "raw");
    check_option("json:{\"file.filename\":\"x\"}", "file.filename", "x");
    check_option("null-co://", "file.driver", "null-co");
}

TEST(bad_names)
{
    struct blk_options *options = blk_options_new();
    struct blk_error err = BLK_ERROR_INIT;
    CHECK_INT(blk_filename_to_options("", options, &err), -ENOENT);
    CHECK_INT(blk_filename_to_options("json:{", options, &err), -EINVAL);
    CHECK_INT(blk_filename_to_options("nope:x", options, &err), -ENOTSUP);
    CHECK_INT(err.code, ENOTSUP);
    blk_options_free(options);
}

static void check_backing(const char *image, const char *backing, const char *want)
{
    BLK_AUTOFREE char *got = blk_resolve_backing_name(image, backing);
    CHECK_STR(got, want);
}

TEST(backing_names_are_read_from_where_the_image_lies)
{
    check_backing("over.qcow2", "base", "base");
    check_backing("dir/over.qcow2", "base", "dir/base");
    check_backing("/a/b/over", "../base", "/a/b/../base");
    check_backing("dir/over", "/base", "/base");
    check_backing("dir/over", "file:base", "file:base");
    check_backing("dir/over", "json:{}", "json:{}");
    check_backing("dir/over", "sub/a:b", "dir/sub/a:b");
}

TEST(cache_modes)
{
    struct blk_cache_mode mode;
    CHECK_INT(blk_cache_mode_parse("none", &mode), 0);
    CHECK(mode.direct && !mode.no_flush && !mode.writethrough);
    CHECK_INT(blk_cache_mode_parse("unsafe", &mode), 0);
    CHECK(!mode.direct && mode.no_flush && !mode.writethrough);
    CHECK_INT(blk_cache_mode_parse("directsync", &mode), 0);
    CHECK(mode.direct && !mode.no_flush && mode.writethrough);
    CHECK_INT(blk_cache_mode_parse("writeback", &mode), 0);
    CHECK(!mode.direct && !mode.no_flush && !mode.writethrough);
    CHECK_INT(blk_cache_mode_parse("NONE", &mode), -EINVAL);
}
