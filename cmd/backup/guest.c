/* SPDX-License-Identifier: MIT */
/*
 * --guest-io: a guest writes to the disk while its backup is made.
 *
 * The guest (cmd/io/guest.h) runs against a copy-before-write filter on the source. What it
 * overwrites is saved to the target first, and the backup copies the rest through the same record
 * of what is already there. So the target shows the disk at the moment when the filter was
 * inserted, which is also when the bitmaps started over.
 */
#include <errno.h>
#include <pthread.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/clock.h"
#include "blockcore/base/workers.h"
#include "blockcore/filters/cbw/cbw.h"
#include "cmd/backup/backup.h"
#include "cmd/io/guest.h"

/* What a copying thread takes at once. */
#define PIECE_BYTES (2 * MIB)

/* ---- copying ---- */

struct copying {
    struct backup *backup;
    struct blk_cbw *cbw;
    const struct blk_dirty_bitmap *mask;
    uint64_t bytes;
    struct blk_rate rate;

    pthread_mutex_t mutex; /* guards what follows */
    uint64_t next;
    uint64_t taken; /* bytes handed out: what the rate counts */
    int ret;
    struct blk_error err;
};

/* Hands out the next range to copy; false at the end or after a failure. */
static bool take_piece(struct copying *copying, uint64_t *offset, uint64_t *bytes,
                       uint64_t *taken_before)
{
    bool more = true;

    pthread_mutex_lock(&copying->mutex);
    *offset = copying->next;
    *bytes = copying->bytes - copying->next;
    if (copying->mask)
        more = blk_dirty_bitmap_next_piece(copying->mask, copying->next, copying->bytes,
                                           PIECE_BYTES, offset, bytes);
    more = more && *bytes && copying->ret == 0;
    if (more) {
        *bytes = u64_min(*bytes, PIECE_BYTES - *offset % PIECE_BYTES);
        copying->next = *offset + *bytes;
        *taken_before = copying->taken;
        copying->taken += *bytes;
        progress_update(&copying->backup->progress, copying->next, copying->bytes);
    }
    pthread_mutex_unlock(&copying->mutex);
    return more;
}

static void *copy_pieces(void *argument)
{
    struct copying *copying = argument;
    struct blk_error err = BLK_ERROR_INIT;
    uint64_t offset, bytes, taken_before;

    while (take_piece(copying, &offset, &bytes, &taken_before)) {
        while (blk_rate_pause(&copying->rate, taken_before) && !blk_cancelled())
            continue;
        int ret = blk_cancelled() ? blk_fail_why(&err, ECANCELED, "stopped by a signal", "backup")
                                  : blk_cbw_save(copying->cbw, offset, bytes, &err);
        if (ret == 0)
            continue;
        pthread_mutex_lock(&copying->mutex);
        if (copying->ret == 0) {
            copying->ret = ret;
            copying->err = err;
        }
        pthread_mutex_unlock(&copying->mutex);
    }
    return NULL;
}

static int copy_for_guest(struct backup *backup, struct backup_disk *disk, struct blk_cbw *cbw,
                          struct blk_error *err)
{
    struct copying copying = {
        .backup = backup,
        .cbw = cbw,
        .mask = disk->mask,
        .bytes = disk->bytes,
        .rate = { backup->options->bytes_per_second, blk_now_ns() },
    };

    pthread_mutex_init(&copying.mutex, NULL);
    blk_run_workers(backup->options->workers, copy_pieces, &copying);
    pthread_mutex_destroy(&copying.mutex);
    if (copying.ret < 0 && err)
        *err = copying.err;
    return copying.ret;
}

/* ---- both together ---- */

/* Copies while the guest runs, and waits for both. */
static int run_copy_and_guest(struct backup *backup, struct backup_disk *disk,
                              struct blk_node *filter, struct guest *guest, struct blk_error *err)
{
    struct blk_error guest_err = BLK_ERROR_INIT;

    int ret = guest_start(guest, filter, err);
    if (ret < 0)
        return ret;
    disk->guest_ran = true;
    ret = copy_for_guest(backup, disk, blk_cbw_of(filter), err);
    int guest_ret = guest_wait(guest, &guest_err);
    if (ret == 0)
        ret = blk_cbw_check(blk_cbw_of(filter), err);
    if (ret == 0 && guest_ret < 0) {
        ret = guest_ret;
        if (err)
            *err = guest_err;
    }
    return ret;
}

int backup_copy_with_guest(struct backup *backup, struct backup_disk *disk, struct blk_error *err)
{
    const struct backup_options *options = backup->options;
    const struct blk_cbw_params params = {
        .on_error = options->on_cbw_error,
        .timeout_ms = options->cbw_timeout_seconds * 1000,
        .mask = disk->mask,
    };
    struct blk_node *filter;
    struct blk_error close_err = BLK_ERROR_INIT;
    struct guest *guest;

    int ret = guest_open(options->guest_io, &guest, err);
    if (ret < 0)
        return ret;

    /* The filter takes the other reference, and is gone before the source is. */
    blk_node_ref(disk->source);
    ret = blk_cbw_insert(disk->source, disk->target, &params, &filter, err);
    if (ret < 0) {
        disk->source->refs--;
    } else {
        ret = run_copy_and_guest(backup, disk, filter, guest, err);
        int closed = blk_close(filter, NULL, &close_err);
        if (ret == 0 && closed < 0) {
            ret = closed;
            if (err)
                *err = close_err;
        }
    }
    guest_free(guest);
    return ret;
}
