/* SPDX-License-Identifier: MIT */
/*
 * The content of a file or device as it is on the medium: whole transfers, the size, the sync.
 *
 * Every image call goes through blk_sys, is repeated when a signal interrupts it, and continued
 * when it does less than asked. A read past the end gives zeroes; a write past the end grows the
 * node.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/sys.h"
#include "blockcore/graph/io.h"
#include "drivers/file/file.h"

/* ---- reading ---- */

/* One read, repeated when interrupted: the bytes read, 0 where there are none, or -errno. */
static int64_t read_some(const struct file_state *s, uint64_t offset, uint64_t bytes, void *buf)
{
    ssize_t (*transfer)(int, void *, size_t, off_t) = s->uring ? file_uring_pread : blk_sys->pread;
    ssize_t done;
    do
        done = transfer(s->fd, buf, u64_min(bytes, SSIZE_MAX), (off_t)offset);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : done;
}

/* How long the file is, and how long it has to be at least. */
struct length {
    uint64_t now;
    uint64_t known; /* node->size, which follows the file as others write to it */
};

/* What is known is looked up first: what another thread appends afterwards is no reason to fail. */
static int find_length(const struct blk_node *node, struct length *length, struct blk_error *err)
{
    const struct file_state *s = node->state;
    struct stat st;

    length->known = blk_size(node);
    int ret = blk_sys->fstat(s->fd, &st) < 0 ? -errno : file_medium_size(s->fd, &st, &length->now);
    return ret < 0 ? blk_fail(err, -ret, "finding out the size of '%s'", node->name) : 0;
}

/* Fails when what a node goes by, up to `end`, is more than the file has. */
static int check_length(const struct blk_node *node, uint64_t end, const struct length *length,
                        struct blk_error *err)
{
    if (length->now >= u64_min(end, length->known))
        return 0;
    return blk_fail_why(err, EIO, "it shrank while it was open",
                        "reading '%s', which ends at offset %" PRIu64, node->name, length->now);
}

int file_check_end(const struct blk_node *node, uint64_t end, struct blk_error *err)
{
    struct length length;
    int ret = find_length(node, &length, err);
    return ret < 0 ? ret : check_length(node, end, &length, err);
}

/*
 * What follows a read at `offset` of which `done` of `bytes` bytes came, less than a whole unit:
 * 0 when the rest has been filled with zeroes, 1 when it has to be tried once more, -errno.
 */
static int end_read(const struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                    uint64_t done, struct blk_error *err)
{
    struct length length;
    int ret = find_length(node, &length, err);
    if (ret < 0)
        return ret;
    if (offset + done < length.now)
        return 1;
    memset((uint8_t *)buf + done, 0, bytes - done);
    return check_length(node, offset + bytes, &length, err);
}

int file_read(const struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
              struct blk_error *err)
{
    uint8_t *to = buf;
    bool again = false;
    while (bytes) {
        int64_t done = read_some(node->state, offset, bytes, to);
        if (done < 0)
            return (int)done;
        /* With O_DIRECT only whole units can be asked for. */
        uint64_t whole = (uint64_t)done == bytes
                             ? bytes
                             : round_down((uint64_t)done, node->limits.request_alignment);
        if (!whole) {
            int ret = end_read(node, offset, bytes, to, (uint64_t)done, err);
            if (ret <= 0)
                return ret;
            /* The file may just have grown, but only once is there nothing before its end. */
            if (again)
                return blk_fail_why(err, EIO, "nothing was read although the file goes on",
                                    "reading '%s' at offset %" PRIu64, node->name, offset);
        }
        again = !whole;
        to += whole;
        offset += whole;
        bytes -= whole;
    }
    return 0;
}

/* Reads into a buffer of any alignment. */
int file_read_aligned(const struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                      struct blk_error *err)
{
    if ((uintptr_t)buf % node->limits.memory_alignment == 0)
        return file_read(node, offset, bytes, buf, err);

    void *bounce = blk_buffer_alloc(bytes);
    if (!bounce)
        return -ENOMEM;
    int ret = file_read(node, offset, bytes, bounce, err);
    if (ret == 0)
        memcpy(buf, bounce, bytes);
    free(bounce);
    return ret;
}

/* ---- writing ---- */

int file_write(const struct file_state *s, uint64_t offset, uint64_t bytes, const void *buf)
{
    ssize_t (*transfer)(int, const void *, size_t, off_t) =
        s->uring ? file_uring_pwrite : blk_sys->pwrite;
    const uint8_t *from = buf;
    while (bytes) {
        ssize_t done = transfer(s->fd, from, u64_min(bytes, SSIZE_MAX), (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO;
        from += done;
        offset += (uint64_t)done;
        bytes -= (uint64_t)done;
    }
    return 0;
}

/* What is going to be synced is sent to the medium in portions of this size. */
#define WRITE_BACK_BYTES (16 * MIB)

/*
 * Lets the kernel begin to write back what a sync at the end would wait for. A wish only: the sync
 * is made as before, and it is the sync that reports errors (SYNC_FILE_RANGE_WRITE alone takes none
 * of them away).
 */
static void begin_write_back(struct blk_node *node, uint64_t bytes)
{
    struct file_state *s = node->state;

    if (s->device || node->cache.direct || node->cache.no_flush ||
        atomic_fetch_add(&s->unsent, bytes) + bytes < WRITE_BACK_BYTES)
        return;
    if (atomic_exchange(&s->unsent, 0) >= WRITE_BACK_BYTES)
        blk_sys->sync_file_range(s->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

/* Writes to the medium, and keeps node->size behind what is there. */
int file_write_medium(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf)
{
    struct file_state *s = node->state;
    bool grows = !s->device && offset + bytes > blk_size(node);

    if (grows)
        blk_read_lock(&s->growth);
    int ret = file_write(s, offset, bytes, buf);
    if (grows) {
        if (ret == 0)
            blk_node_grow_size(node, offset + bytes);
        blk_read_unlock(&s->growth);
    }
    file_changed(s);
    if (ret == 0)
        begin_write_back(node, bytes);
    return ret;
}

int file_write_aligned(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf)
{
    if (buf && (uintptr_t)buf % node->limits.memory_alignment == 0)
        return file_write_medium(node, offset, bytes, buf);

    void *bounce = blk_buffer_alloc(bytes);
    if (!bounce)
        return -ENOMEM;
    if (buf)
        memcpy(bounce, buf, bytes);
    else
        memset(bounce, 0, bytes);
    int ret = file_write_medium(node, offset, bytes, bounce);
    free(bounce);
    return ret;
}

/* ---- the size ---- */

int file_extend(struct blk_node *node, uint64_t size)
{
    struct file_state *s = node->state;
    struct stat st;

    WRITE_LOCK_SCOPE(&s->growth);
    int ret = blk_sys->fstat(s->fd, &st) < 0 ? -errno : 0;
    if (ret == 0 && (uint64_t)st.st_size < size)
        ret = file_set_size(s->fd, size);
    if (ret == 0)
        blk_node_grow_size(node, size);
    return ret;
}

/* ---- the sync ---- */

/* Raises *synced to `changes`: another thread may have got further meanwhile. */
static void note_synced(struct file_state *s, uint64_t changes)
{
    uint_fast64_t known = atomic_load(&s->synced);
    while (known < changes && !atomic_compare_exchange_weak(&s->synced, &known, changes))
        ;
}

int file_sync(struct file_state *s)
{
    /* Counted before the sync: what completes meanwhile may or may not be in it. */
    uint64_t changes = atomic_load_explicit(&s->changes, memory_order_acquire);
    if (changes == atomic_load(&s->synced))
        return 0;

    int ret;
    do
        ret = blk_sys->fdatasync(s->fd) < 0 ? -errno : 0;
    while (ret == -EINTR);
    if (ret == 0)
        note_synced(s, changes);
    return ret;
}
