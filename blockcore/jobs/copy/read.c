/* SPDX-License-Identifier: MIT */
/* Reading a chunk, and with salvage as much of it as can be read. */
#include <string.h>

#include "blockcore/graph/io.h"
#include "blockcore/jobs/copy/job.h"

/* A run of sectors that could not be read. Bytes 0: none. */
struct unread {
    uint64_t offset, bytes;
    struct blk_error why; /* of the first */
};

static void report_unread(struct copy_job *job, struct unread *unread)
{
    const struct blk_copy_params *p = job->params;

    if (unread->bytes && p->salvaged) {
        LOCK_SCOPE(&job->mutex);
        p->salvaged(p->opaque, unread->offset, unread->bytes, &unread->why);
    }
    blk_error_clear(&unread->why);
    unread->bytes = 0;
}

/* Reads what can be read, sector by sector; the rest is zeroes, and reported run by run. */
static void read_salvaging(struct copy_job *job, uint64_t start, uint64_t bytes, uint8_t *buf)
{
    const struct blk_copy_params *p = job->params;
    struct unread unread = { .why = BLK_ERROR_INIT };

    for (uint64_t at = 0; at < bytes; at += BLK_SECTOR_BYTES) {
        uint64_t offset = p->source_offset + start + at;
        uint64_t sector = u64_min(BLK_SECTOR_BYTES, bytes - at);
        int ret = blk_pread_padded(p->source, offset, sector, buf + at,
                                   unread.bytes ? NULL : &unread.why);
        if (ret == 0) {
            report_unread(job, &unread);
            continue;
        }
        memset(buf + at, 0, sector);
        if (!unread.bytes)
            unread.offset = offset;
        unread.bytes += sector;
    }
    report_unread(job, &unread);
}

int copy_read(struct copy_job *job, const struct copy_chunk *chunk, uint64_t at, uint64_t bytes,
              uint8_t *buf, struct blk_error *err)
{
    const struct blk_copy_params *p = job->params;
    if (chunk->unreadable) {
        memset(buf, 0, bytes);
        return 0;
    }
    uint64_t start = chunk->offset + at;
    int ret = blk_pread_padded(p->source, p->source_offset + start, bytes, buf, err);
    if (ret < 0 && p->salvage) {
        blk_error_clear(err);
        read_salvaging(job, start, bytes, buf);
        return 0;
    }
    return ret;
}
