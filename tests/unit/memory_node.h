/* SPDX-License-Identifier: MIT */
/*
 * Nodes whose medium is memory, for unit tests of blockcore. Three drivers share one
 * implementation:
 *
 *   memory_protocol   bytes and holes
 *   memory_format     the same with a backing file: sectors are unallocated, data or zero; can
 *                     hold "compressed" data
 *   memory_filter     passes everything to its file child, and says so in its block status
 *
 * A test counts calls, and makes the n-th call of a kind fail, through a struct memory_calls of its
 * own, which outlives the node. The bytes are guarded by nothing: where two requests touch the same
 * ones, ThreadSanitizer says so.
 */
#ifndef TESTS_UNIT_MEMORY_NODE_H
#define TESTS_UNIT_MEMORY_NODE_H

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/pass.h"

enum memory_call {
    MEMORY_READ,
    MEMORY_WRITE,
    MEMORY_ZERO,
    MEMORY_COMPRESS,
    MEMORY_COPY,
    MEMORY_STATUS,
    MEMORY_FLUSH_TO_OS,
    MEMORY_FLUSH,
    MEMORY_STORE,
    MEMORY_PUBLISH,
    MEMORY_RELEASE,
    MEMORY_CALLS,
};

struct memory_calls {
    atomic_uint count[MEMORY_CALLS];
    unsigned fail_at[MEMORY_CALLS]; /* the call that fails with EIO, counted from 1; 0: none */
    atomic_uint misaligned;         /* requests that did not keep to the node's limits */
    bool no_zero, no_copy;          /* these are not supported */
};

enum memory_sector { MEMORY_HOLE, MEMORY_DATA, MEMORY_ZEROES };

struct memory_state {
    struct memory_calls *calls;
    uint8_t *data;
    _Atomic uint8_t *map; /* enum memory_sector of each sector */
    uint64_t room;        /* bytes that `data` has */
};

#define MEMORY_CLUSTER_BYTES 65536

static inline struct memory_state *memory_of(const struct blk_node *node)
{
    return node->state;
}

/* Counts the call. Returns what it shall do. */
static inline int memory_call(const struct blk_node *node, enum memory_call kind)
{
    struct memory_calls *calls = memory_of(node)->calls;
    unsigned number = calls ? atomic_fetch_add(&calls->count[kind], 1) + 1 : 0;
    return number && calls->fail_at[kind] == number ? -EIO : 0;
}

static inline void memory_check(const struct blk_node *node, uint64_t offset, uint64_t bytes,
                                const void *buf)
{
    struct memory_calls *calls = memory_of(node)->calls;
    bool fits = (offset | bytes) % node->limits.request_alignment == 0 &&
                (uintptr_t)buf % node->limits.memory_alignment == 0 &&
                (!node->limits.max_transfer || bytes <= node->limits.max_transfer);
    if (calls && !fits)
        atomic_fetch_add(&calls->misaligned, 1);
}

static inline void memory_mark(struct blk_node *node, uint64_t offset, uint64_t bytes,
                               enum memory_sector as)
{
    for (uint64_t at = offset / BLK_SECTOR_BYTES; at * BLK_SECTOR_BYTES < offset + bytes; at++)
        memory_of(node)->map[at] = (uint8_t)as;
    blk_node_grow_size(node, offset + bytes);
}

static inline int memory_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                               struct blk_error *err)
{
    const struct memory_state *s = memory_of(node);
    struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    uint8_t *to = buf;

    int ret = memory_call(node, MEMORY_READ);
    memory_check(node, offset, bytes, buf);
    for (uint64_t piece; bytes && ret == 0; offset += piece, bytes -= piece, to += piece) {
        piece = u64_min(bytes, BLK_SECTOR_BYTES - offset % BLK_SECTOR_BYTES);
        if (offset + piece > s->room)
            memset(to, 0, piece);
        else if (backing && s->map[offset / BLK_SECTOR_BYTES] == MEMORY_HOLE)
            ret = blk_child_pread(backing, offset, piece, to, err);
        else
            memcpy(to, s->data + offset, piece);
    }
    return ret;
}

static inline int memory_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                const void *buf, unsigned flags, struct blk_error *err)
{
    struct memory_state *s = memory_of(node);
    (void)flags;
    (void)err;
    memory_check(node, offset, bytes, buf);
    int ret = memory_call(node, MEMORY_WRITE);
    if (ret == 0 && offset + bytes > s->room)
        ret = -ENOSPC;
    if (ret < 0)
        return ret;
    memcpy(s->data + offset, buf, bytes);
    memory_mark(node, offset, bytes, MEMORY_DATA);
    return 0;
}

static inline int memory_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                      unsigned flags, struct blk_error *err)
{
    struct memory_state *s = memory_of(node);
    (void)flags;
    (void)err;
    int ret = memory_call(node, MEMORY_ZERO);
    if (ret == 0 && s->calls && s->calls->no_zero)
        ret = -ENOTSUP;
    if (ret < 0)
        return ret;
    memory_check(node, offset, bytes, NULL);
    memset(s->data + offset, 0, bytes);
    memory_mark(node, offset, bytes, node->driver->supports_backing ? MEMORY_ZEROES : MEMORY_HOLE);
    return 0;
}

static inline int memory_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                          const void *buf, struct blk_error *err)
{
    int ret = memory_call(node, MEMORY_COMPRESS);
    if (offset % MEMORY_CLUSTER_BYTES ||
        (bytes != MEMORY_CLUSTER_BYTES && offset + bytes != blk_size(node)))
        return -EINVAL;
    return ret < 0 ? ret : memory_pwrite(node, offset, bytes, buf, 0, err);
}

static inline int memory_copy_range(struct blk_node *node, uint64_t offset,
                                    const struct blk_copy_from *from, uint64_t bytes,
                                    struct blk_error *err)
{
    const struct memory_calls *calls = memory_of(node)->calls;
    int ret = memory_call(node, MEMORY_COPY);
    if (calls && calls->no_copy)
        ret = -ENOTSUP;
    if (ret < 0)
        return ret;
    return memory_pwrite(node, offset, bytes, memory_of(from->node)->data + from->offset, 0, err);
}

static inline int memory_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes,
                                      unsigned want, struct blk_extent *extent,
                                      struct blk_error *err)
{
    const struct memory_state *s = memory_of(node);
    (void)want;
    (void)err;
    int ret = memory_call(node, MEMORY_STATUS);
    uint64_t end = offset;
    uint8_t as = s->map[offset / BLK_SECTOR_BYTES];
    while (end < offset + bytes && end < s->room && s->map[end / BLK_SECTOR_BYTES] == as)
        end = round_down(end, BLK_SECTOR_BYTES) + BLK_SECTOR_BYTES;

    unsigned flags = as == MEMORY_DATA     ? BLK_EXT_DATA | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID
                     : as == MEMORY_ZEROES ? BLK_EXT_ZERO | BLK_EXT_ALLOCATED
                     : node->driver->supports_backing ? 0
                                                      : BLK_EXT_ZERO | BLK_EXT_ALLOCATED;
    *extent = (struct blk_extent){
        .bytes = u64_min(end - offset, bytes),
        .flags = flags,
        .host = node,
        .host_offset = offset,
    };
    return ret;
}

static inline int memory_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc,
                                  bool exact, struct blk_error *err)
{
    struct memory_state *s = memory_of(node);
    (void)prealloc;
    (void)exact;
    (void)err;
    if (size > s->room)
        return -ENOSPC;
    memset(s->data + size, 0, s->room - size);
    blk_node_set_size(node, size);
    return 0;
}

static inline int memory_get_info(struct blk_node *node, struct blk_info *info,
                                  struct blk_error *err)
{
    (void)node;
    (void)err;
    info->cluster_bytes = MEMORY_CLUSTER_BYTES;
    return 0;
}

static inline int memory_flush_to_os(struct blk_node *node, struct blk_error *err)
{
    (void)err;
    return memory_call(node, MEMORY_FLUSH_TO_OS);
}

static inline int memory_flush(struct blk_node *node, struct blk_error *err)
{
    (void)err;
    return memory_call(node, MEMORY_FLUSH);
}

static inline int memory_store(struct blk_node *node, struct blk_close_report *report,
                               struct blk_error *err)
{
    (void)report;
    (void)err;
    return memory_call(node, MEMORY_STORE);
}

static inline int memory_publish(struct blk_node *node, struct blk_published *published,
                                 struct blk_error *err)
{
    (void)published, (void)err;
    return memory_call(node, MEMORY_PUBLISH);
}

static inline int memory_release(struct blk_node *node, struct blk_error *err)
{
    struct memory_state *s = memory_of(node);
    (void)err;
    int ret = memory_call(node, MEMORY_RELEASE);
    free(s->data);
    free((void *)s->map);
    return ret;
}

#define MEMORY_DRIVER \
    .state_bytes = sizeof(struct memory_state), .store = memory_store, .publish = memory_publish, \
    .release = memory_release

#define MEMORY_DATA_OPS \
    .pread = memory_pread, .pwrite = memory_pwrite, .write_zeroes = memory_write_zeroes, \
    .block_status = memory_block_status, .truncate = memory_truncate, \
    .flush_to_os = memory_flush_to_os, .flush_to_disk = memory_flush

static const struct blk_driver memory_protocol = {
    .name = "memory",
    .kind = BLK_PROTOCOL,
    .growable = true,
    MEMORY_DRIVER,
    .data = { MEMORY_DATA_OPS, .copy_range = memory_copy_range },
};

static const struct blk_driver memory_format = {
    .name = "memory-format",
    .kind = BLK_FORMAT,
    .supports_backing = true,
    MEMORY_DRIVER,
    .get_info = memory_get_info,
    .data = { MEMORY_DATA_OPS, .write_compressed = memory_write_compressed },
};

static const struct blk_driver memory_filter = {
    .name = "memory-filter",
    .kind = BLK_FILTER,
    .state_bytes = 1,
    .data = { .pread = blk_pass_pread,
              .pwrite = blk_pass_pwrite,
              .block_status = blk_pass_block_status },
};

/*
 * A writable node of `size` zero bytes, all hole, with room to grow by a quarter. `calls` may be
 * NULL.
 */
static inline struct blk_node *memory_node(const struct blk_driver *driver, uint64_t size,
                                           uint32_t alignment, struct memory_calls *calls)
{
    struct blk_cache_mode writeback = { .direct = false };
    struct blk_node *node = blk_node_new(driver, driver->name, BLK_WRITABLE | BLK_UNMAP, writeback);
    struct memory_state *s = memory_of(node);

    s->calls = calls;
    s->room = round_up(size + size / 4 + 1, 65536);
    s->data = blk_xcalloc(s->room, 1);
    s->map = blk_xcalloc(s->room / BLK_SECTOR_BYTES, 1);
    node->limits.request_alignment = alignment;
    node->limits.memory_alignment = alignment;
    blk_node_set_size(node, size);
    return node;
}

/* A filter over `file`. */
static inline struct blk_node *memory_filter_over(struct blk_node *file)
{
    struct blk_node *node = blk_node_new(&memory_filter, "filter", file->flags, file->cache);
    blk_node_attach(node, BLK_ROLE_FILE, file);
    blk_node_set_size(node, blk_size(file));
    return node;
}

/* A number below `below`, from a seed that each thread has for itself. */
static inline uint64_t pick(unsigned *seed, uint64_t below)
{
    uint64_t high = (uint64_t)rand_r(seed);
    return ((high << 31) ^ (uint64_t)rand_r(seed)) % below;
}

/* Fills with bytes that are never 0. */
static inline void fill_random(unsigned *seed, uint8_t *buf, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++)
        buf[i] = (uint8_t)(pick(seed, 255) + 1);
}

#endif
