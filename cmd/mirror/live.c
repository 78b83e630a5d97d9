/* SPDX-License-Identifier: MIT */
/*
 * A mirror of an image that is being written: passes over what has become dirty, each over less;
 * then the guest's writes go to both images while what is left is copied
 * (blockcore/filters/mirror/mirror.h).
 *
 * The job ends when the guest has. So the target equals the source at that moment, and can be
 * verified.
 */
#include <errno.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/filters/mirror/mirror.h"
#include "cmd/io/guest.h"
#include "cmd/mirror/mirror.h"

/* When no more than this is dirty, or after this many passes, writes become synchronous. */
#define LITTLE_BYTES (4 * MIB)
#define MAX_PASSES 10

static int run_passes(struct mirror *mirror, struct blk_node *filter, struct blk_error *err)
{
    int ret = mirror_copy(mirror, NULL, err);

    for (unsigned pass = 0; pass < MAX_PASSES && ret == 0; pass++) {
        struct blk_dirty_bitmap *taken;
        if (blk_mirror_dirty_bytes(filter) <= LITTLE_BYTES)
            break;
        ret = blk_mirror_new_bitmap(filter, &taken, err);
        if (ret < 0)
            break;
        blk_mirror_take_dirty(filter, taken);
        ret = mirror_copy(mirror, taken, err);
        blk_dirty_bitmap_free(taken);
    }
    return ret;
}

static int follow(struct mirror *mirror, struct blk_node *filter, struct blk_error *err)
{
    int ret = run_passes(mirror, filter, err);
    if (ret < 0)
        return ret;
    blk_mirror_synchronise(filter);
    return blk_mirror_catch_up(filter, err);
}

/*
 * Copies while the guest runs, and waits for its end. Writes of it that failed have left dirty
 * bits.
 */
static int run_mirror_and_guest(struct mirror *mirror, struct guest *guest, struct blk_node *filter,
                                struct blk_error *err)
{
    struct blk_error guest_err = BLK_ERROR_INIT;

    int ret = guest_start(guest, filter, err);
    if (ret < 0)
        return ret;
    ret = follow(mirror, filter, err);
    int guest_ret = guest_wait(guest, &guest_err);
    if (ret == 0)
        ret = blk_mirror_catch_up(filter, err);
    if (ret == 0 && guest_ret < 0) {
        ret = guest_ret;
        *err = guest_err;
    }
    /* The guest has not come to its end. */
    if (ret == 0 && blk_cancelled())
        ret = blk_fail_why(err, ECANCELED, "stopped by a signal", "mirroring '%s'",
                           mirror->source->name);
    return ret;
}

int mirror_copy_live(struct mirror *mirror, struct blk_error *err)
{
    struct guest *guest;
    struct blk_node *filter;
    struct blk_error close_err = BLK_ERROR_INIT;

    int ret = guest_open(mirror->request->guest_io, &guest, err);
    if (ret < 0)
        return ret;
    ret = blk_mirror_insert(mirror->source, mirror->target, &filter, err);
    if (ret == 0) {
        blk_node_ref(mirror->source); /* the filter took the other one, and is gone before */
        ret = run_mirror_and_guest(mirror, guest, filter, err);
        int closed = blk_close(filter, NULL, &close_err);
        if (ret == 0 && closed < 0) {
            ret = closed;
            *err = close_err;
        }
    }
    guest_free(guest);
    return ret;
}
