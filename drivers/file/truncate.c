/* SPDX-License-Identifier: MIT */
/*
 * The size of a file, and preallocation: falloc reserves blocks, full writes them. Grown space
 * reads as zeroes. A growth that fails half-way is taken back.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/sys.h"
#include "blockcore/graph/io.h"
#include "drivers/file/file.h"

#define FULL_CHUNK_BYTES (1 * MIB)

/*
 * Writes zeroes to [from, to). `from` is rounded up to what O_DIRECT demands: past the old end
 * all is zero.
 */
static int write_full(struct blk_node *node, uint64_t from, uint64_t to, struct blk_error *err)
{
    struct file_state *s = node->state;
    uint32_t align = node->limits.request_alignment;
    uint8_t *zeroes = blk_buffer_alloc(FULL_CHUNK_BYTES);
    if (!zeroes)
        return -ENOMEM;
    memset(zeroes, 0, FULL_CHUNK_BYTES);

    int ret = 0;
    from = round_up(from, align);
    while (from < to && ret == 0) {
        uint64_t piece = u64_min(to - from, FULL_CHUNK_BYTES);
        if (blk_cancelled())
            ret = blk_fail(err, ECANCELED, "preallocating '%s'", node->name);
        else
            ret = file_write(s, from, round_up(piece, align), zeroes);
        from += piece;
    }
    free(zeroes);
    return ret;
}

static int preallocate_file(struct blk_node *node, uint64_t from, uint64_t to,
                            enum blk_prealloc prealloc, struct blk_error *err)
{
    struct file_state *s = node->state;
    int ret = -ENOTSUP;

    if (prealloc == BLK_PREALLOC_FALLOC)
        ret = file_fallocate(s->fd, 0, from, to - from);
    /* Where blocks cannot be reserved, only writing them keeps the promise. */
    if (file_is_unsupported(ret))
        ret = write_full(node, from, to, err);
    /* Whole blocks may have been written. */
    return ret == 0 ? file_set_size(s->fd, to) : ret;
}

static int resize_file(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc,
                       struct blk_error *err)
{
    struct file_state *s = node->state;
    struct stat st;
    if (blk_sys->fstat(s->fd, &st) < 0)
        return -errno;
    uint64_t old_size = (uint64_t)st.st_size;

    if (prealloc == BLK_PREALLOC_METADATA)
        return blk_fail_why(err, ENOTSUP, "Unsupported preallocation mode: metadata",
                            "resizing '%s'", node->name);
    if (prealloc == BLK_PREALLOC_OFF || size == old_size)
        return file_set_size(s->fd, size);
    if (size < old_size)
        return blk_fail_why(err, ENOTSUP, "preallocation is for growing, not for shrinking",
                            "resizing '%s'", node->name);

    int ret = preallocate_file(node, old_size, size, prealloc, err);
    if (ret == 0)
        return 0;
    ret = blk_fail_if_unset(err, -ret, "preallocating '%s' up to %" PRIu64 " bytes", node->name,
                            size);
    if (file_set_size(s->fd, old_size) < 0)
        blk_left_behind(err, "'%s' keeps the space that was allocated so far", node->name);
    return ret;
}

static int resize_device(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc,
                         bool exact, struct blk_error *err)
{
    uint64_t device_size = blk_size(node);
    if (prealloc != BLK_PREALLOC_OFF)
        return blk_fail_why(err, ENOTSUP, "Unsupported preallocation mode: a device has none",
                            "resizing '%s'", node->name);
    if (size > device_size)
        return blk_fail_why(err, ENOSPC, "the device is too small",
                            "growing '%s' from %" PRIu64 " to %" PRIu64 " bytes", node->name,
                            device_size, size);
    if (exact && size != device_size)
        return blk_fail_why(err, ENOTSUP, "a device has a fixed size", "resizing '%s'", node->name);
    return 0;
}

int file_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                  struct blk_error *err)
{
    struct file_state *s = node->state;
    if (s->device)
        return resize_device(node, size, prealloc, exact, err);
    int ret = file_overwrite(node, err);
    if (ret < 0)
        return ret;

    blk_write_lock(&s->growth);
    ret = resize_file(node, size, prealloc, err);
    if (ret == 0) {
        file_held_truncate(s, size);
        blk_node_set_size(node, size);
    }
    blk_write_unlock(&s->growth);
    file_changed(s);
    return ret;
}
