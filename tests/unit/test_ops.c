/* SPDX-License-Identifier: MIT */
/*
 * Operations on an image as a whole: they run alone, say what a format lacks, and what a driver
 * tells about its format arrives as a tree of values.
 */
#include "blockcore/graph/ops.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "blockcore/graph/backing.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/feature.h"
#include "tests/unit/check.h"
#include "tests/unit/memory_node.h"

static atomic_uint emptied;

static int count_emptying(struct blk_node *node, struct blk_error *err)
{
    (void)node, (void)err;
    emptied++;
    return 0;
}

static int fail_emptying(struct blk_node *node, struct blk_error *err)
{
    (void)node, (void)err;
    return -EIO;
}

static int tell(struct blk_node *node, struct blk_info *info, struct blk_error *err)
{
    (void)node, (void)err;
    info->cluster_bytes = 4096;
    info->specific_type = "format";
    blk_value_add_bool(&info->specific, "flag", true);
    struct blk_value *list = blk_value_add_list(&info->specific, "list");
    blk_value_add_text(list, NULL, "one");
    blk_value_add_number(blk_value_add_object(list, NULL), "two", 2);
    return 0;
}

static const struct blk_upkeep_ops counting_ops = { .make_empty = count_emptying };
static const struct blk_upkeep_ops failing_ops = { .make_empty = fail_emptying };

static const struct blk_driver format = {
    .name = "format",
    .kind = BLK_FORMAT,
    .state_bytes = 1,
    .get_info = tell,
    .upkeep = &counting_ops,
};

static const struct blk_driver failing = {
    .name = "failing",
    .kind = BLK_FORMAT,
    .state_bytes = 1,
    .upkeep = &failing_ops,
};

static const struct blk_driver poor = { .name = "poor", .kind = BLK_FORMAT, .state_bytes = 1 };

static struct blk_node *new_node(const struct blk_driver *driver)
{
    return blk_node_new(driver, "node", BLK_WRITABLE, (struct blk_cache_mode){ 0 });
}

static void *empty(void *root)
{
    blk_make_empty(root, NULL);
    return NULL;
}

TEST(requests_through_the_root_are_waited_for)
{
    struct blk_node *root = memory_filter_over(new_node(&format));
    struct timespec pause = { .tv_nsec = 30000000 };
    pthread_t thread;

    emptied = 0;
    blk_gate_enter(&root->gate);
    REQUIRE(pthread_create(&thread, NULL, empty, root) == 0);
    nanosleep(&pause, NULL);
    CHECK_INT(emptied, 0);
    blk_gate_leave(&root->gate);
    pthread_join(thread, NULL);
    CHECK_INT(emptied, 1);
    CHECK_INT(root->gate.closed, 0);
    blk_drop(root);
}

TEST(what_a_format_lacks_is_said_by_name)
{
    struct blk_node *root = memory_filter_over(new_node(&poor));
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_snapshot *list;
    size_t count;

    CHECK_INT(blk_snapshot_create(root, "s", &err), -ENOTSUP);
    CHECK_STR(err.what, "creating snapshot 's' of 'node'");
    CHECK_STR(err.why, "format 'poor' has no snapshots");
    CHECK_INT(blk_snapshot_list(root, &list, &count, &err), -ENOTSUP);
    CHECK(!list && !count);
    CHECK_INT(blk_change_backing(blk_skip_filters(root), NULL, NULL, &err), -ENOTSUP);
    CHECK_STR(err.why, "format 'poor' has no backing files");
    CHECK_INT(blk_make_empty(root, &err), -ENOTSUP);
    CHECK_INT(blk_debug_resume(root, "t", &err), -ENOTSUP);
    CHECK(!blk_has_breakpoints(root));
    CHECK_INT(root->gate.closed, 0);
    blk_drop(root);
}

TEST(a_failure_without_a_message_gets_one)
{
    struct blk_node *root = new_node(&failing);
    struct blk_error err = BLK_ERROR_INIT;

    CHECK_INT(blk_make_empty(root, &err), -EIO);
    CHECK_STR(err.what, "emptying 'node'");
    CHECK_INT(root->gate.closed, 0);
    blk_drop(root);
}

TEST(what_a_format_says_is_that_of_the_node_below_a_filter)
{
    struct blk_node *root = memory_filter_over(new_node(&format));
    BLK_AUTO_INFO struct blk_info info = { .cluster_bytes = 0 };
    uint64_t bytes = 0;

    CHECK_INT(blk_get_info(root, &info, NULL), 0);
    CHECK_STR(info.specific_type, "format");
    const struct blk_value *flag = info.specific.of.first;
    CHECK(flag->type == BLK_VALUE_BOOL && flag->boolean);
    const struct blk_value *list = flag->next;
    CHECK_STR(list->name, "list");
    CHECK(list->type == BLK_VALUE_LIST && !list->next);
    CHECK_STR(list->of.first->text, "one");
    const struct blk_value *object = list->of.first->next;
    CHECK(object == list->of.last && object->type == BLK_VALUE_OBJECT);
    CHECK_STR(object->of.first->name, "two");
    CHECK_INT(object->of.first->number, 2);

    CHECK_INT(blk_cluster_bytes(root, &bytes, NULL), 0);
    CHECK_INT(bytes, 4096);
    blk_drop(root);
}

TEST(where_nothing_is_known_there_is_no_information_and_no_error)
{
    struct blk_node *root = new_node(&poor);
    BLK_AUTO_INFO struct blk_info info = { .cluster_bytes = 0 };
    uint64_t bytes = 1;

    CHECK_INT(blk_get_info(root, &info, NULL), 0);
    CHECK(!info.specific_type && !info.specific.of.first);
    CHECK_INT(blk_cluster_bytes(root, &bytes, NULL), 0);
    CHECK_INT(bytes, 0);
    CHECK_INT(blk_allocated_bytes(root, &bytes, NULL), -ENOTSUP);
    blk_drop(root);
}
