/* SPDX-License-Identifier: MIT */
/* The runtime options of a qcow2 node, with QEMU's names. */
#include "drivers/qcow2/shape/options.h"

#include <errno.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/options.h"
#include "drivers/qcow2/state.h"

#define DEFAULT_SLICE_BYTES (64 * KIB)
/*
 * Changed tables stay in memory until an epoch is committed: a small cache means many barriers. What
 * is only read is mostly read in order, where a table is not needed again.
 */
#define MAX_DEFAULT_L2_BYTES (32 * MIB)
#define MAX_DEFAULT_READ_L2_BYTES (4 * MIB)
#define MIN_REFBLOCKS 4

static int bad_cache(const struct blk_node *node, const char *why, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, why, "cache sizes of '%s'", node->name);
}

/* What maps the whole image, in bytes. */
static uint64_t whole_l2_cache(const struct qcow2_state *s)
{
    return round_up(div_round_up(s->header.size, s->cluster_bytes) * s->l2_entry_bytes,
                    s->cluster_bytes);
}

static uint64_t default_l2_cache(const struct qcow2_state *s, bool writable)
{
    return u64_min(whole_l2_cache(s), writable ? MAX_DEFAULT_L2_BYTES : MAX_DEFAULT_READ_L2_BYTES);
}

static uint64_t least_refcount_cache(const struct qcow2_state *s)
{
    return (uint64_t)MIN_REFBLOCKS << s->cluster_bits;
}

/* Sizes given and not given, to sizes of both caches. */
static int read_cache_sizes(struct blk_node *node, struct blk_options *options,
                            struct qcow2_settings *settings, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t total = 0, least = least_refcount_cache(s);
    bool has_total = blk_options_peek(options, "cache-size");
    bool has_l2 = blk_options_peek(options, "l2-cache-size");
    bool has_refcount = blk_options_peek(options, "refcount-cache-size");

    settings->is_l2_given |= has_total || has_l2;
    int ret = blk_options_get_size(options, "cache-size", &total, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_size(options, "l2-cache-size", &settings->l2_cache, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_size(options, "refcount-cache-size", &settings->refcount_cache, err);
    if (ret < 0)
        return ret;
    if (!has_total)
        return 0;
    if (has_l2 && has_refcount)
        return bad_cache(node,
                         "only two of cache-size, l2-cache-size and refcount-cache-size can be "
                         "given",
                         err);
    if ((has_l2 && settings->l2_cache > total) ||
        (has_refcount && settings->refcount_cache > total))
        return bad_cache(node, "a part of the cache is larger than cache-size", err);
    if (has_l2)
        settings->refcount_cache = total - settings->l2_cache;
    else if (has_refcount)
        settings->l2_cache = total - settings->refcount_cache;
    else if (total > least)
        settings->l2_cache = u64_min(total - least, u64_max(whole_l2_cache(s), 1));
    else
        settings->l2_cache = 0, settings->refcount_cache = total;
    return 0;
}

static int read_slice_bytes(struct blk_node *node, struct blk_options *options,
                            struct qcow2_settings *settings, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    int ret = blk_options_get_size(options, "l2-cache-entry-size", &settings->slice_bytes, err);
    if (ret < 0)
        return ret;
    if (settings->slice_bytes < BLK_SECTOR_BYTES || settings->slice_bytes > s->cluster_bytes ||
        !is_power_of_two(settings->slice_bytes))
        return bad_cache(
            node, "l2-cache-entry-size must be a power of two from 512 to the cluster size", err);
    return 0;
}

static int read_discards(struct blk_node *node, struct blk_options *options,
                         struct qcow2_settings *settings, struct blk_error *err)
{
    struct qcow2_pass_discard *pass = &settings->pass_discard;
    int ret = blk_options_get_bool(options, "discard-no-unref", &settings->discard_no_unref, err);
    if (ret < 0)
        return ret;
    if (settings->discard_no_unref && qcow2_state(node)->header.version < 3)
        return blk_fail_why(err, EINVAL, "discard-no-unref needs version 3 (compat=1.1)",
                            "Could not open '%s'", node->name);
    ret = blk_options_get_bool(options, "pass-discard-request", &pass->request, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_bool(options, "pass-discard-snapshot", &pass->snapshot, err);
    if (ret < 0)
        return ret;
    return blk_options_get_bool(options, "pass-discard-other", &pass->other, err);
}

/* ---- overlap checks ---- */

/* One group of checks, then single ones on top of it. */
static int read_overlap_group(struct blk_options *options, const char *key, unsigned *checks,
                              struct blk_error *err)
{
    static const struct {
        const char *name;
        unsigned checks;
    } groups[] = {
        { "none", 0 },
        { "constant", QCOW2_OVERLAP_CONSTANT },
        { "cached", QCOW2_OVERLAP_CACHED },
        { "all", QCOW2_OVERLAP_ALL },
    };
    const char *value = blk_options_get(options, key);

    if (!value)
        return 0;
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        if (strcmp(value, groups[i].name) != 0)
            continue;
        *checks = groups[i].checks;
        return 0;
    }
    return blk_fail_why(err, EINVAL, "must be 'none', 'constant', 'cached' or 'all'",
                        "option '%s' has the value '%s'", key, value);
}

static int read_overlap_checks(struct blk_options *options, unsigned *checks, struct blk_error *err)
{
    static const struct {
        const char *key;
        unsigned check;
    } single[] = {
        { "overlap-check.main-header", QCOW2_OVERLAP_HEADER },
        { "overlap-check.active-l1", QCOW2_OVERLAP_L1 },
        { "overlap-check.active-l2", QCOW2_OVERLAP_L2 },
        { "overlap-check.refcount-table", QCOW2_OVERLAP_REFTABLE },
        { "overlap-check.refcount-block", QCOW2_OVERLAP_REFBLOCK },
        { "overlap-check.snapshot-table", QCOW2_OVERLAP_SNAPSHOTS },
        { "overlap-check.inactive-l1", QCOW2_OVERLAP_INACTIVE_L1 },
        { "overlap-check.inactive-l2", QCOW2_OVERLAP_INACTIVE_L2 },
        { "overlap-check.bitmap-directory", QCOW2_OVERLAP_BITMAPS },
    };

    int ret = read_overlap_group(options, "overlap-check", checks, err);
    if (ret == 0)
        ret = read_overlap_group(options, "overlap-check.template", checks, err);
    for (size_t i = 0; ret == 0 && i < sizeof(single) / sizeof(single[0]); i++) {
        bool on = *checks & single[i].check;
        ret = blk_options_get_bool(options, single[i].key, &on, err);
        *checks = on ? *checks | single[i].check : *checks & ~single[i].check;
    }
    return ret;
}

/*
 * Options that QEMU has and that have nothing to decide here: they are accepted with the values
 * it knows.
 */
static int read_without_effect(struct blk_node *node, struct blk_options *options,
                               struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    bool on = s->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    uint64_t seconds = 0;

    int ret = blk_options_get_bool(options, "lazy-refcounts", &on, err);
    if (ret == 0 && on && s->header.version < 3)
        return blk_fail_why(err, EINVAL, "lazy refcounts need version 3", "Could not open '%s'",
                            node->name);
    return ret < 0 ? ret : blk_options_get_uint(options, "cache-clean-interval", &seconds, err);
}

/* Replaces what is given. */
static int read_given(struct blk_node *node, struct blk_options *options,
                      struct qcow2_settings *settings, struct blk_error *err)
{
    int ret = read_cache_sizes(node, options, settings, err);
    if (ret < 0)
        return ret;
    ret = read_slice_bytes(node, options, settings, err);
    if (ret < 0)
        return ret;
    ret = read_discards(node, options, settings, err);
    if (ret < 0)
        return ret;
    ret = read_overlap_checks(options, &settings->overlap_checks, err);
    if (ret < 0)
        return ret;
    return read_without_effect(node, options, err);
}

int qcow2_options_open(struct blk_node *node, struct blk_options *options,
                       struct qcow2_settings *settings, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);

    *settings = (struct qcow2_settings){
        .l2_cache = default_l2_cache(s, blk_is_writable(node)),
        .refcount_cache = least_refcount_cache(s),
        .slice_bytes = u64_min(s->cluster_bytes, DEFAULT_SLICE_BYTES),
        .pass_discard = { .request = node->flags & BLK_UNMAP, .snapshot = true },
        .overlap_checks = QCOW2_OVERLAP_CACHED,
    };
    return read_given(node, options, settings, err);
}

/* ---- changes while open ---- */

int qcow2_options_read(struct blk_node *node, struct blk_options *options, void **settings,
                       struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    struct qcow2_settings *changed = blk_xcalloc(1, sizeof(*changed));

    *settings = changed;
    *changed = (struct qcow2_settings){
        .l2_cache = qcow2_cache_limit(&s->l2_cache),
        .refcount_cache = qcow2_cache_limit(&s->refblock_cache),
        .is_l2_given = s->is_l2_cache_given,
        .slice_bytes = s->l2_cache.entry_bytes,
        .pass_discard = s->pass_discard,
        .overlap_checks = atomic_load(&s->overlap_checks),
        .discard_no_unref = s->discard_no_unref,
    };
    int ret = read_given(node, options, changed, err);
    if (ret == 0 && changed->slice_bytes != s->l2_cache.entry_bytes)
        ret = bad_cache(node, "l2-cache-entry-size cannot change while the image is open", err);
    return ret;
}

void qcow2_options_apply(struct blk_node *node, const void *settings)
{
    const struct qcow2_settings *changed = settings;
    struct qcow2_state *s = qcow2_state(node);

    s->is_l2_cache_given = changed->is_l2_given;
    if (changed->is_l2_given)
        qcow2_cache_set_limit(&s->l2_cache, changed->l2_cache);
    qcow2_cache_set_limit(&s->refblock_cache, changed->refcount_cache);
    s->pass_discard = changed->pass_discard;
    atomic_store(&s->overlap_checks, changed->overlap_checks);
    s->discard_no_unref = changed->discard_no_unref;
}

void qcow2_options_reopened(struct blk_node *node, bool writable)
{
    struct qcow2_state *s = qcow2_state(node);

    if (!s->is_l2_cache_given)
        qcow2_cache_set_limit(&s->l2_cache, default_l2_cache(s, writable));
}
