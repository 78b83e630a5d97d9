#include "blockcore/reopen.h"

#include <errno.h>
#include <stdlib.h>

#include "blockcore/driver.h"
#include "blockcore/identity.h"
#include "blockcore/io.h"
#include "blockcore/memory.h"
#include "blockcore/options.h"
#include "blockcore/replace.h"

/* The children that follow their parent's access. A backing file stays as it is. */
static const enum blk_role following[] = { BLK_ROLE_FILE, BLK_ROLE_DATA };
#define FOLLOWING (sizeof(following) / sizeof(following[0]))

static unsigned flags_for(const struct blk_node *node, bool writable)
{
    return writable ? node->flags | BLK_WRITABLE : node->flags & ~(unsigned)BLK_WRITABLE;
}

/* It has no locks that keep others away, and what was read may be out of date. */
static int refuse_shared(const struct blk_node *node, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, "force-share goes with read-only access only",
                        "reopening '%s' for writing", node->name);
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

    if (writable && node->flags & BLK_FORCE_SHARE)
        return refuse_shared(node, err);
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

static int switch_access(struct blk_node *node, bool writable, struct blk_cache_mode cache,
                         struct blk_error *err);

/* A node that has been switched, and what it was before. */
struct switched {
    struct blk_node *node;
    bool writable;
    struct blk_cache_mode cache;
};

/* Puts a node back after a failure. What cannot be put back is harmless, but said. */
static void switch_back(const struct switched *old, struct blk_error *err)
{
    struct blk_error own = BLK_ERROR_INIT;

    if (switch_access(old->node, old->writable, old->cache, &own) == 0)
        return;
    bool writable = blk_is_writable(old->node);
    blk_left_behind(err, "'%s' stays open %s: %s", old->node->name,
                    writable == old->writable ? "in the new cache mode"
                    : writable                ? "for writing"
                                              : "read-only",
                    own.why);
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

static int switch_access(struct blk_node *node, bool writable, struct blk_cache_mode cache,
                         struct blk_error *err)
{
    return writable ? reopen_up(node, cache, err) : reopen_down(node, cache, err);
}

/* ---- sets of nodes ---- */

/* All that can be found wrong before anything is changed; *settings are what the options say. */
static int check_change(const struct blk_change *change, void **settings, struct blk_error *err)
{
    struct blk_node *node = change->node;
    int ret = 0;

    if (change->writable && node->flags & BLK_FORCE_SHARE)
        return refuse_shared(node, err);
    if (change->has_backing && !node->driver->supports_backing)
        return blk_fail_why(err, ENOTSUP, "its format has no backing files", "reopening '%s'",
                            node->name);
    if (change->has_backing && change->backing)
        ret = blk_graph_check_loop(node, change->backing, err);
    if (ret == 0 && change->has_backing && !(node->flags & BLK_TRUST))
        ret = blk_identity_check(node, change->backing, err);
    if (ret < 0 || !change->options)
        return ret;
    if (node->driver->options_read)
        ret = node->driver->options_read(node, change->options, settings, err);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "reopening '%s'", node->name);
    const char *unknown = blk_options_first_unused(change->options);
    if (unknown)
        return blk_fail_why(err, EINVAL, "it cannot change while the image is open", "option '%s'",
                            unknown);
    return 0;
}

/* Switches access and cache modes; on failure those of the nodes before, too, are put back. */
static int switch_set(const struct blk_change *changes, size_t count, struct blk_error *err)
{
    struct switched *switched = blk_xcalloc(count, sizeof(*switched));
    size_t done = 0;
    int ret = 0;

    while (done < count && ret == 0) {
        const struct blk_change *change = &changes[done];
        struct blk_node *node = change->node;
        switched[done] = (struct switched){ node, blk_is_writable(node), node->cache };
        ret = switch_access(node, change->writable, change->cache, err);
        /*
         * A way down that fails has switched upper levels; a way up has put back what it switched.
         */
        if (ret == 0 || !change->writable)
            done++;
    }
    while (ret < 0 && done)
        switch_back(&switched[--done], err);
    free(switched);
    return ret;
}

static void apply(struct blk_change *change, const void *settings)
{
    struct blk_node *node = change->node;

    if (settings)
        node->driver->options_apply(node, settings);
    if (change->has_backing) {
        struct blk_node *former = node->children[BLK_ROLE_BACKING];
        node->children[BLK_ROLE_BACKING] = change->backing;
        change->backing = former;
    }
}

int blk_reopen_set(struct blk_change *changes, size_t count, struct blk_error *err)
{
    void **settings = blk_xcalloc(count, sizeof(*settings));
    int ret = 0;

    for (size_t i = 0; i < count; i++)
        blk_gate_drain_begin(&changes[i].node->gate);
    for (size_t i = 0; i < count && ret == 0; i++)
        ret = check_change(&changes[i], &settings[i], err);
    if (ret == 0)
        ret = switch_set(changes, count, err);
    for (size_t i = 0; i < count; i++) {
        if (ret == 0)
            apply(&changes[i], settings[i]);
        free(settings[i]);
    }
    for (size_t i = count; i-- > 0;)
        blk_gate_drain_end(&changes[i].node->gate);
    free(settings);
    return ret;
}

int blk_reopen(struct blk_node *root, bool writable, struct blk_cache_mode cache,
               struct blk_error *err)
{
    struct blk_change change = { .node = root, .writable = writable, .cache = cache };
    return blk_reopen_set(&change, 1, err);
}
