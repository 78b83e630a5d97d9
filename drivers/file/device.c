/* SPDX-License-Identifier: MIT */
/*
 * What differs between media: block devices by their ioctls, and the alignment that O_DIRECT
 * demands.
 */
#include <errno.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/sys.h"
#include "blockcore/graph/io.h"
#include "drivers/file/file.h"

#define DEFAULT_SECTOR_BYTES 512
/* Fits every medium in use, where nothing better can be found out. */
#define SAFE_ALIGNMENT 4096

int file_medium_size(int fd, const struct stat *st, uint64_t *bytes)
{
    if (!S_ISBLK(st->st_mode)) {
        *bytes = (uint64_t)st->st_size;
        return 0;
    }
    return blk_sys->ioctl(fd, BLKGETSIZE64, bytes) < 0 ? -errno : 0;
}

uint32_t file_device_sector(int fd)
{
    int sector = 0;
    if (blk_sys->ioctl(fd, BLKSSZGET, &sector) < 0 || sector <= 0 ||
        !is_power_of_two((uint64_t)sector))
        return DEFAULT_SECTOR_BYTES;
    return (uint32_t)sector;
}

/* Asks the kernel (since 6.1). */
static bool ask_alignment(int fd, struct blk_limits *limits)
{
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (blk_sys->statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) < 0 ||
        !(stx.stx_mask & STATX_DIOALIGN) || !is_power_of_two(stx.stx_dio_mem_align) ||
        !is_power_of_two(stx.stx_dio_offset_align))
        return false;
    limits->memory_alignment = stx.stx_dio_mem_align;
    limits->request_alignment = stx.stx_dio_offset_align;
    return true;
#else
    (void)fd;
    (void)limits;
    return false;
#endif
}

/*
 * Finds the smallest read that is not refused. An empty file refuses none: then the safe value
 * holds.
 */
static int probe_alignment(int fd, uint64_t size, struct blk_limits *limits)
{
    uint8_t *buf = blk_buffer_alloc(SAFE_ALIGNMENT);
    if (!buf)
        return -ENOMEM;

    uint32_t alignment = size ? DEFAULT_SECTOR_BYTES : SAFE_ALIGNMENT;
    while (alignment < SAFE_ALIGNMENT && blk_sys->pread(fd, buf, alignment, 0) < 0 &&
           errno == EINVAL)
        alignment *= 2;
    free(buf);
    limits->request_alignment = alignment;
    limits->memory_alignment = SAFE_ALIGNMENT;
    return 0;
}

int file_find_limits(int fd, const struct stat *st, bool direct, struct blk_limits *limits)
{
    *limits = (struct blk_limits){ .request_alignment = 1, .memory_alignment = 1 };
    if (S_ISBLK(st->st_mode)) {
        uint32_t sector = file_device_sector(fd);
        limits->zero_alignment = sector;
        if (direct)
            limits->request_alignment = limits->memory_alignment = sector;
        return 0;
    }
    if (!direct || ask_alignment(fd, limits))
        return 0;
    return probe_alignment(fd, (uint64_t)st->st_size, limits);
}

int file_device_zero(struct file_state *s, uint64_t offset, uint64_t bytes, unsigned flags)
{
    int ret = -ENOTSUP;
    if ((offset | bytes) % s->sector_bytes)
        return ret;

    /* The kernel zeroes a device's hole by unmapping only where that is sure to give zeroes. */
    if (flags & BLK_REQ_MAY_UNMAP && !s->no_punch) {
        ret = file_fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
        if (!file_is_unsupported(ret))
            return ret;
        s->no_punch = true;
    }
    if (!s->no_zero_ioctl) {
        uint64_t range[2] = { offset, bytes };
        do
            ret = blk_sys->ioctl(s->fd, BLKZEROOUT, range) < 0 ? -errno : 0;
        while (ret == -EINTR);
        if (!file_is_unsupported(ret))
            return ret;
        s->no_zero_ioctl = true;
    }
    return -ENOTSUP;
}

int file_device_discard(struct file_state *s, uint64_t offset, uint64_t bytes)
{
    uint64_t start = round_up(offset, s->sector_bytes);
    uint64_t end = round_down(offset + bytes, s->sector_bytes);
    if (start >= end)
        return 0;

    uint64_t range[2] = { start, end - start };
    int ret;
    do
        ret = blk_sys->ioctl(s->fd, BLKDISCARD, range) < 0 ? -errno : 0;
    while (ret == -EINTR);
    if (!file_is_unsupported(ret))
        return ret;
    s->no_discard = true;
    return -ENOTSUP;
}
