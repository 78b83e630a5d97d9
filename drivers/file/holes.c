/* SPDX-License-Identifier: MIT */
/*
 * Holes: finding them, making them, and moving data without passing user space.
 *
 * What a file system does not do is remembered in the state, so that it is asked once. A range
 * that extends the file is zeroed by extending it: what lies past the end reads as zeroes.
 */
#include <errno.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <unistd.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/sys.h"
#include "drivers/file/file.h"

/* Makes a hole; what lies past the end stays so. */
static int punch(struct file_state *s, uint64_t offset, uint64_t bytes)
{
    if (s->no_punch)
        return -ENOTSUP;
    int ret = file_fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
    if (!file_is_unsupported(ret))
        return ret;
    s->no_punch = true;
    return -ENOTSUP;
}

/* Zeroes that stay allocated. */
static int zero_kept(struct file_state *s, uint64_t offset, uint64_t bytes)
{
    if (!s->no_zero_range) {
        int ret = file_fallocate(s->fd, FALLOC_FL_ZERO_RANGE, offset, bytes);
        if (!file_is_unsupported(ret))
            return ret;
        s->no_zero_range = true;
    }
    int ret = punch(s, offset, bytes);
    if (ret == 0)
        ret = file_fallocate(s->fd, 0, offset, bytes);
    return file_is_unsupported(ret) ? -ENOTSUP : ret;
}

/* The same, extending the file. */
static int zero_allocated(struct blk_node *node, uint64_t offset, uint64_t bytes)
{
    struct file_state *s = node->state;
    bool grows = offset + bytes > blk_size(node);

    if (grows)
        blk_read_lock(&s->growth);
    int ret = zero_kept(s, offset, bytes);
    if (grows) {
        if (ret == 0)
            blk_node_grow_size(node, offset + bytes);
        blk_read_unlock(&s->growth);
    }
    return ret;
}

static int zero_unmapped(struct blk_node *node, uint64_t offset, uint64_t bytes)
{
    struct file_state *s = node->state;
    uint64_t size = blk_size(node);

    int ret = 0;
    if (offset < size)
        ret = punch(s, offset, u64_min(bytes, size - offset));
    if (ret == 0 && offset + bytes > size)
        ret = file_extend(node, offset + bytes);
    return ret;
}

int file_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                      struct blk_error *err)
{
    struct file_state *s = node->state;
    int ret = file_overwrite(node, err);
    if (ret < 0)
        return ret;
    uint64_t held = file_held_write(node, offset, bytes, NULL);
    offset += held;
    bytes -= held;
    if (!bytes)
        return 0;

    if (s->device) {
        ret = file_device_zero(s, offset, bytes, flags);
    } else {
        ret = -ENOTSUP;
        if (flags & BLK_REQ_MAY_UNMAP)
            ret = zero_unmapped(node, offset, bytes);
        if (ret == -ENOTSUP)
            ret = zero_allocated(node, offset, bytes);
    }
    file_changed(s);
    return ret;
}

int file_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    struct file_state *s = node->state;
    uint64_t end = u64_min(offset + bytes, blk_size(node));
    if (file_is_held(s, offset))
        offset = s->target->held_bytes;
    if (offset >= end || !(node->flags & BLK_UNMAP) || s->no_discard)
        return 0;
    int ret = file_overwrite(node, err);
    if (ret < 0)
        return ret;

    ret = s->device ? file_device_discard(s, offset, end - offset) : punch(s, offset, end - offset);
    file_changed(s);
    return ret;
}

/* ---- block status ---- */

/* lseek(2) for data or a hole: the offset, or -errno. */
static int64_t seek(struct file_state *s, uint64_t offset, int whence)
{
    off_t at = blk_sys->lseek(s->fd, (off_t)offset, whence);
    return at < 0 ? -errno : at;
}

/*
 * Sets *end to where the run of data or hole at `offset` ends, if before it. Returns 1 for a hole,
 * 0 for data, or -errno.
 */
static int find_data_run(struct blk_node *node, uint64_t offset, uint64_t *end,
                         struct blk_error *err)
{
    struct file_state *s = node->state;
    int64_t data = seek(s, offset, SEEK_DATA);
    if (data == -ENXIO) { /* nothing but a hole up to the end of the file */
        int ret = file_check_end(node, *end, err);
        return ret < 0 ? ret : 1;
    }
    if (file_is_unsupported((int)data)) {
        s->no_seek = true;
        return 0;
    }
    if (data < 0)
        return blk_fail(err, (int)-data, "looking for data in '%s'", node->name);
    if ((uint64_t)data > offset) {
        *end = u64_min(*end, (uint64_t)data);
        return 1;
    }
    int64_t hole = seek(s, offset, SEEK_HOLE);
    if (hole < 0 && hole != -ENXIO)
        return blk_fail(err, (int)-hole, "looking for holes in '%s'", node->name);
    if (hole > data)
        *end = u64_min(*end, (uint64_t)hole);
    return 0;
}

int file_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                      struct blk_extent *extent, struct blk_error *err)
{
    struct file_state *s = node->state;
    uint64_t align = node->limits.request_alignment;
    uint64_t end = offset + bytes;
    int run = 0;
    (void)want;

    if (file_is_held(s, offset))
        end = u64_min(end, s->target->held_bytes);
    else if (!s->device && !s->no_seek)
        run = find_data_run(node, offset, &end, err);
    if (run < 0)
        return run;

    /* A unit that is only partly a hole is data. */
    bool hole = run;
    uint64_t length = end - offset;
    if (hole && length < bytes && length % align) {
        length = round_down(length, align);
        hole = length > 0;
    }
    if (!hole)
        length = u64_min(round_up(length ? length : 1, align), bytes);

    *extent = (struct blk_extent){
        .bytes = length,
        .flags = BLK_EXT_OFFSET_VALID | BLK_EXT_ALLOCATED | (hole ? BLK_EXT_ZERO : BLK_EXT_DATA),
        .host = node,
        .host_offset = offset,
    };
    return 0;
}

/* ---- copying within the kernel ---- */

static bool is_file_node(const struct blk_node *node)
{
    return node->driver->data.copy_range == file_copy_range;
}

/* Errors that only say that this pair of files cannot be copied so. */
static bool cannot_copy(int code)
{
    return code == EINVAL || code == EXDEV || code == ENOSYS || code == EOPNOTSUPP ||
           code == ENOTTY || code == EBADF || code == EPERM || code == ETXTBSY;
}

/* Whether the same refusal is to be expected for every range and source. */
static bool is_lasting(int code)
{
    return code == ENOSYS || code == EOPNOTSUPP || code == ENOTTY || code == EPERM;
}

/* Shares the blocks; only whole ones can be. 0, or -ENOTSUP with nothing changed, or -errno. */
static int clone_range(struct file_state *to, uint64_t offset, struct file_state *from,
                       uint64_t source_offset, uint64_t bytes)
{
#ifdef FICLONERANGE
    struct file_clone_range range = {
        .src_fd = from->fd, .src_offset = source_offset, .src_length = bytes, .dest_offset = offset
    };
    if ((offset | source_offset | bytes) % BLK_SHARE_BYTES || to->no_clone || !bytes)
        return -ENOTSUP;
    if (blk_sys->ioctl(to->fd, FICLONERANGE, &range) == 0)
        return 0;
    if (!cannot_copy(errno))
        return errno == EINTR ? -ENOTSUP : -errno;
    to->no_clone = is_lasting(errno);
#else
    (void)to, (void)offset, (void)from, (void)source_offset, (void)bytes;
#endif
    return -ENOTSUP;
}

static int copy_by_kernel(struct file_state *to, uint64_t offset, struct file_state *from,
                          uint64_t source_offset, uint64_t bytes)
{
    if (to->no_copy_range)
        return -ENOTSUP;
    off_t in = (off_t)source_offset, out = (off_t)offset;
    while (bytes) {
        ssize_t done =
            blk_sys->copy_file_range(from->fd, &in, to->fd, &out, u64_min(bytes, GIB), 0);
        if (done > 0) {
            bytes -= (uint64_t)done;
            continue;
        }
        if (done == 0) /* the source ends here: its tail must be read as zeroes */
            return -ENOTSUP;
        if (errno == EINTR)
            continue;
        if (!cannot_copy(errno))
            return -errno;
        to->no_copy_range = is_lasting(errno);
        return -ENOTSUP;
    }
    return 0;
}

int file_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                    uint64_t bytes, struct blk_error *err)
{
    if (!is_file_node(from->node) || !bytes)
        return bytes ? -ENOTSUP : 0;
    struct file_state *to = node->state, *source = from->node->state;
    if (to->device || source->device || file_is_held(to, offset) ||
        file_is_held(source, from->offset) ||
        !range_within(from->offset, bytes, blk_size(from->node)))
        return -ENOTSUP;
    if (from->share && to->no_clone)
        return -ENOTSUP;
    int ret = file_overwrite(node, err);
    if (ret < 0)
        return ret;

    blk_read_lock(&to->growth);
    ret = clone_range(to, offset, source, from->offset, bytes);
    if (ret == -ENOTSUP && !from->share)
        ret = copy_by_kernel(to, offset, source, from->offset, bytes);
    if (ret == 0)
        blk_node_grow_size(node, offset + bytes);
    blk_read_unlock(&to->growth);
    file_changed(to);
    return ret;
}

/*
 * Asks for blocks past the end of any file: a file system that can share blocks finds fault with
 * the range (EINVAL), others with the request.
 */
bool file_can_share(struct blk_node *node, const struct blk_node *source)
{
#ifdef FICLONERANGE
    struct file_state *to = node->state;
    if (!is_file_node(source) || to->device || to->no_clone)
        return false;
    const struct file_state *from = source->state;
    struct file_clone_range range = {
        .src_fd = from->fd,
        .src_offset = UINT64_C(1) << 62,
        .src_length = MIB,
    };
    return !from->device && blk_sys->ioctl(to->fd, FICLONERANGE, &range) < 0 && errno == EINVAL;
#else
    (void)node, (void)source;
    return false;
#endif
}
