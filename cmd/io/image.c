/* SPDX-License-Identifier: MIT */
/* open, close and reopen: the image of the session. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/graph/close.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/general_options.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/ops.h"
#include "blockcore/graph/reopen.h"
#include "cmd/common/report.h"
#include "cmd/io/io.h"

/* ---- opening ---- */

/* All modes mean threads here; a misspelt one is still an error. */
static int io_check_aio(const char *text, struct blk_error *err)
{
    if (strcmp(text, "threads") == 0 || strcmp(text, "native") == 0 ||
        strcmp(text, "io_uring") == 0)
        return 0;
    return blk_fail_why(err, EINVAL, "it is none of threads, native, io_uring",
                        "Invalid aio option: %s", text);
}

/* An image that options describe, together with a name or alone. */
static int open_described(const struct io_open_how *how, unsigned flags, struct blk_node **node,
                          struct blk_error *err)
{
    struct blk_open open = {
        .filename = how->name,
        .options = how->options,
        .flags = flags | image_flags(&how->image),
    };
    int ret = image_cache(how->cache, &open.cache, err);
    if (ret < 0)
        return ret;
    if (how->image.force_share && !how->read_only)
        return blk_fail_why(err, EINVAL, "-U is for reading only", "Could not open an image");
    return blk_open(&open, node, err);
}

/* Asked now, because asking waits until no request is in flight. */
static int find_compressed_bytes(struct io_session *session, struct blk_error *err)
{
    struct blk_node *image = blk_skip_filters(session->node);

    session->compressed_bytes = 0;
    return blk_supports(image, BLK_COMPRESSION)
               ? blk_cluster_bytes(session->node, &session->compressed_bytes, err)
               : 0;
}

/* The image as it is named, without what -s and -C put over it. */
static int open_image(const struct io_open_how *how, struct blk_node **node, struct blk_error *err)
{
    unsigned flags = BLK_UNMAP | (how->read_only || how->snapshot ? 0 : BLK_WRITABLE);
    int ret = 0;

    if (how->discard) {
        bool unmap = true;
        ret = blk_discard_parse(how->discard, &unmap, err);
        flags = unmap ? flags : flags & ~(unsigned)BLK_UNMAP;
    }
    if (ret == 0 && how->aio)
        ret = io_check_aio(how->aio, err);
    if (ret < 0)
        return ret;
    return how->options ? open_described(how, flags, node, err)
                        : image_open(&how->image, how->name, flags, how->cache, node, err);
}

int io_session_open(struct io_session *session, const struct io_open_how *how,
                    struct blk_error *err)
{
    struct blk_node *node = NULL;
    int ret = open_image(how, &node, err);

    if (ret == 0 && how->snapshot)
        ret = io_put_overlay(&node, how->read_only, err);
    if (ret == 0 && how->copy_on_read)
        ret = io_put_copy_on_read(&node, err);
    if (ret == 0) {
        session->node = node;
        session->image = how->copy_on_read ? blk_child(node, BLK_ROLE_FILE) : node;
        session->temporary = how->snapshot;
        ret = find_compressed_bytes(session, err);
    }
    if (ret < 0) {
        blk_drop(node);
        session->node = NULL;
    }
    return ret;
}

static int take_open_option(struct io_open_how *how, struct blk_options *options,
                            const char *command, int letter)
{
    struct blk_error err = BLK_ERROR_INIT;

    switch (letter) {
    case 'r':
        how->read_only = true;
        return 0;
    case 'U':
        how->image.force_share = true;
        return 0;
    case 'n':
        how->cache = "none";
        return 0;
    case 't':
        how->cache = optarg;
        return 0;
    case 'd':
        how->discard = optarg;
        return 0;
    case 'i':
        how->aio = optarg;
        return 0;
    case 'k':
        return 0;
    case 'o':
        how->options = options;
        return blk_options_parse_keyval(options, optarg, NULL, &err) < 0 ? io_report_error(&err)
                                                                         : 0;
    case 's':
        how->snapshot = true;
        return 0;
    case 'C':
        how->copy_on_read = true;
        return 0;
    default:
        return io_bad_option(command);
    }
}

static int open_from_words(struct io_session *session, struct blk_options *options, int argc,
                           char **argv)
{
    struct io_open_how how = { .image = IMAGE_ARGS_INIT };
    struct blk_error err = BLK_ERROR_INIT;

    optind = 0; /* glibc: start over */
    opterr = 0;
    int letter = getopt(argc, argv, "snCro:ki:t:d:U");
    for (; letter != -1; letter = getopt(argc, argv, "snCro:ki:t:d:U")) {
        int ret = take_open_option(&how, options, argv[0], letter);
        if (ret < 0)
            return ret;
    }
    if (optind < argc - 1 || (optind == argc && !how.options))
        return io_misuse(argv[0], "one image is needed, by name or by options (-o)");
    how.name = argv[optind];
    return io_session_open(session, &how, &err) < 0 ? io_report_error(&err) : 0;
}

int io_open(struct io_session *session, int argc, char **argv)
{
    if (session->node)
        return io_misuse(argv[0], "'%s': file open already, try 'help close'", session->node->name);
    struct blk_options *options = blk_options_new();
    int ret = open_from_words(session, options, argc, argv);
    blk_options_free(options);
    return ret;
}

/* ---- closing ---- */

int io_session_close(struct io_session *session)
{
    if (!session->node)
        return 0;
    io_release_breaks(session);
    io_pool_wait(session->pool);
    if (session->temporary)
        session->node = io_drop_overlay(session->node, session->image);
    if (close_roots(EXIT_OK, true, &session->node, 1, NULL) == EXIT_OK)
        return 0;
    session->close_failed = true;
    return -EIO;
}

int io_close(struct io_session *session, int argc, char **argv)
{
    (void)argc, (void)argv;
    return io_session_close(session);
}

/* ---- reopening ---- */

/* What a reopen changes; starts with what the image has. */
struct change {
    bool read_only, writable; /* -r, -w */
    bool has_cache;
    struct blk_cache_mode cache;
};

static int take_reopen_option(struct change *change, struct blk_options *options,
                              const char *command, int letter)
{
    struct blk_error err = BLK_ERROR_INIT;
    int ret = 0;

    switch (letter) {
    case 'r':
        change->read_only = true;
        break;
    case 'w':
        change->writable = true;
        break;
    case 'c':
        change->has_cache = true;
        ret = image_cache(optarg, &change->cache, &err);
        break;
    case 'o':
        ret = blk_options_parse_keyval(options, optarg, NULL, &err);
        break;
    default:
        return io_bad_option(command);
    }
    return ret < 0 ? io_report_error(&err) : 0;
}

/* Takes from -o what every node has; the driver gets the rest. */
static int take_node_options(struct change *change, struct blk_options *options)
{
    struct blk_error err = BLK_ERROR_INIT;
    bool clash = change->has_cache && blk_options_has_group(options, "cache");
    struct blk_cache_mode *cache = &change->cache;
    bool read_only = change->read_only, auto_read_only;
    int ret = 0;

    if (clash)
        ret = blk_fail_why(&err, EINVAL, "-c excludes it", "option 'cache'");
    else if (blk_options_peek(options, "read-only") && (change->read_only || change->writable))
        ret = blk_fail_why(&err, EINVAL, "-r and -w exclude it", "option 'read-only'");
    if (ret < 0 || blk_options_get_bool(options, "cache.direct", &cache->direct, &err) < 0 ||
        blk_options_get_bool(options, "cache.no-flush", &cache->no_flush, &err) < 0 ||
        blk_options_get_bool(options, "auto-read-only", &auto_read_only, &err) < 0 ||
        blk_options_get_bool(options, "read-only", &read_only, &err) < 0)
        return io_report_error(&err);

    if (blk_options_peek(options, "read-only")) {
        change->read_only = read_only;
        change->writable = !read_only;
    }
    return 0;
}

static int reopen_from_words(struct io_session *session, struct blk_options *options, int argc,
                             char **argv)
{
    struct change change = { .cache = session->node->cache };
    struct blk_error err = BLK_ERROR_INIT;

    optind = 0; /* glibc: start over */
    opterr = 0;
    int letter = getopt(argc, argv, "o:c:rw");
    for (; letter != -1; letter = getopt(argc, argv, "o:c:rw")) {
        int ret = take_reopen_option(&change, options, argv[0], letter);
        if (ret < 0)
            return ret;
    }
    if (optind < argc)
        return io_misuse(argv[0], "takes options only");
    if (change.read_only && change.writable)
        return io_misuse(argv[0], "Only one -r/-w option may be given");
    int ret = take_node_options(&change, options);
    if (ret < 0)
        return ret;

    bool writable = change.writable || (!change.read_only && blk_is_writable(session->node));
    struct blk_change changes[] = {
        { .node = session->node, .writable = writable, .cache = change.cache },
        { .node = session->image, .writable = writable, .cache = change.cache },
    };
    size_t count = session->image == session->node ? 1 : 2;
    changes[count - 1].options = options;
    io_pool_wait(session->pool); /* a request may have been submitted and not begun yet */
    ret = blk_reopen_set(changes, count, &err);
    return ret < 0 ? io_report_error(&err) : 0;
}

int io_reopen(struct io_session *session, int argc, char **argv)
{
    struct blk_options *options = blk_options_new();
    int ret = reopen_from_words(session, options, argc, argv);
    blk_options_free(options);
    return ret;
}
