/* SPDX-License-Identifier: MIT */
/*
 * Copying pending clusters to the target: in the caller's thread, or by helper threads for guests
 * with a time limit.
 *
 * A save whose guest has given up is not marked as copied, even if it succeeds later: its failure
 * has already been reported. It keeps its claim until it really ends, so that none of its late
 * writes can collide with another save of the same clusters.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "blockcore/base/assert.h"
#include "blockcore/base/bytes.h"
#include "blockcore/filters/cbw/record.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"

/* Data moves in pieces of at most this; a multiple of every cluster size up to it. */
#define CHUNK_BYTES (1 * MIB)

/*
 * One save by a helper. Freed by the last that needs it: the guest, or the helper when the guest
 * gave up.
 */
struct cbw_save {
    struct cbw_claim claim;
    enum { SAVE_QUEUED, SAVE_RUNNING, SAVE_DONE } state;
    bool given_up;
    int ret;
    struct blk_error err;
    struct cbw_save *next; /* in the queue */
};

/* ---- copying ---- */

struct buffer {
    uint8_t *data;
    uint64_t bytes;
};

static int write_target(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, const void *buf,
                        struct blk_error *err)
{
    if (buf && !bytes_are_zero(buf, bytes))
        return blk_child_pwrite(cbw->target, offset, bytes, buf, 0, err);
    if (cbw->target->reads_zero)
        return 0;
    return blk_child_write_zeroes(cbw->target, offset, bytes, BLK_REQ_MAY_UNMAP, err);
}

/*
 * Copies the first piece of a pending range that begins with a cluster; *copied gets its length, in
 * whole clusters or up to the end.
 */
static int copy_piece(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes,
                      const struct buffer *buffer, uint64_t *copied, struct blk_error *err)
{
    struct blk_extent extent;
    int ret = blk_child_block_status_above(blk_layers(cbw->source, NULL), offset, bytes,
                                           BLK_WANT_ZERO, &extent, err);
    if (ret < 0)
        return ret;

    uint64_t whole = extent.bytes == bytes ? bytes : round_down(extent.bytes, cbw->cluster_bytes);
    if (extent.flags & BLK_EXT_ZERO && whole) {
        *copied = whole;
        return write_target(cbw, offset, whole, NULL, err);
    }
    *copied = u64_min(u64_min(round_up(extent.bytes, cbw->cluster_bytes), bytes), buffer->bytes);
    ret = blk_child_pread(cbw->source, offset, *copied, buffer->data, err);
    return ret < 0 ? ret : write_target(cbw, offset, *copied, buffer->data, err);
}

/* Records a piece, unless the guest that it was for has given up. */
static int mark_for(struct blk_cbw *cbw, const struct cbw_save *save, uint64_t offset,
                    uint64_t bytes, struct blk_error *err)
{
    LOCK_SCOPE(&cbw->mutex);
    int ret = cbw_check_locked(cbw, err);
    if (ret == 0 && save && save->given_up)
        ret = blk_fail_why(err, ECANCELED, "nobody waits for it any more", "saving");
    if (ret == 0)
        blk_dirty_bitmap_clear(cbw->pending, offset, bytes);
    return ret;
}

/* The first pending range of the claim, whole clusters. False when there is none. */
static bool next_pending(const struct blk_cbw *cbw, const struct cbw_claim *claim, uint64_t *offset,
                         uint64_t *bytes)
{
    return blk_dirty_bitmap_next(cbw->pending, claim->offset, claim->offset + claim->bytes, offset,
                                 bytes);
}

/* Copies all that is pending in a claim that is held; `save` is NULL for the caller's own. */
static int copy_claimed(struct blk_cbw *cbw, const struct cbw_claim *claim,
                        const struct cbw_save *save, struct blk_error *err)
{
    struct buffer buffer = {
        .bytes = u64_min(claim->bytes, u64_max(CHUNK_BYTES, cbw->cluster_bytes)),
    };
    uint64_t offset, bytes, copied;

    buffer.data = blk_buffer_alloc(buffer.bytes);
    int ret = buffer.data ? 0 : blk_fail(err, ENOMEM, "copying '%s'", cbw->source->name);

    while (ret == 0 && next_pending(cbw, claim, &offset, &bytes)) {
        ret = copy_piece(cbw, offset, bytes, &buffer, &copied, err);
        if (ret == 0)
            ret = mark_for(cbw, save, offset, copied, err);
    }
    free(buffer.data);
    return ret;
}

/*
 * Waits until the range, which begins within the frozen size, is this thread's alone. Fails only
 * when the snapshot is broken: then nothing is claimed.
 */
static int begin_claim(struct blk_cbw *cbw, struct cbw_claim *claim, uint64_t offset,
                       uint64_t bytes, struct blk_error *err)
{
    LOCK_SCOPE(&cbw->mutex);
    cbw_claim_add(cbw, claim, offset, bytes);
    while (!cbw->broken && !cbw_claim_is_free(cbw, claim))
        blk_cond_wait(&cbw->changed, &cbw->mutex);
    int ret = cbw_check_locked(cbw, err);
    if (ret < 0)
        cbw_claim_remove(cbw, claim);
    return ret;
}

static void end_claim(struct blk_cbw *cbw, struct cbw_claim *claim)
{
    LOCK_SCOPE(&cbw->mutex);
    cbw_claim_remove(cbw, claim);
}

int blk_cbw_save(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    struct cbw_claim claim;

    if (offset >= cbw->size || !bytes)
        return 0;
    bytes = u64_min(bytes, cbw->size - offset);
    int ret = begin_claim(cbw, &claim, offset, bytes, err);
    if (ret < 0)
        return ret;
    ret = copy_claimed(cbw, &claim, NULL, err);
    end_claim(cbw, &claim);
    return ret;
}

/* ---- the queue; the mutex is held ---- */

static void enqueue(struct blk_cbw *cbw, struct cbw_save *save)
{
    ASSERT_LOCKED(&cbw->mutex);
    struct cbw_save **tail = &cbw->queue;
    while (*tail)
        tail = &(*tail)->next;
    *tail = save;
    save->next = NULL;
    cbw->queued++;
}

static void dequeue(struct blk_cbw *cbw, struct cbw_save *save)
{
    ASSERT_LOCKED(&cbw->mutex);
    struct cbw_save **at = &cbw->queue;
    while (*at != save)
        at = &(*at)->next;
    *at = save->next;
    cbw->queued--;
}

/* The first save whose range nobody before it claims, or NULL. */
static struct cbw_save *next_save(const struct blk_cbw *cbw)
{
    ASSERT_LOCKED(&cbw->mutex);
    for (struct cbw_save *save = cbw->queue; save; save = save->next)
        if (cbw_claim_is_free(cbw, &save->claim))
            return save;
    return NULL;
}

/* ---- helpers ---- */

/* Does one save; the mutex is held before and after. */
static void run_save(struct blk_cbw *cbw, struct cbw_save *save)
{
    ASSERT_LOCKED(&cbw->mutex);
    struct blk_error err = BLK_ERROR_INIT;

    dequeue(cbw, save);
    save->state = SAVE_RUNNING;
    blk_mutex_unlock(&cbw->mutex);
    int ret = copy_claimed(cbw, &save->claim, save, &err);
    blk_mutex_lock(&cbw->mutex);

    cbw_claim_remove(cbw, &save->claim);
    save->state = SAVE_DONE;
    save->ret = ret;
    save->err = err;
    if (save->given_up)
        free(save);
}

static void *help(void *argument)
{
    struct blk_cbw *cbw = argument;
    struct cbw_save *save;

    LOCK_SCOPE(&cbw->mutex);
    for (;;) {
        while (!(save = next_save(cbw)) && !cbw->closing) {
            cbw->idle++;
            blk_cond_wait(&cbw->changed, &cbw->mutex);
            cbw->idle--;
        }
        if (!save)
            break;
        run_save(cbw, save);
    }
    return NULL;
}

/*
 * One more helper if all have something to do. Fails only when there is none at all. The mutex is
 * held.
 */
static int ensure_helper(struct blk_cbw *cbw, struct blk_error *err)
{
    ASSERT_LOCKED(&cbw->mutex);
    if (cbw->queued <= cbw->idle || cbw->helpers == CBW_MAX_HELPERS)
        return 0;
    int code = pthread_create(&cbw->threads[cbw->helpers], NULL, help, cbw);
    if (code == 0)
        cbw->helpers++;
    return cbw->helpers ? 0 : blk_fail(err, code, "starting a thread");
}

void cbw_stop_helpers(struct blk_cbw *cbw)
{
    blk_mutex_lock(&cbw->mutex);
    cbw->closing = true;
    pthread_cond_broadcast(&cbw->changed);
    blk_mutex_unlock(&cbw->mutex);
    for (unsigned i = 0; i < cbw->helpers; i++)
        pthread_join(cbw->threads[i], NULL);
    ASSERT(!cbw->queue && !cbw->claims);
}

/* ---- a guest that waits ---- */

static struct timespec deadline_after(uint64_t ms)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += (time_t)(ms / 1000);
    at.tv_nsec += (long)(ms % 1000) * 1000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

/*
 * Takes back a save that has not begun, or tells its helper that nobody waits. The mutex is held.
 */
static void give_up(struct blk_cbw *cbw, struct cbw_save *save)
{
    ASSERT_LOCKED(&cbw->mutex);
    if (save->state == SAVE_RUNNING) {
        save->given_up = true;
        return;
    }
    dequeue(cbw, save);
    cbw_claim_remove(cbw, &save->claim);
    free(save);
}

static int too_late(const struct blk_cbw *cbw, uint64_t offset, struct blk_error *err)
{
    char why[100];
    snprintf(why, sizeof(why), "not done within %" PRIu64 ".%03" PRIu64 " s (cbw-timeout)",
             cbw->timeout_ms / 1000, cbw->timeout_ms % 1000);
    return blk_fail_why(err, ETIMEDOUT, why, "at offset %" PRIu64 " to '%s'", offset,
                        cbw->target->name);
}

/* Waits for the save to end, for the snapshot to break, or for the deadline. The mutex is held. */
static int await_save(struct blk_cbw *cbw, struct cbw_save *save, const struct timespec *deadline,
                      struct blk_error *err)
{
    ASSERT_LOCKED(&cbw->mutex);
    int waited = 0;
    while (save->state != SAVE_DONE && !cbw->broken && waited == 0)
        waited = blk_cond_timedwait(&cbw->changed, &cbw->mutex, deadline);

    if (save->state == SAVE_DONE) {
        int ret = save->ret;
        if (ret < 0 && err)
            *err = save->err;
        free(save);
        return ret;
    }
    uint64_t offset = save->claim.offset;
    give_up(cbw, save);
    return cbw->broken ? cbw_check_locked(cbw, err) : too_late(cbw, offset, err);
}

int cbw_save_in_time(struct blk_cbw *cbw, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    struct timespec deadline = deadline_after(cbw->timeout_ms);
    struct cbw_save *save = calloc(1, sizeof(*save));
    if (!save)
        return blk_fail(err, ENOMEM, "at offset %" PRIu64, offset);

    LOCK_SCOPE(&cbw->mutex);
    cbw_claim_add(cbw, &save->claim, offset, bytes);
    enqueue(cbw, save);
    int ret = ensure_helper(cbw, err);
    if (ret < 0) {
        give_up(cbw, save);
    } else {
        pthread_cond_broadcast(&cbw->changed);
        ret = await_save(cbw, save, &deadline, err);
    }
    return ret;
}
