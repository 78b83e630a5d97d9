/* SPDX-License-Identifier: MIT */
/* The plain values that pass between commands, blockcore and drivers. */
#ifndef BLOCKCORE_GRAPH_TYPES_H
#define BLOCKCORE_GRAPH_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct blk_node;
struct blk_close_report;

/* Request flags. */
enum blk_request_flags {
    BLK_REQ_FUA = 1 << 0,         /* on stable storage when the call returns */
    BLK_REQ_MAY_UNMAP = 1 << 1,   /* write_zeroes may deallocate */
    BLK_REQ_NO_FALLBACK = 1 << 2, /* write_zeroes must not write byte by byte */
};

enum blk_prealloc {
    BLK_PREALLOC_OFF,
    BLK_PREALLOC_METADATA,
    BLK_PREALLOC_FALLOC,
    BLK_PREALLOC_FULL,
};

/* Parses "off", "metadata", "falloc", "full"; -EINVAL otherwise. */
int blk_prealloc_parse(const char *text, enum blk_prealloc *mode);

/* State of a range of a node. */
enum blk_extent_flags {
    BLK_EXT_DATA = 1 << 0,         /* has data of its own on the medium */
    BLK_EXT_ZERO = 1 << 1,         /* reads as zeroes */
    BLK_EXT_OFFSET_VALID = 1 << 2, /* the bytes are in `host` at `host_offset`, as they are */
    BLK_EXT_ALLOCATED = 1 << 3,    /* this layer decides the content, not its backing file */
    BLK_EXT_COMPRESSED = 1 << 4,
    BLK_EXT_EOF = 1 << 5,     /* ends at the end of the node */
    BLK_EXT_PASS = 1 << 6,    /* from drivers only: same as `host` at `host_offset` */
    BLK_EXT_RECURSE = 1 << 7, /* from drivers only: `host` may know which parts are zero */
};

struct blk_extent {
    uint64_t bytes;
    unsigned flags;        /* enum blk_extent_flags */
    struct blk_node *host; /* with OFFSET_VALID or PASS */
    uint64_t host_offset;
    unsigned depth; /* 0: the node asked; 1: its backing file; ... */
};

/* What file systems share is a multiple of this, or of what they refuse to share. */
#define BLK_SHARE_BYTES 4096

/* Where blk_copy_range() takes the bytes from. */
struct blk_copy_from {
    struct blk_node *node; /* a protocol node, see blk_extent.host */
    uint64_t offset;
    bool share; /* only by sharing its blocks (reflinks), or not at all */
};

/* How clusters are compressed one by one into pieces. */
enum blk_compression { BLK_NOT_COMPRESSED, BLK_DEFLATE, BLK_ZSTD };

struct blk_piece_kind {
    uint32_t cluster_bytes; /* of the content of a piece */
    enum blk_compression compression;
};

/* Pieces of consecutive clusters, one behind the other. */
struct blk_pieces {
    const uint8_t *data;
    const uint32_t *lengths; /* each at least 1 and below cluster_bytes */
    unsigned count;
};

/* What a buffer for a piece needs beyond the cluster's size: its first and last sectors. */
#define BLK_PIECE_ROOM 1024

/* A cluster that is read: its content, and the piece if it is stored as one. */
struct blk_piece_read {
    struct blk_piece_kind kind; /* the only one that is wanted as a piece */
    uint8_t *cluster;
    uint8_t *piece;  /* with room for a cluster and BLK_PIECE_ROOM */
    uint32_t length; /* result: of the piece; 0: there is only the content */
};

/* What decides where the data that is written comes to lie in the file. */
enum blk_write_order {
    BLK_ORDER_NONE,   /* its offset */
    BLK_ORDER_PLACES, /* the order of blk_place() */
    BLK_ORDER_WRITES, /* the order of the writes */
};

/* Called from one thread at a time, now and then: `done` of `total` bytes or units of work. */
typedef void blk_progress_fn(void *opaque, uint64_t done, uint64_t total);

/* Whom to tell how far the work is. */
struct blk_progress {
    blk_progress_fn *fn;
    void *opaque;
};

/* `progress` may be NULL. */
static inline void blk_progress_tell(const struct blk_progress *progress, uint64_t done,
                                     uint64_t total)
{
    if (progress)
        progress->fn(progress->opaque, done, total);
}

/* What block_status should find out. */
enum blk_want {
    BLK_WANT_ZERO = 1 << 0,  /* precise about zeroes, which may cost a look at the medium */
    BLK_WANT_HOLES = 1 << 1, /* with ZERO: also where that seldom pays; if all else is read */
};

struct blk_measure {
    uint64_t required_bytes; /* with the source's data only */
    uint64_t fully_allocated_bytes;
    bool has_bitmaps;
    uint64_t bitmaps_bytes; /* additionally needed to keep the source's bitmaps */
};

/* LOST gives up guest data that cannot be reached: it then reads as zeroes. */
enum blk_repair {
    BLK_REPAIR_LEAKS = 1 << 0,
    BLK_REPAIR_ERRORS = 1 << 1,
    BLK_REPAIR_LOST = 1 << 2,
};

/* The result of a check. Counts as in qemu-img check's JSON. */
struct blk_check {
    uint64_t corruptions, leaks;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t lost_bytes; /* of the guest's data, snapshots included, that cannot be reached */
    uint64_t image_end_offset;
    bool has_allocation;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    /* Called for each finding, with a line without newline; NULL: none wanted. */
    void (*message)(void *opaque, bool is_error, const char *text);
    void *opaque;
};

struct blk_snapshot {
    char *id;
    char *name;
    uint64_t vm_state_bytes;
    uint64_t date_seconds;
    uint32_t date_nanoseconds;
    uint64_t vm_clock_ns;
    uint64_t icount; /* UINT64_MAX: not known */
    uint64_t disk_bytes;
};

void blk_snapshots_free(struct blk_snapshot *list, size_t count);

#endif
