/* SPDX-License-Identifier: MIT */
/*
 * Requests: range checks, the in-flight count, alignment, and the general ways of doing what a
 * driver lacks.
 *
 * Alignment. A node may demand that requests are multiples of its request_alignment (O_DIRECT).
 * Reads are widened into a bounce buffer. Writes are widened by reading what surrounds them, under
 * an exclusive range lock; on such a node aligned writes hold their range shared, so that
 * no read-modify-write puts back bytes that an aligned write has just replaced.
 */
#include "blockcore/graph/io.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/units.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/request.h"

#define BOUNCE_ALIGNMENT 4096
#define ZERO_CHUNK_BYTES (1 * MIB)

void *blk_buffer_alloc(uint64_t bytes)
{
    void *buf;
    if (bytes > SIZE_MAX - BOUNCE_ALIGNMENT)
        return NULL;
    if (posix_memalign(&buf, BOUNCE_ALIGNMENT, bytes ? bytes : 1) == 0)
        return buf;
    if (!blk_give_up_reserve(bytes) || posix_memalign(&buf, BOUNCE_ALIGNMENT, bytes ? bytes : 1))
        return NULL;
    return buf;
}

static bool is_aligned(const struct blk_node *node, uint64_t offset, uint64_t bytes,
                       const void *buf)
{
    return (offset | bytes) % node->limits.request_alignment == 0 &&
           (uintptr_t)buf % node->limits.memory_alignment == 0;
}

/* The longest piece of a transfer that the driver takes at once. */
static uint64_t transfer_piece(const struct blk_node *node, uint64_t bytes)
{
    return node->limits.max_transfer ? u64_min(bytes, node->limits.max_transfer) : bytes;
}

/* ---- reading ---- */

static int read_aligned(struct blk_node *node, uint64_t offset, uint64_t bytes, uint8_t *buf,
                        struct blk_error *err)
{
    while (bytes) {
        uint64_t piece = transfer_piece(node, bytes);
        int ret = node->driver->data.pread(node, offset, piece, buf, err);
        if (ret < 0)
            return blk_read_failed(node, ret, offset, piece, err);
        offset += piece;
        bytes -= piece;
        buf += piece;
    }
    return 0;
}

static int read_bounced(struct blk_node *node, uint64_t offset, uint64_t bytes, uint8_t *buf,
                        struct blk_error *err)
{
    uint64_t align = node->limits.request_alignment;
    uint64_t start = round_down(offset, align);
    uint64_t length = round_up(offset + bytes, align) - start;

    uint8_t *bounce = blk_buffer_alloc(length);
    if (!bounce)
        return blk_read_failed(node, -ENOMEM, offset, bytes, err);
    int ret = read_aligned(node, start, length, bounce, err);
    if (ret == 0)
        memcpy(buf, bounce + (offset - start), bytes);
    free(bounce);
    return ret;
}

int blk_child_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                    struct blk_error *err)
{
    if (!node->driver->growable) {
        /* What lies past the end of a backing file reads as zeroes. */
        uint64_t size = blk_size(node);
        uint64_t inside = offset < size ? u64_min(bytes, size - offset) : 0;
        memset((uint8_t *)buf + inside, 0, bytes - inside);
        bytes = inside;
    }
    if (!bytes)
        return 0;
    return is_aligned(node, offset, bytes, buf) ? read_aligned(node, offset, bytes, buf, err)
                                                : read_bounced(node, offset, bytes, buf, err);
}

/* ---- writing ---- */

/*
 * A request that needs no widening, on a node where others may need it, holds its range shared: no
 * read-modify-write may put back old bytes over it.
 */
static void hold_shared(struct blk_node *node, struct blk_range *range, uint64_t offset,
                        uint64_t bytes)
{
    range->held = false;
    if (node->limits.request_alignment > 1)
        blk_range_take_shared(&node->ranges, range, offset, bytes, node->limits.request_alignment);
}

static void let_go(struct blk_node *node, struct blk_range *range)
{
    if (range->held)
        blk_range_release(&node->ranges, range);
}

static int write_aligned(struct blk_node *node, uint64_t offset, uint64_t bytes, const uint8_t *buf,
                         unsigned flags, struct blk_error *err)
{
    while (bytes) {
        uint64_t piece = transfer_piece(node, bytes);
        int ret = node->driver->data.pwrite(node, offset, piece, buf, flags, err);
        if (ret < 0)
            return blk_write_failed(node, ret, "writing", offset, piece, err);
        offset += piece;
        bytes -= piece;
        buf += piece;
    }
    return 0;
}

/* Reads the block at `offset` into `block` for a read-modify-write. */
static int read_edge(struct blk_node *node, uint64_t offset, uint8_t *block, enum blk_event before,
                     enum blk_event after, struct blk_error *err)
{
    blk_event(node, before);
    int ret = read_aligned(node, offset, node->limits.request_alignment, block, err);
    if (ret == 0)
        blk_event(node, after);
    return ret;
}

/*
 * Widens the write to whole blocks and writes it. The caller holds the range. A file whose size is
 * no multiple of the alignment keeps its size: it is cut back to what it was, or to the end of the
 * write.
 */
static int write_widened(struct blk_node *node, uint64_t offset, uint64_t bytes, const uint8_t *buf,
                         unsigned flags, struct blk_error *err)
{
    uint64_t align = node->limits.request_alignment;
    uint64_t start = round_down(offset, align);
    uint64_t end = round_up(offset + bytes, align);
    uint64_t size_after = u64_max(blk_size(node), offset + bytes);

    uint8_t *bounce = blk_buffer_alloc(end - start);
    if (!bounce)
        return blk_write_failed(node, -ENOMEM, "writing", offset, bytes, err);

    int ret = 0;
    if (offset > start)
        ret = read_edge(node, start, bounce, BLK_EVENT_PWRITEV_RMW_HEAD,
                        BLK_EVENT_PWRITEV_RMW_AFTER_HEAD, err);
    bool tail_is_head = offset > start && end - start == align;
    if (ret == 0 && offset + bytes < end && !tail_is_head)
        ret = read_edge(node, end - align, bounce + (end - align - start),
                        BLK_EVENT_PWRITEV_RMW_TAIL, BLK_EVENT_PWRITEV_RMW_AFTER_TAIL, err);
    if (ret == 0) {
        memcpy(bounce + (offset - start), buf, bytes);
        ret = write_aligned(node, start, end - start, bounce, flags, err);
    }
    if (ret == 0 && end > size_after && node->driver->growable && node->driver->data.truncate) {
        ret = node->driver->data.truncate(node, size_after, BLK_PREALLOC_OFF, true, err);
        if (ret < 0)
            ret = blk_write_failed(node, ret, "cutting to size after writing", offset, bytes, err);
    }
    free(bounce);
    return ret;
}

/*
 * Takes the range of a widened write. At the end of the node the size may be cut back afterwards:
 * there all writers behind it are kept out too. Where the end is, is known only with the range
 * held, as another widened write may be about to cut it back.
 */
static void take_widened(struct blk_node *node, struct blk_range *range, uint64_t offset,
                         uint64_t bytes)
{
    uint64_t align = node->limits.request_alignment;

    blk_range_take(&node->ranges, range, offset, bytes, align);
    if (round_up(offset + bytes, align) <= blk_size(node))
        return;
    blk_range_release(&node->ranges, range);
    blk_range_take(&node->ranges, range, offset, BLK_RANGE_TO_END - offset, align);
}

static int write_any(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                     unsigned flags, struct blk_error *err)
{
    struct blk_range range;
    int ret;

    if (is_aligned(node, offset, bytes, buf)) {
        hold_shared(node, &range, offset, bytes);
        ret = write_aligned(node, offset, bytes, buf, flags, err);
    } else {
        take_widened(node, &range, offset, bytes);
        ret = write_widened(node, offset, bytes, buf, flags, err);
    }
    let_go(node, &range);
    return ret;
}

/* Whether detect-zeroes makes the write one of zeroes. */
static bool is_zero_write(const struct blk_node *node, uint64_t bytes, const void *buf)
{
    return node->detect_zeroes != BLK_DETECT_OFF && node->driver->data.write_zeroes &&
           bytes_are_zero(buf, bytes);
}

int blk_child_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                     unsigned flags, struct blk_error *err)
{
    if (is_zero_write(node, bytes, buf)) {
        bool unmap = node->detect_zeroes == BLK_DETECT_UNMAP;
        return blk_child_write_zeroes(node, offset, bytes, flags | (unmap ? BLK_REQ_MAY_UNMAP : 0),
                                      err);
    }

    int ret = blk_begin_change(node, offset, bytes, err);
    if (ret < 0 || !bytes)
        return ret;

    unsigned driver_flags = node->driver->supports_fua ? flags : flags & ~(unsigned)BLK_REQ_FUA;
    blk_event(node, BLK_EVENT_PWRITEV);
    ret = write_any(node, offset, bytes, buf, driver_flags, err);
    blk_bitmaps_did_write(node, offset, bytes);
    if (ret < 0)
        return ret;
    blk_event(node, BLK_EVENT_PWRITEV_DONE);
    return driver_flags == flags ? 0 : blk_finish_fua(node, flags, err);
}

/* Writes zeroes as data. */
static int write_zero_bytes(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err)
{
    uint64_t chunk = u64_min(bytes, ZERO_CHUNK_BYTES);
    void *zeroes = blk_buffer_alloc(chunk);
    if (!zeroes)
        return blk_write_failed(node, -ENOMEM, "zeroing", offset, bytes, err);
    memset(zeroes, 0, chunk);

    int ret = 0;
    while (bytes && ret == 0) {
        uint64_t piece = u64_min(bytes, chunk);
        ret = write_any(node, offset, piece, zeroes, 0, err);
        offset += piece;
        bytes -= piece;
    }
    free(zeroes);
    return ret;
}

/* Zeroes one piece: by the driver where it can, else by writing. */
static int zero_piece(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                      struct blk_error *err)
{
    int ret = -ENOTSUP;
    bool fits = (offset | bytes) % node->limits.request_alignment == 0;

    if (node->driver->data.write_zeroes && fits) {
        struct blk_range range;
        hold_shared(node, &range, offset, bytes);
        ret = node->driver->data.write_zeroes(node, offset, bytes, flags, err);
        let_go(node, &range);
    }
    if (ret == -ENOTSUP && !(flags & BLK_REQ_NO_FALLBACK)) {
        blk_error_clear(err);
        ret = write_zero_bytes(node, offset, bytes, err);
    }
    return ret < 0 ? blk_write_failed(node, ret, "zeroing", offset, bytes, err) : 0;
}

int blk_child_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                           struct blk_error *err)
{
    int ret = blk_begin_change(node, offset, bytes, err);
    if (ret < 0 || !bytes)
        return ret;

    /* Each node has its own say in what may be unmapped. */
    unsigned piece_flags = flags & ~(unsigned)BLK_REQ_FUA;
    if (!(node->flags & BLK_UNMAP))
        piece_flags &= ~(unsigned)BLK_REQ_MAY_UNMAP;
    blk_event(node, BLK_EVENT_PWRITEV_ZERO);

    /* Head and tail that do not fill the driver's zeroing unit go by themselves. */
    uint64_t unit =
        u64_max(1, u64_max(node->limits.request_alignment, node->limits.zero_alignment));
    uint64_t end = offset + bytes;
    for (uint64_t at = offset, piece; at < end && ret == 0; at += piece) {
        piece = end - at;
        if (at % unit)
            piece = u64_min(piece, round_up(at, unit) - at);
        else if (piece > unit)
            piece = round_down(piece, unit);
        ret = zero_piece(node, at, piece, piece_flags, err);
    }
    blk_bitmaps_did_write(node, offset, bytes);
    return ret < 0 ? ret : blk_finish_fua(node, flags, err);
}

int blk_child_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    int ret = blk_check_writable(node, err);
    if (ret < 0 || !node->driver->data.discard || !(node->flags & BLK_UNMAP))
        return ret;

    uint64_t align = node->limits.request_alignment;
    uint64_t start = round_up(offset, align);
    uint64_t end = round_down(offset + bytes, align);
    if (start >= end)
        return 0;

    ret = blk_begin_change(node, start, end - start, err);
    if (ret < 0)
        return ret;
    ret = node->driver->data.discard(node, start, end - start, err);
    blk_bitmaps_did_write(node, start, end - start);
    if (ret == -ENOTSUP) {
        blk_error_clear(err);
        return 0;
    }
    return ret < 0 ? blk_write_failed(node, ret, "discarding", offset, bytes, err) : 0;
}

int blk_child_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                         uint64_t bytes, struct blk_error *err)
{
    int ret = blk_check_writable(node, err);
    if (ret < 0 || !bytes)
        return ret;
    if (!node->driver->data.copy_range)
        return -ENOTSUP;
    ret = blk_begin_change(node, offset, bytes, err);
    if (ret < 0)
        return ret;

    struct blk_range range;
    hold_shared(node, &range, offset, bytes);
    ret = node->driver->data.copy_range(node, offset, from, bytes, err);
    let_go(node, &range);
    blk_bitmaps_did_write(node, offset, bytes);
    if (ret < 0 && ret != -ENOTSUP)
        return blk_write_failed(node, ret, "copying", offset, bytes, err);
    return ret;
}

bool blk_can_share(struct blk_node *node, const struct blk_node *source)
{
    return node->driver->data.can_share && node->driver->data.can_share(node, source);
}

int blk_child_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                       struct blk_error *err)
{
    int ret = blk_check_writable(node, err);
    if (ret < 0)
        return ret;
    if (!node->driver->data.truncate)
        ret = blk_fail_why(err, ENOTSUP, "not supported", "resizing '%s' (%s)", node->name,
                           node->driver->name);
    else if (size > BLK_MAX_BYTES)
        ret = -EFBIG;
    else
        ret = node->driver->data.truncate(node, size, prealloc, exact, err);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "resizing '%s' to %" PRIu64 " bytes", node->name, size);
    return 0;
}

/* ---- the entry: each request is checked and counted once ---- */

int blk_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
              struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_check_range(node, "reading", offset, bytes, err);
    if (ret == 0)
        ret = blk_child_pread(node, offset, bytes, buf, err);
    blk_gate_leave(&node->gate);
    return ret;
}

int blk_pread_padded(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                     struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_child_pread(node, offset, bytes, buf, err);
    blk_gate_leave(&node->gate);
    return ret;
}

int blk_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
               unsigned flags, struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_check_range(node, "writing", offset, bytes, err);
    if (ret == 0)
        ret = blk_child_pwrite(node, offset, bytes, buf, blk_entry_flags(node, flags), err);
    blk_gate_leave(&node->gate);
    return ret;
}

int blk_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                     struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_check_range(node, "zeroing", offset, bytes, err);
    if (ret == 0)
        ret = blk_child_write_zeroes(node, offset, bytes, blk_entry_flags(node, flags), err);
    blk_gate_leave(&node->gate);
    return ret;
}

int blk_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_check_range(node, "discarding", offset, bytes, err);
    if (ret == 0)
        ret = blk_child_discard(node, offset, bytes, err);
    if (ret == 0)
        ret = blk_finish_fua(node, blk_entry_flags(node, 0), err);
    blk_gate_leave(&node->gate);
    return ret;
}

int blk_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                   uint64_t bytes, struct blk_error *err)
{
    blk_gate_enter(&node->gate);
    int ret = blk_check_range(node, "copying", offset, bytes, err);
    if (ret == 0)
        ret = blk_child_copy_range(node, offset, from, bytes, err);
    if (ret == 0)
        ret = blk_finish_fua(node, blk_entry_flags(node, 0), err);
    blk_gate_leave(&node->gate);
    return ret;
}

int blk_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                 struct blk_error *err)
{
    blk_gate_drain_begin(&node->gate);
    int ret = blk_child_truncate(node, size, prealloc, exact, err);
    if (ret == 0)
        ret = blk_finish_fua(node, blk_entry_flags(node, 0), err);
    blk_gate_drain_end(&node->gate);
    return ret;
}

/* ---- a machine's state ---- */

/* The node that keeps it, or NULL. */
static struct blk_node *vm_state_node(struct blk_node *node, struct blk_error *err)
{
    struct blk_node *at = node;
    while (at && !BLK_OP(at->driver, vm_state, write))
        at = blk_child(at, BLK_ROLE_FILE);
    if (!at)
        blk_fail_why(err, ENOTSUP, "its format has no place for it", "machine state of '%s'",
                     node->name);
    return at;
}

int blk_vm_state_read(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                      struct blk_error *err)
{
    struct blk_node *keeper = vm_state_node(node, err);
    if (!keeper)
        return -ENOTSUP;
    blk_gate_drain_begin(&node->gate);
    int ret = BLK_OP(keeper->driver, vm_state, read)(keeper, offset, bytes, buf, err);
    blk_gate_drain_end(&node->gate);
    return ret < 0 ? blk_read_failed(keeper, ret, offset, bytes, err) : 0;
}

int blk_vm_state_write(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                       struct blk_error *err)
{
    struct blk_node *keeper = vm_state_node(node, err);
    if (!keeper)
        return -ENOTSUP;
    int ret = blk_check_writable(keeper, err);
    if (ret < 0)
        return ret;
    blk_gate_drain_begin(&node->gate);
    ret = BLK_OP(keeper->driver, vm_state, write)(keeper, offset, bytes, buf, err);
    if (ret == 0)
        ret = blk_finish_fua(node, blk_entry_flags(node, 0), err);
    blk_gate_drain_end(&node->gate);
    return ret < 0 ? blk_write_failed(keeper, ret, "writing", offset, bytes, err) : 0;
}
