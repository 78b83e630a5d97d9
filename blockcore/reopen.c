#include "blockcore/reopen.h"

#include <errno.h>

#include "blockcore/driver.h"
#include "blockcore/io.h"

/* The children that follow their parent's access. A backing file stays as it is. */
static const enum blk_role following[] = { BLK_ROLE_FILE, BLK_ROLE_DATA };
#define FOLLOWING (sizeof(following) / sizeof(following[0]))

static unsigned flags_for(const struct blk_node *node, bool writable)
{
    return writable ? node->flags | BLK_WRITABLE : node->flags & ~(unsigned)BLK_WRITABLE;
}

/* Switches one node: prepared, then committed, or left as it was. */
static int switch_node(struct blk_node *node, bool writable, struct blk_cache_mode cache,
                       struct blk_error *err)
{
    struct blk_reopen reopen = {
        .node = node,
        .flags = flags_for(node, writable),
        .cache = cache,
    };
    const struct blk_driver *driver = node->driver;

    if (driver->reopen_prepare) {
        int ret = driver->reopen_prepare(&reopen, err);
        if (ret < 0) {
            if (driver->reopen_abort)
                driver->reopen_abort(&reopen);
            return blk_fail_if_unset(err, -ret, "reopening '%s' %s", node->name,
                                     writable ? "for writing" : "read-only");
        }
    }
    if (driver->reopen_commit)
        driver->reopen_commit(&reopen);
    node->flags = reopen.flags;
    node->cache = cache;
    return 0;
}

static int reopen_down(struct blk_node *node, struct blk_cache_mode cache, struct blk_error *err)
{
    int ret = blk_child_flush(node, err);
    if (ret == 0)
        ret = switch_node(node, false, cache, err);
    for (size_t i = 0; i < FOLLOWING && ret == 0; i++) {
        struct blk_node *child = blk_child(node, following[i]);
        if (child)
            ret = reopen_down(child, cache, err);
    }
    return ret;
}

static int reopen_up(struct blk_node *node, struct blk_cache_mode cache, struct blk_error *err);

/* A child that has been switched, and what it was before. */
struct switched {
    struct blk_node *child;
    bool writable;
    struct blk_cache_mode cache;
};

/* Puts a child back after a failure above it. What cannot be put back is harmless, but said. */
static void switch_back(const struct switched *old, struct blk_error *err)
{
    struct blk_error own = BLK_ERROR_INIT;
    int ret = old->writable ? reopen_up(old->child, old->cache, &own)
                            : reopen_down(old->child, old->cache, &own);
    if (ret < 0)
        blk_left_behind(err, "'%s' stays open %s: %s", old->child->name,
                        old->writable ? "in the new cache mode" : "for writing", own.why);
}

static int reopen_up(struct blk_node *node, struct blk_cache_mode cache, struct blk_error *err)
{
    struct switched switched[FOLLOWING];
    size_t count = 0;
    int ret = 0;

    for (size_t i = 0; i < FOLLOWING && ret == 0; i++) {
        struct blk_node *child = blk_child(node, following[i]);
        if (!child)
            continue;
        switched[count] = (struct switched){ child, blk_is_writable(child), child->cache };
        ret = reopen_up(child, cache, err);
        if (ret == 0)
            count++;
    }
    if (ret == 0)
        ret = switch_node(node, true, cache, err);
    while (ret < 0 && count)
        switch_back(&switched[--count], err);
    return ret;
}

int blk_reopen(struct blk_node *root, bool writable, struct blk_cache_mode cache,
               struct blk_error *err)
{
    if (writable && root->flags & BLK_FORCE_SHARE)
        return blk_fail_why(err, EINVAL, "force-share goes with read-only access only",
                            "reopening '%s' for writing", root->name);
    blk_gate_drain_begin(&root->gate);
    int ret = writable ? reopen_up(root, cache, err) : reopen_down(root, cache, err);
    blk_gate_drain_end(&root->gate);
    return ret;
}
