/*
 * The runtime options of a qcow2 node, with QEMU's names.
 */
#include "drivers/qcow2/options.h"

#include <errno.h>
#include <string.h>

#include "blockcore/options.h"

#define DEFAULT_SLICE_BYTES (64 * KIB)
#define MAX_DEFAULT_L2_BYTES (32 * MIB)
#define MIN_REFBLOCKS 4

static int bad_cache(const struct blk_node *node, const char *why, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, why, "cache sizes of '%s'", node->name);
}

/* Sizes given and not given, to sizes of both caches. */
static int read_cache_sizes(struct blk_node *node, struct blk_options *options,
                            struct qcow2_cache_sizes *sizes, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t total = 0, least = (uint64_t)MIN_REFBLOCKS << s->cluster_bits;
    bool has_total = blk_options_peek(options, "cache-size");
    bool has_l2 = blk_options_peek(options, "l2-cache-size");
    bool has_refcount = blk_options_peek(options, "refcount-cache-size");
    /* What maps the whole image. */
    uint64_t whole = round_up(div_round_up(s->header.size, s->cluster_bytes) * s->l2_entry_bytes,
                              s->cluster_bytes);
    int ret;

    sizes->l2 = u64_min(whole, MAX_DEFAULT_L2_BYTES);
    sizes->refcount = least;
    if ((ret = blk_options_get_size(options, "cache-size", &total, err)) < 0 ||
        (ret = blk_options_get_size(options, "l2-cache-size", &sizes->l2, err)) < 0 ||
        (ret = blk_options_get_size(options, "refcount-cache-size", &sizes->refcount, err)) < 0)
        return ret;
    if (!has_total)
        return 0;
    if (has_l2 && has_refcount)
        return bad_cache(node,
                         "only two of cache-size, l2-cache-size and refcount-cache-size can be "
                         "given",
                         err);
    if ((has_l2 && sizes->l2 > total) || (has_refcount && sizes->refcount > total))
        return bad_cache(node, "a part of the cache is larger than cache-size", err);
    if (has_l2)
        sizes->refcount = total - sizes->l2;
    else if (has_refcount)
        sizes->l2 = total - sizes->refcount;
    else if (total > least)
        sizes->l2 = u64_min(total - least, u64_max(whole, 1));
    else
        sizes->l2 = 0, sizes->refcount = total;
    return 0;
}

static int read_slice_bytes(struct blk_node *node, struct blk_options *options,
                            struct qcow2_cache_sizes *sizes, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    sizes->slice_bytes = u64_min(s->cluster_bytes, DEFAULT_SLICE_BYTES);
    int ret = blk_options_get_size(options, "l2-cache-entry-size", &sizes->slice_bytes, err);
    if (ret < 0)
        return ret;
    if (sizes->slice_bytes < BLK_SECTOR_BYTES || sizes->slice_bytes > s->cluster_bytes ||
        !is_power_of_two(sizes->slice_bytes))
        return bad_cache(node,
                         "l2-cache-entry-size must be a power of two from 512 to the cluster size",
                         err);
    return 0;
}

static int read_discards(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret;
    s->pass_discard.request = node->flags & BLK_UNMAP;
    s->pass_discard.snapshot = true;
    s->pass_discard.other = false;
    if ((ret = blk_options_get_bool(options, "pass-discard-request", &s->pass_discard.request,
                                    err)) < 0 ||
        (ret = blk_options_get_bool(options, "pass-discard-snapshot", &s->pass_discard.snapshot,
                                    err)) < 0)
        return ret;
    return blk_options_get_bool(options, "pass-discard-other", &s->pass_discard.other, err);
}

/*
 * Options that QEMU has and that have nothing to decide here: they are accepted with the values
 * it knows.
 */
static int read_without_effect(struct blk_node *node, struct blk_options *options,
                               struct blk_error *err)
{
    static const char *const checks[] = {
        "main-header",    "active-l1",   "active-l2",    "refcount-table",  "refcount-block",
        "snapshot-table", "inactive-l1", "inactive-l2",  "bitmap-directory",
    };
    static const char *const templates[] = { "none", "constant", "cached", "all" };
    static const char *const template_keys[] = { "overlap-check", "overlap-check.template" };
    const struct qcow2_state *s = qcow2_state(node);
    bool on = s->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    uint64_t seconds = 0;

    int ret = blk_options_get_bool(options, "lazy-refcounts", &on, err);
    if (ret == 0 && on && s->header.version < 3)
        return blk_fail_why(err, EINVAL, "lazy refcounts need version 3", "opening '%s'",
                            node->name);
    if (ret == 0)
        ret = blk_options_get_uint(options, "cache-clean-interval", &seconds, err);
    for (size_t i = 0; ret == 0 && i < sizeof(checks) / sizeof(checks[0]); i++) {
        char key[64] = "overlap-check.";
        strcat(key, checks[i]);
        ret = blk_options_get_bool(options, key, &on, err);
    }
    for (size_t k = 0; ret == 0 && k < 2; k++) {
        const char *value = blk_options_get(options, template_keys[k]);
        bool known = !value;
        for (size_t i = 0; value && i < sizeof(templates) / sizeof(templates[0]); i++)
            known = known || strcmp(value, templates[i]) == 0;
        if (!known)
            ret = blk_fail_why(err, EINVAL, "must be 'none', 'constant', 'cached' or 'all'",
                               "option '%s' has the value '%s'", template_keys[k], value);
    }
    return ret;
}

int qcow2_options_read(struct blk_node *node, struct blk_options *options,
                       struct qcow2_cache_sizes *sizes, struct blk_error *err)
{
    int ret;
    if ((ret = read_cache_sizes(node, options, sizes, err)) < 0 ||
        (ret = read_slice_bytes(node, options, sizes, err)) < 0 ||
        (ret = read_discards(node, options, err)) < 0)
        return ret;
    return read_without_effect(node, options, err);
}
