/* SPDX-License-Identifier: MIT */
/*
 * Each worker takes the next piece that must be read (the job's mutex is held while the maps are
 * walked), reads it from both sides without the mutex, and marks what differs. Pieces are at most
 * CHUNK_BYTES long.
 */
#include "blockcore/jobs/difference.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/workers.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"

#define CHUNK_BYTES (2 * MIB)
#define FIND_GRANULARITY_BITS 20

/* One of the two. */
struct side {
    struct blk_node *node;         /* NULL: zeroes */
    const struct blk_node *common; /* its first image that the other chain has too, or NULL */
};

struct difference_job {
    const struct blk_difference_params *params;
    struct blk_dirty_bitmap *marks;
    struct side sides[2];

    struct blk_mutex mutex;         /* guards what follows */
    uint64_t next;                  /* everything before is equal, or has been handed out */
    struct blk_dirty_cursor marked; /* of the mask, at `next` */
    uint64_t done;
    int ret; /* the first failure */
    struct blk_error err;
};

struct piece {
    uint64_t offset, bytes;
};

/* ---- images that are open twice ---- */

static bool is_same_medium(const struct blk_node *a, const struct blk_node *b)
{
    struct stat first, second;
    return a->driver == b->driver && a->driver->kind == BLK_PROTOCOL &&
           stat(a->name, &first) == 0 && stat(b->name, &second) == 0 &&
           first.st_dev == second.st_dev && first.st_ino == second.st_ino &&
           first.st_rdev == second.st_rdev && (S_ISREG(first.st_mode) || S_ISBLK(first.st_mode));
}

/*
 * Whether both show the same because they and all below them are the same images. A raw image that
 * is only a part of its file is not compared: the part might be another one.
 */
static bool is_same_chain(const struct blk_node *a, const struct blk_node *b)
{
    const struct blk_node *file_a = blk_child(a, BLK_ROLE_FILE);
    const struct blk_node *file_b = blk_child(b, BLK_ROLE_FILE);
    const struct blk_node *below_a = blk_child(a, BLK_ROLE_BACKING);
    const struct blk_node *below_b = blk_child(b, BLK_ROLE_BACKING);

    if (a == b)
        return true;
    if (a->driver != b->driver || a->driver->kind != BLK_FORMAT || blk_size(a) != blk_size(b) ||
        blk_child(a, BLK_ROLE_DATA) || blk_child(b, BLK_ROLE_DATA) ||
        !is_same_medium(file_a, file_b))
        return false;
    if (!a->driver->supports_backing && blk_size(a) < blk_size(file_a))
        return false;
    return below_a && below_b ? is_same_chain(below_a, below_b) : below_a == below_b;
}

static struct blk_node *next_in_chain(struct blk_node *node)
{
    struct blk_node *next = blk_child(node, BLK_ROLE_BACKING);
    return next ? blk_skip_filters(next) : NULL;
}

static void find_common(struct side *first, struct side *second)
{
    if (!first->node || !second->node)
        return;
    for (struct blk_node *a = blk_skip_filters(first->node); a; a = next_in_chain(a)) {
        for (struct blk_node *b = blk_skip_filters(second->node); b; b = next_in_chain(b)) {
            if (is_same_chain(a, b)) {
                first->common = a;
                second->common = b;
                return;
            }
        }
    }
}

/* ---- where to look; the job's mutex is held ---- */

enum kind { KIND_ZERO, KIND_COMMON, KIND_UNKNOWN };

/* What one side has at `offset`, and how far that goes; *bytes is shortened to it. */
static int look_at_side(const struct side *side, uint64_t offset, uint64_t *bytes, enum kind *kind,
                        struct blk_error *err)
{
    struct blk_extent extent;
    uint64_t size = side->node ? blk_size(side->node) : 0;

    *kind = KIND_ZERO;
    if (offset >= size)
        return 0;
    *bytes = u64_min(*bytes, size - offset);
    *kind = KIND_COMMON;
    if (side->common && blk_skip_filters(side->node) == side->common)
        return 0;

    int ret = blk_block_status_above(blk_layers(side->node, side->common), offset, *bytes,
                                     BLK_WANT_ZERO, &extent, err);
    if (ret < 0)
        return ret;
    *bytes = extent.bytes;
    if (extent.flags & BLK_EXT_ZERO)
        *kind = KIND_ZERO;
    else if (extent.flags & BLK_EXT_ALLOCATED || !side->common)
        *kind = KIND_UNKNOWN;
    return 0;
}

/* Whether the mask excludes what begins at `offset`; *bytes is shortened as far as that goes. */
static bool is_masked(struct difference_job *job, uint64_t offset, uint64_t *bytes)
{
    ASSERT_LOCKED(&job->mutex);
    uint64_t length;

    if (!job->params->mask)
        return false;
    bool inside = blk_dirty_cursor_look(&job->marked, offset, &length);
    *bytes = u64_min(*bytes, length);
    return !inside;
}

/* Whether the `*bytes` at `offset` (shortened as far as one answer goes) need no reading. */
static int is_settled(struct difference_job *job, uint64_t offset, uint64_t *bytes, bool *settled,
                      struct blk_error *err)
{
    ASSERT_LOCKED(&job->mutex);
    struct blk_node *behind = job->params->behind;
    enum kind first, second;

    *settled = is_masked(job, offset, bytes);
    if (*settled)
        return 0;
    if (behind) {
        struct blk_extent extent;
        int ret = blk_block_status(behind, offset, *bytes, 0, &extent, err);
        if (ret < 0)
            return ret;
        *bytes = extent.bytes;
        *settled = extent.flags & BLK_EXT_ALLOCATED;
        if (*settled)
            return 0;
    }
    int ret = look_at_side(&job->sides[0], offset, bytes, &first, err);
    if (ret == 0)
        ret = look_at_side(&job->sides[1], offset, bytes, &second, err);
    if (ret == 0)
        *settled = first == second && first != KIND_UNKNOWN;
    return ret;
}

/* Adds to what has been seen, and says so. */
static void count(struct difference_job *job, uint64_t bytes)
{
    ASSERT_LOCKED(&job->mutex);
    const struct blk_difference_params *p = job->params;
    job->done += bytes;
    if (p->progress)
        p->progress(p->opaque, job->done, p->bytes);
}

/* Returns 1 with a piece to be read, 0 at the end, or -errno. */
static int next_piece(struct difference_job *job, struct piece *piece, struct blk_error *err)
{
    ASSERT_LOCKED(&job->mutex);
    while (job->ret == 0 && job->next < job->params->bytes) {
        uint64_t bytes = job->params->bytes - job->next;
        bool settled;
        if (blk_cancelled())
            return blk_fail_why(err, ECANCELED, "stopped by a signal", "comparing");
        int ret = is_settled(job, job->next, &bytes, &settled, err);
        if (ret < 0)
            return ret;
        if (!settled)
            bytes = u64_min(bytes, CHUNK_BYTES - job->next % CHUNK_BYTES);
        *piece = (struct piece){ job->next, bytes };
        job->next += bytes;
        if (!settled)
            return 1;
        count(job, bytes);
    }
    return 0;
}

/* ---- looking ---- */

static int read_side(const struct side *side, const struct piece *piece, uint8_t *buf,
                     struct blk_error *err)
{
    if (side->node)
        return blk_pread_padded(side->node, piece->offset, piece->bytes, buf, err);
    memset(buf, 0, piece->bytes);
    return 0;
}

static void mark_difference(struct difference_job *job, const struct piece *piece, const uint8_t *a,
                            const uint8_t *b)
{
    uint64_t granule = UINT64_C(1) << job->marks->granularity_bits;

    for (uint64_t at = 0; at < piece->bytes;) {
        uint64_t step = u64_min(granule - (piece->offset + at) % granule, piece->bytes - at);
        if (memcmp(a + at, b + at, step) != 0)
            blk_dirty_bitmap_set(job->marks, piece->offset + at, step);
        at += step;
    }
}

static int compare_pieces(struct difference_job *job, uint8_t *a, uint8_t *b, struct blk_error *err)
{
    struct piece piece = { 0 };
    int ret;

    for (;;) {
        blk_mutex_lock(&job->mutex);
        ret = next_piece(job, &piece, err);
        blk_mutex_unlock(&job->mutex);
        if (ret <= 0)
            return ret;
        ret = read_side(&job->sides[0], &piece, a, err);
        if (ret < 0)
            return ret;
        ret = read_side(&job->sides[1], &piece, b, err);
        if (ret < 0)
            return ret;
        mark_difference(job, &piece, a, b);
        LOCK_SCOPE(&job->mutex);
        count(job, piece.bytes);
    }
}

static void *difference_work(void *argument)
{
    struct difference_job *job = argument;
    struct blk_error err = BLK_ERROR_INIT;
    uint8_t *a = blk_buffer_alloc(CHUNK_BYTES), *b = blk_buffer_alloc(CHUNK_BYTES);

    int ret = a && b ? compare_pieces(job, a, b, &err) : blk_fail(&err, ENOMEM, "comparing");
    if (ret < 0) {
        LOCK_SCOPE(&job->mutex);
        if (job->ret == 0) {
            job->ret = ret;
            job->err = err;
        }
    }
    free(a);
    free(b);
    return NULL;
}

int blk_difference_mark(const struct blk_difference_params *params, struct blk_dirty_bitmap *marks,
                        struct blk_error *err)
{
    struct difference_job job = {
        .params = params,
        .marks = marks,
        .marked = { .bitmap = params->mask, .end = params->bytes },
        .sides = { { .node = params->first }, { .node = params->second } },
    };
    find_common(&job.sides[0], &job.sides[1]);
    blk_mutex_init(&job.mutex);

    blk_run_workers(params->workers, difference_work, &job);

    blk_mutex_destroy(&job.mutex);
    if (job.ret < 0 && err)
        *err = job.err;
    return job.ret;
}

int blk_difference_find(const struct blk_difference_params *params, bool *differs, uint64_t *offset,
                        struct blk_error *err)
{
    struct blk_dirty_bitmap *marks;
    uint64_t bytes;

    *differs = false;
    if (!params->bytes)
        return 0;
    int ret =
        blk_dirty_bitmap_new("differences", params->bytes, FIND_GRANULARITY_BITS, &marks, err);
    if (ret < 0)
        return ret;
    ret = blk_difference_mark(params, marks, err);
    if (ret == 0)
        *differs = blk_dirty_bitmap_next(marks, 0, params->bytes, offset, &bytes);
    blk_dirty_bitmap_free(marks);
    return ret;
}
