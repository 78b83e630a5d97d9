/* SPDX-License-Identifier: MIT */
/*
 * A signal while bitmaps are stored: it stops the store where the image's bitmaps are valid without
 * it, and only there. Each case is a process of its own, as a signal that came stays.
 */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockcore/base/cancel.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "tests/unit/check.h"

#define IMAGE "store.qcow2"

static struct blk_node *open_image(void)
{
    struct blk_node *node = NULL;
    struct blk_options *options = blk_options_new();
    blk_options_parse_keyval(options, "driver=qcow2,file.driver=file,file.filename=" IMAGE, NULL,
                             NULL);
    struct blk_open how = { .options = options, .flags = BLK_WRITABLE };
    blk_open(&how, &node, NULL);
    blk_options_free(options);
    return node;
}

static void add(struct blk_node *node, const char *name)
{
    struct blk_dirty_bitmap *bitmap;
    if (blk_dirty_bitmap_new(name, blk_size(node), 16, &bitmap, NULL) < 0)
        abort();
    bitmap->persistent = true;
    blk_bitmaps_add(node, bitmap, NULL);
}

/* Changes the image, gets a signal, and closes. The exit status tells what the close said. */
static int close_after_signal(bool write, bool must_store)
{
    pid_t child = fork();
    int status = -1;

    if (child == 0) {
        struct blk_node *node = open_image();
        if (!node)
            _exit(9);
        blk_cancel_init();
        if (write && blk_pwrite(node, 0, 5, "hello", 0, NULL) < 0)
            _exit(8);
        add(node, "new");
        node->bitmaps->must_store = must_store;
        raise(SIGTERM);
        int ret = blk_close(node, NULL, NULL);
        _exit(ret == 0 ? 0 : ret == -ECANCELED ? 1 : 2);
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The names of the image's bitmaps, and whether each is valid: "old+ new-". */
static const char *bitmaps(void)
{
    static char text[100];
    struct blk_node *node = open_image();

    text[0] = '\0';
    for (struct blk_dirty_bitmap *b = node && node->bitmaps ? node->bitmaps->first : NULL; b;
         b = b->next)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%s%c", *text ? " " : "",
                 b->name, b->inconsistent ? '-' : '+');
    if (node)
        blk_close(node, NULL, NULL);
    return text;
}

static bool make_image(void)
{
    return system("rm -f " IMAGE "; qemu-img create -q -f qcow2 " IMAGE " 1G && "
                  "qemu-img bitmap --add " IMAGE " old") == 0;
}

TEST(a_store_that_the_image_can_do_without_stops)
{
    REQUIRE(make_image());
    CHECK_INT(close_after_signal(false, false), 1);
    CHECK_STR(bitmaps(), "old+");
}

TEST(a_store_without_which_a_bitmap_is_lost_goes_on)
{
    REQUIRE(make_image());
    CHECK_INT(close_after_signal(true, false), 0);
    CHECK_STR(bitmaps(), "old+ new+");
}

TEST(a_store_that_ends_a_work_goes_on)
{
    REQUIRE(make_image());
    CHECK_INT(close_after_signal(false, true), 0);
    CHECK_STR(bitmaps(), "old+ new+");
}
