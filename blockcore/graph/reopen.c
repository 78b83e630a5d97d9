/* SPDX-License-Identifier: MIT */
/* A reopening of several nodes: everything is checked, then switched, and put back on failure. */
#include "blockcore/graph/reopen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/general_options.h"
#include "blockcore/graph/options.h"
#include "blockcore/graph/replace.h"

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
    if (BLK_OP(driver, reopen, prepare)) {
        int ret = BLK_OP(driver, reopen, prepare)(&reopen, err);
        if (ret < 0) {
            if (BLK_OP(driver, reopen, abort))
                BLK_OP(driver, reopen, abort)(&reopen);
            return blk_fail_if_unset(err, -ret, "reopening '%s' %s", node->name,
                                     writable ? "for writing" : "read-only");
        }
    }
    if (BLK_OP(driver, reopen, commit))
        BLK_OP(driver, reopen, commit)(&reopen);
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

/* What the options of a change say, apart from access and cache mode. */
struct settings {
    struct blk_general_options general;
    void *own; /* the driver's, or NULL */
};

/* The child that options call "GROUP.", or NULL. */
static const struct blk_node *child_of_group(const struct blk_node *node, const char *key)
{
    static const struct {
        const char *group;
        enum blk_role role;
    } groups[] = {
        { "file.", BLK_ROLE_FILE },
        { "backing.", BLK_ROLE_BACKING },
        { "data-file.", BLK_ROLE_DATA },
        { "target.", BLK_ROLE_TARGET },
    };
    const char *file_group = node->driver->file_group;

    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
        if (strncmp(key, groups[i].group, strlen(groups[i].group)) == 0)
            return blk_child(node, groups[i].role);
    if (file_group && strncmp(key, file_group, strlen(file_group)) == 0 &&
        key[strlen(file_group)] == '.')
        return blk_child(node, BLK_ROLE_FILE);
    return NULL;
}

/* Whether the option has the value with which the node, or one of its children, was opened. */
static bool is_unchanged(const struct blk_node *node, const char *key, const char *value)
{
    for (const struct blk_node *child; node; node = child) {
        const char *given = node->options ? blk_options_peek(node->options, key) : NULL;
        if (given)
            return strcmp(given, value) == 0;
        if (strcmp(key, "driver") == 0)
            return strcmp(node->driver->name, value) == 0;
        child = child_of_group(node, key);
        key = strchr(key, '.');
        if (!key)
            return false;
        key++;
    }
    return false;
}

/* Options that nobody took must be what they were. */
static int check_rest(const struct blk_node *node, struct blk_options *options,
                      struct blk_error *err)
{
    const char *key = blk_options_first_unused(options);

    for (; key; key = blk_options_first_unused(options))
        if (!is_unchanged(node, key, blk_options_get(options, key)))
            return blk_fail_why(err, EINVAL, "it is fixed while the image is open",
                                "Cannot change the option '%s'", key);
    return 0;
}

static int read_settings(const struct blk_change *change, struct settings *settings,
                         struct blk_error *err)
{
    struct blk_node *node = change->node;
    struct blk_options *options = change->options;

    int ret = blk_general_options_read(options, &settings->general, err);
    if (ret == 0 && BLK_OP(node->driver, reopen, options_read))
        ret = BLK_OP(node->driver, reopen, options_read)(node, options, &settings->own, err);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "reopening '%s'", node->name);
    return check_rest(node, options, err);
}

/* All that can be found wrong before anything is changed; *settings are what the options say. */
static int check_change(const struct blk_change *change, struct settings *settings,
                        struct blk_error *err)
{
    settings->general = (struct blk_general_options){
        .unmap = change->node->flags & BLK_UNMAP,
        .detect_zeroes = change->node->detect_zeroes,
    };

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
    return ret < 0 || !change->options ? ret : read_settings(change, settings, err);
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

/* Later reopenings compare with what the node has now. */
static void remember_options(struct blk_node *node, const struct blk_options *options)
{
    if (!node->options)
        node->options = blk_options_new();
    for (size_t i = 0; i < blk_options_count(options); i++)
        if (!child_of_group(node, blk_options_key(options, i)))
            blk_options_set(node->options, blk_options_key(options, i),
                            blk_options_value(options, i));
}

static void apply_change(struct blk_change *change, const struct settings *settings)
{
    struct blk_node *node = change->node;

    node->detect_zeroes = settings->general.detect_zeroes;
    node->flags &= ~(unsigned)BLK_UNMAP;
    node->flags |= settings->general.unmap ? BLK_UNMAP : 0;
    if (settings->own)
        BLK_OP(node->driver, reopen, options_apply)(node, settings->own);
    if (change->options)
        remember_options(node, change->options);
    if (change->has_backing) {
        struct blk_node *former = node->children[BLK_ROLE_BACKING];
        node->children[BLK_ROLE_BACKING] = change->backing;
        change->backing = former;
    }
}

int blk_reopen_set(struct blk_change *changes, size_t count, struct blk_error *err)
{
    struct settings *settings = blk_xcalloc(count, sizeof(*settings));
    int ret = 0;

    for (size_t i = 0; i < count; i++)
        blk_gate_drain_begin(&changes[i].node->gate);
    for (size_t i = 0; i < count && ret == 0; i++)
        ret = check_change(&changes[i], &settings[i], err);
    if (ret == 0)
        ret = switch_set(changes, count, err);
    for (size_t i = 0; i < count; i++) {
        if (ret == 0)
            apply_change(&changes[i], &settings[i]);
        free(settings[i].own);
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
