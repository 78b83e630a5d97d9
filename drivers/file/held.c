/* SPDX-License-Identifier: MIT */
/*
 * A target that is overwritten in place (C6).
 *
 * Until the first change nothing is done to the medium: a command that fails before it has
 * destroyed nothing. Then what made the old content an image, its magic, is zeroed for good before
 * anything else is written. Until the new image is complete its own first sector stays in memory,
 * so that at no moment the medium holds something that looks like an image and is none. Reads see
 * what was written.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "drivers/file/file.h"

/* Covers the magic of every format that is known by its first bytes. */
#define OLD_MAGIC_BYTES 4096

void file_held_begin(struct blk_node *node)
{
    struct file_state *s = node->state;
    struct file_target *t = s->target;

    /* Not more than one sector: it must reach the medium whole or not at all. */
    t->held_bytes = node->limits.request_alignment;
    if (t->held_bytes < BLK_SECTOR_BYTES)
        t->held_bytes = BLK_SECTOR_BYTES;
    t->held = blk_xcalloc(1, t->held_bytes);
    file_target_become(t, FILE_TARGET_UNTOUCHED);
    if (!s->device)
        blk_node_set_size(node, 0);
}

/* Zeroes as many bytes as a device has, at most those of the magic. */
static int erase_magic(struct blk_node *node)
{
    struct file_state *s = node->state;
    uint64_t bytes = u64_max(OLD_MAGIC_BYTES, node->limits.request_alignment);
    if (s->device)
        bytes = u64_min(bytes, blk_size(node));
    int ret = file_write_aligned(node, 0, bytes, NULL);
    if (ret == 0 && !node->cache.no_flush)
        ret = file_sync(s);
    return ret;
}

static int erase(struct blk_node *node)
{
    struct file_state *s = node->state;
    int ret = erase_magic(node);
    if (ret == 0 && !s->device) {
        ret = blk_sys->ftruncate(s->fd, 0) < 0 ? -errno : 0;
        blk_node_set_size(node, 0);
        file_changed(s);
    }
    return ret;
}

int file_overwrite(struct blk_node *node, struct blk_error *err)
{
    struct file_state *s = node->state;
    if (!file_shows_old(s))
        return 0;

    struct file_target *t = s->target;
    LOCK_SCOPE(&t->erase_mutex);
    if (!file_target_is(t, FILE_TARGET_UNTOUCHED))
        return 0; /* another request has done it meanwhile */
    int ret = erase(node);
    if (ret < 0)
        return blk_fail(err, -ret, "erasing the old content of '%s'", node->name);
    file_target_become(t, FILE_TARGET_ERASED);
    return 0;
}

bool file_shows_old(const struct file_state *s)
{
    return s->target && file_target_is(s->target, FILE_TARGET_UNTOUCHED);
}

bool file_is_held(const struct file_state *s, uint64_t offset)
{
    return s->target && s->target->held && offset < s->target->held_bytes;
}

uint64_t file_held_read(struct file_state *s, uint64_t offset, uint64_t bytes, void *buf)
{
    if (!file_is_held(s, offset))
        return 0;
    struct file_target *t = s->target;
    bytes = u64_min(bytes, t->held_bytes - offset);
    LOCK_SCOPE(&t->held_mutex);
    memcpy(buf, t->held + offset, bytes);
    return bytes;
}

uint64_t file_held_write(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf)
{
    struct file_state *s = node->state;
    if (!file_is_held(s, offset))
        return 0;
    struct file_target *t = s->target;
    bytes = u64_min(bytes, t->held_bytes - offset);
    blk_mutex_lock(&t->held_mutex);
    if (buf)
        memcpy(t->held + offset, buf, bytes);
    else
        memset(t->held + offset, 0, bytes);
    blk_mutex_unlock(&t->held_mutex);
    blk_node_grow_size(node, offset + bytes);
    return bytes;
}

void file_held_truncate(struct file_state *s, uint64_t size)
{
    if (!file_is_held(s, size))
        return;
    struct file_target *t = s->target;
    LOCK_SCOPE(&t->held_mutex);
    memset(t->held + size, 0, t->held_bytes - size);
}

int file_held_end(struct blk_node *node)
{
    struct file_state *s = node->state;
    struct file_target *t = s->target;
    uint64_t size = blk_size(node);

    int ret = size ? file_write_aligned(node, 0, t->held_bytes, t->held) : 0;
    /* Whole sectors are written, for O_DIRECT; a file may be shorter. */
    bool too_long = size < t->held_bytes && !s->device;
    if (ret == 0 && too_long && blk_sys->ftruncate(s->fd, (off_t)size) < 0)
        ret = -errno;
    return ret;
}
