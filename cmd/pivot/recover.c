/* SPDX-License-Identifier: MIT */
/*
 * Recovery: a pivot died between "begin" and "done". Every overlay names its old or its new backing
 * file; afterwards all name the new one (or with --undo the old one). Both are compared again,
 * since nobody knows what has happened in between.
 */
#include <errno.h>

#include "blockcore/graph/backing.h"
#include "cmd/common/same_content.h"
#include "cmd/pivot/pivot.h"

/* What the overlay should name in the end. */
struct wanted {
    const char *name, *format;
};

static struct wanted wanted_of(const struct recover_request *request,
                               const struct pivot_overlay *overlay)
{
    return request->undo ? (struct wanted){ overlay->old_name, overlay->old_format }
                         : (struct wanted){ overlay->new_name, overlay->new_format };
}

static bool has_wanted(const struct recover_request *request, const struct pivot_overlay *overlay)
{
    struct wanted wanted = wanted_of(request, overlay);
    return pivot_names(overlay, wanted.name, wanted.format);
}

static int recover_open_one(struct pivot *pivot, struct pivot_overlay *overlay,
                            struct blk_error *err)
{
    int ret = pivot_open_overlay(pivot, overlay, err);
    if (ret < 0 || pivot_names(overlay, overlay->old_name, overlay->old_format) ||
        pivot_names(overlay, overlay->new_name, overlay->new_format))
        return ret;
    return blk_fail_why(err, EINVAL, "its backing file has been changed since",
                        "recovering '%s' by the witness '%s'", overlay->filename, pivot->witness);
}

static int prove_one(const struct recover_request *request, struct pivot *pivot,
                     struct pivot_overlay *overlay, struct blk_error *err)
{
    struct blk_node **backing = request->undo ? &overlay->old_backing : &overlay->new_backing;
    struct blk_node *node = blk_skip_filters(overlay->root);
    struct wanted wanted = wanted_of(request, overlay);

    int ret = blk_can_change_backing(node, wanted.name, wanted.format, err);
    if (ret == 0)
        ret = pivot_open_backing(pivot, overlay, wanted.name, wanted.format, backing, err);
    if (ret < 0 || request->trust)
        return ret;

    backing = request->undo ? &overlay->new_backing : &overlay->old_backing;
    ret = request->undo ? pivot_open_backing(pivot, overlay, overlay->new_name, overlay->new_format,
                                             backing, err)
                        : pivot_open_backing(pivot, overlay, overlay->old_name, overlay->old_format,
                                             backing, err);
    if (ret < 0)
        return ret;
    ret = pivot_check_ids(pivot, overlay, *backing, err);
    if (ret < 0)
        return ret;
    ret = prove_same_content(overlay->old_backing, overlay->new_backing, pivot->workers, err);
    overlay->proved = ret == 0;
    return ret;
}

static int prepare_recovery(const struct recover_request *request, struct pivot *pivot,
                            struct blk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < pivot->count && ret == 0; i++)
        ret = recover_open_one(pivot, &pivot->overlays[i], err);
    for (size_t i = 0; i < pivot->count && ret == 0; i++) {
        struct pivot_overlay *overlay = &pivot->overlays[i];
        if (!has_wanted(request, overlay))
            ret = prove_one(request, pivot, overlay, err);
        if (ret < 0)
            blk_context(err, "overlay '%s'", overlay->filename);
    }
    return ret;
}

/* A failure leaves any mix, as it was, and the "begin": recovery can be run again. */
static int recover_switch_all(const struct recover_request *request, struct pivot *pivot)
{
    struct blk_error err = BLK_ERROR_INIT;
    int ret = 0;

    for (size_t i = 0; i < pivot->count && ret == 0; i++) {
        struct pivot_overlay *overlay = &pivot->overlays[i];
        struct wanted wanted = wanted_of(request, overlay);
        if (!has_wanted(request, overlay))
            ret = pivot_set_backing(overlay, wanted.name, wanted.format,
                                    request->undo ? overlay->old_backing : overlay->new_backing,
                                    &err);
    }
    if (ret < 0)
        return report_error(&err);
    int status = pivot_close(pivot);
    if (status == EXIT_OK)
        ret = request->undo ? witness_undone(pivot, &err) : witness_done(pivot, &err);
    return ret < 0 ? report_error(&err) : status;
}

static int recover_by_witness(const struct recover_request *request, struct pivot *pivot,
                              enum witness_state *state)
{
    struct blk_error err = BLK_ERROR_INIT;
    int ret = witness_read(pivot, state, &err);

    if (ret == 0 && *state == WITNESS_NOTHING)
        ret = witness_undone(pivot, &err);
    if (ret == 0 && *state == WITNESS_DONE && request->undo)
        ret = blk_fail_why(&err, EINVAL, "it is already finished; 'blkimg pivot --to' goes back",
                           "undoing the pivot of '%s'", pivot->witness);
    else if (ret == 0 && *state == WITNESS_DONE)
        ret = witness_leave(pivot, &err);
    if (ret == 0 && *state == WITNESS_BEGUN)
        ret = prepare_recovery(request, pivot, &err);
    if (ret < 0)
        return report_error(&err);
    return *state == WITNESS_BEGUN ? recover_switch_all(request, pivot) : EXIT_OK;
}

int pivot_recover(const struct recover_request *request, json_t *result)
{
    static const char *const found[] = { "nothing", "begin", "done" };
    enum witness_state state = WITNESS_NOTHING;
    struct pivot pivot;

    pivot_init(&pivot, NULL, 0);
    pivot.witness = request->witness;
    pivot.image = request->image;
    pivot.cache = request->cache;
    pivot.source_cache = request->source_cache;
    pivot.result = result;
    int status = recover_by_witness(request, &pivot, &state);
    result_set_text(result, "found", found[state]);
    pivot_free(&pivot);
    return status;
}
