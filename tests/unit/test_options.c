/* SPDX-License-Identifier: MIT */
/* Options from --image-opts text and json:, typed reads, groups, and what was never read. */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/options.h"
#include "tests/unit/check.h"

/* All of it as "key=value;..." in order; freed by the next call. */
static const char *shown(const struct blk_options *options)
{
    static char text[1000];
    size_t length = 0;
    text[0] = '\0';
    for (size_t i = 0; i < blk_options_count(options); i++)
        length += (size_t)snprintf(text + length, sizeof(text) - length, "%s%s=%s", i ? ";" : "",
                                   blk_options_key(options, i), blk_options_value(options, i));
    return text;
}

static void check_keyval(const char *text, const char *implied, const char *want)
{
    struct blk_options *options = blk_options_new();
    CHECK_INT(blk_options_parse_keyval(options, text, implied, NULL), 0);
    CHECK_STR(shown(options), want);
    blk_options_free(options);
}

static void check_json(const char *text, const char *want)
{
    struct blk_options *options = blk_options_new();
    struct blk_error err = BLK_ERROR_INIT;
    int ret = blk_options_parse_json(options, text, &err);
    if (want) {
        CHECK_INT(ret, 0);
        CHECK_STR(shown(options), want);
    } else {
        CHECK_INT(ret, -EINVAL);
        CHECK_INT(err.code, EINVAL);
    }
    blk_options_free(options);
}

TEST(keyval)
{
    check_keyval("", NULL, "");
    check_keyval("driver=raw,file.filename=x", NULL, "driver=raw;file.filename=x");
    check_keyval("file.filename=a,,b,,,size=1", NULL, "file.filename=a,b,;size=1");
    check_keyval("x=1,x=2", NULL, "x=2");
    check_keyval("a==b", NULL, "a==b");
    check_keyval("a=", NULL, "a=");
    check_keyval("lazy,nocow", NULL, "lazy=on;cow=off");
    check_keyval("x,lazy", "name", "name=x;lazy=on");
    check_keyval("a=1,x", "name", "a=1;x=on");
    check_keyval("a=1,", NULL, "a=1");

    struct blk_options *options = blk_options_new();
    CHECK_INT(blk_options_parse_keyval(options, "=1", NULL, NULL), -EINVAL);
    blk_options_free(options);
}

TEST(json)
{
    check_json("{}", "");
    check_json("{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"n\":3}}",
               "driver=raw;file.driver=file;file.n=3");
    check_json("{\"server\":[{\"host\":\"a\"},{\"host\":\"b\"}]}",
               "server.0.host=a;server.1.host=b");
    check_json("{\"a\":true,\"b\":false,\"c\":-9223372036854775808}",
               "a=on;b=off;c=-9223372036854775808");
    check_json("{\"driver\":null,\"backing\":null,\"file\":{\"backing\":null}}",
               "backing=;file.backing=");
    check_json("", NULL);
    check_json("[]", NULL);
    check_json("{\"a\":1.5}", NULL);
    check_json("{\"a\":1,\"a\":2}", NULL);
    check_json("{\"a\":\"x\\u0000y\"}", NULL);
    check_json("{\"a\":1} x", NULL);
}

/* What qemu-img 7.2 takes of them, and what it refuses. */
TEST(json_with_apostrophes)
{
    check_json("{'driver':'raw','file':{\"driver\":'file'}}", "driver=raw;file.driver=file");
    check_json(" {'a':'b\"c'} ", "a=b\"c");
    check_json("{'a':'b\\'c'}", "a=b'c");
    check_json("{'a':\"b\\'c\"}", "a=b'c");
    check_json("{'a':\"it's\"}", "a=it's");
    check_json("{'a':'\\u0078\\/\\\\\\n'}", "a=x/\\\n");
    check_json("{'a':'\\\\'}", "a=\\");
    check_json("{'a':1.0,'b':1e3}", "a=1;b=1000");
    check_json("{'a':'b',}", NULL);
    check_json("{'a':['b',]}", NULL);
    check_json("{,'a':'b'}", NULL);
    check_json("{'a':'b' 'c':'d'}", NULL);
    check_json("{'a':'b'", NULL);
    check_json("{'a':'b", NULL);
    check_json("{'a':'b\\", NULL);
    check_json("{'a':'b\\'", NULL);
    check_json("{'a':'b\nc'}", NULL);
    check_json("{'a':'\\a'}", NULL);
    check_json("{'a':'\\x41'}", NULL);
    check_json("{a:'b'}", NULL);
    check_json("{'a':/**/'b'}", NULL);
    check_json("{'a':'b'}'", NULL);
    check_json("'a'", NULL);
}

TEST(json_too_long)
{
    enum { BYTES = 2 << 20 };
    char *text = blk_xcalloc(BYTES + 1, 1);
    memset(text, ' ', BYTES);
    memcpy(text, "{'a':'b'}", 9);
    check_json(text, NULL);
    free(text);
}

TEST(json_nested_too_deep)
{
    enum { DEPTH = 10000 };
    char *text = blk_xcalloc(DEPTH * 6 + 1, 1);
    for (int i = 0; i < DEPTH; i++)
        memcpy(text + 5 * i, "{\"a\":", 5);
    check_json(text, NULL);
    free(text);
}

TEST(typed_reads)
{
    struct blk_options *options = blk_options_new();
    struct blk_error err = BLK_ERROR_INIT;
    bool yes = false, no = true, absent = true;
    uint64_t bytes = 7;

    blk_options_parse_keyval(options, "a=yes,b=n,c=maybe,d=4k,e=-1", NULL, NULL);
    CHECK_INT(blk_options_get_bool(options, "a", &yes, &err), 0);
    CHECK_INT(blk_options_get_bool(options, "b", &no, &err), 0);
    CHECK_INT(blk_options_get_bool(options, "zz", &absent, &err), 0);
    CHECK(yes && !no && absent);
    CHECK_INT(blk_options_get_bool(options, "c", &yes, &err), -EINVAL);
    CHECK(strstr(err.what, "'c'") && strstr(err.what, "'maybe'"));
    CHECK_INT(blk_options_get_size(options, "zz", &bytes, &err), 0);
    CHECK_INT(bytes, 7);
    CHECK_INT(blk_options_get_size(options, "d", &bytes, &err), 0);
    CHECK_INT(bytes, 4096);
    CHECK_INT(blk_options_get_uint(options, "d", &bytes, &err), -EINVAL);
    CHECK_INT(blk_options_get_size(options, "e", &bytes, &err), -EINVAL);
    CHECK_INT(bytes, 4096);
    blk_options_free(options);
}

TEST(what_was_never_read_is_known)
{
    struct blk_options *options = blk_options_new();
    struct blk_options *defaults = blk_options_new();

    blk_options_set(options, "a", "1");
    blk_options_set(options, "b", "2");
    blk_options_set(defaults, "b", "other");
    blk_options_set(defaults, "locking", "on");
    blk_options_merge_optional(options, defaults);
    CHECK_STR(shown(options), "a=1;b=2;locking=on");

    CHECK_STR(blk_options_peek(options, "a"), "1");
    CHECK_STR(blk_options_first_unused(options), "a");
    blk_options_get(options, "a");
    CHECK_STR(blk_options_first_unused(options), "b");
    blk_options_remove(options, "b");
    CHECK(!blk_options_first_unused(options));
    blk_options_set(options, "a", "again");
    CHECK_STR(blk_options_first_unused(options), "a");
    blk_options_free(options);
    blk_options_free(defaults);
}

TEST(groups)
{
    struct blk_options *options = blk_options_new();
    blk_options_parse_keyval(options, "file=x,file.a=1,filex=2,file.file.b=3,b=4", NULL, NULL);
    CHECK(blk_options_has_group(options, "file"));
    CHECK(!blk_options_has_group(options, "fil"));

    struct blk_options *group = blk_options_take_group(options, "file");
    CHECK_STR(shown(group), "a=1;file.b=3");
    CHECK_STR(shown(options), "file=x;filex=2;b=4");
    blk_options_free(group);
    blk_options_free(options);
}
