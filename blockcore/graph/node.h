/* SPDX-License-Identifier: MIT */
/*
 * A node of the block graph: one instance of a driver, and the edges to its children.
 *
 * Nodes are reference counted: a parent holds one reference to each child, and the opener of a root
 * holds one. The last reference goes away in blk_close() (close.h), which can fail, or in
 * blk_drop(), which gives up.
 *
 * Who may change what: the fields under "fixed" are set while the node is opened and by a reopen,
 * both of which run while no request is in flight; the atomics may be read and written at any time.
 */
#ifndef BLOCKCORE_GRAPH_NODE_H
#define BLOCKCORE_GRAPH_NODE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/gate.h"
#include "blockcore/graph/range_lock.h"
#include "blockcore/graph/types.h"

struct blk_driver;
struct blk_options;
struct blk_dirty_bitmaps;

/* What a child is to its parent. The values index blk_node.children. */
enum blk_role {
    BLK_ROLE_FILE,    /* where the bytes are */
    BLK_ROLE_BACKING, /* what shows through where this node has nothing */
    BLK_ROLE_DATA,    /* external data file */
    BLK_ROLE_TARGET,  /* where a filter saves old data */
    BLK_ROLE_COUNT,
};

/*
 * How a node is opened. Passed down to `file` and `data` children; a backing child loses
 * BLK_WRITABLE.
 */
enum blk_open_flags {
    BLK_WRITABLE = 1 << 0,
    BLK_NO_BACKING = 1 << 1,  /* leave the backing file unopened */
    BLK_FORCE_SHARE = 1 << 2, /* take no lock that conflicts with another user (-U); reading only */
    BLK_UNMAP = 1 << 3,       /* discard=unmap: discards reach the medium */
    BLK_NO_IO = 1 << 4,       /* only headers are wanted: load no mapping tables */
    BLK_IN_CHECK = 1 << 5,    /* for check: open a corrupt or dirty image as it is */
    BLK_TRUST = 1 << 6,       /* read a chain of backups whose ids do not fit (identity.h) */
};

/* detect-zeroes: what becomes of a write that is all zeroes. */
enum blk_detect_zeroes {
    BLK_DETECT_OFF,   /* it is data */
    BLK_DETECT_ON,    /* it is written as zeroes, where the driver has a way */
    BLK_DETECT_UNMAP, /* the same, and its space may be given back */
};

/*
 * QEMU's cache modes, taken apart: none = direct; unsafe = no_flush; directsync = direct +
 * writethrough.
 */
struct blk_cache_mode {
    bool direct;       /* bypass the page cache (O_DIRECT) */
    bool no_flush;     /* flush_to_disk does nothing */
    bool writethrough; /* every write is followed by a flush */
};

/* What requests to a node's driver must keep to; blk_child_*() takes care of it. All in bytes. */
struct blk_limits {
    uint32_t request_alignment; /* of offsets and lengths; a power of two, at least 1 */
    uint32_t memory_alignment;  /* address of buffers; a power of two, at least 1 */
    uint32_t zero_alignment;    /* preferred for write_zeroes; 0: none */
    uint64_t max_transfer;      /* longest read or write; 0: no limit */
};

struct blk_node {
    /* fixed */
    const struct blk_driver *driver;
    void *state;    /* driver's own, driver->state_bytes of zeroes at open */
    char *name;     /* the file name as the user would write it; for messages and output */
    unsigned flags; /* enum blk_open_flags */
    struct blk_cache_mode cache;
    struct blk_limits limits;
    enum blk_detect_zeroes detect_zeroes;
    struct blk_piece_kind pieces; /* how it compresses; no cluster_bytes: not at all */
    struct blk_node *children[BLK_ROLE_COUNT];
    bool probed;        /* the format was guessed, not given */
    bool unnamed;       /* no name until close publishes it, so it needs no barriers */
    bool reads_zero;    /* just created: everything not yet written reads as zeroes */
    char *backing_name; /* backing file as the image's header names it, or NULL */
    char *backing_format;
    struct blk_options *options;  /* what it was opened with, its children's left out */
    struct blk_options *defaults; /* of struct blk_open, for children opened later; or NULL */

    /* any time */
    atomic_uint_fast64_t size; /* bytes */
    atomic_bool is_backup;     /* it says which backup it is, until the first change (identity.h) */
    atomic_int flush_error;    /* errno of the first failed flush: it stays failed (flush.c) */

    /* own locking */
    struct blk_gate gate;         /* requests in flight; drained by structural changes */
    struct blk_range_lock ranges; /* what must not overlap: read-modify-write, copy-on-write */
    struct blk_mutex to_disk;     /* held over flush_to_disk until its result is in flush_error */
    struct blk_dirty_bitmaps *bitmaps; /* NULL until the first one is added */

    unsigned refs;  /* changed only by the thread that opens and closes graphs */
    bool abandoned; /* the run failed: publish nothing */
};

static inline struct blk_node *blk_child(const struct blk_node *node, enum blk_role role)
{
    return node->children[role];
}

/* The child that a format interprets and a filter passes through; a protocol has none. */
static inline struct blk_node *blk_file(const struct blk_node *node)
{
    return blk_child(node, BLK_ROLE_FILE);
}

static inline bool blk_is_writable(const struct blk_node *node)
{
    return node->flags & BLK_WRITABLE;
}

static inline uint64_t blk_size(const struct blk_node *node)
{
    return atomic_load_explicit(&node->size, memory_order_acquire);
}

/* Sets the size as reported by the driver. */
void blk_node_set_size(struct blk_node *node, uint64_t bytes);

/* Raises the size to at least `bytes` (a write past the end of a growable node). */
void blk_node_grow_size(struct blk_node *node, uint64_t bytes);

/*
 * Allocates a node of `driver` with one reference and zeroed state; it owns copies of `name`.
 * For open.c and for drivers whose make_node() returns one.
 */
struct blk_node *blk_node_new(const struct blk_driver *driver, const char *name, unsigned flags,
                              struct blk_cache_mode cache);

/* Frees a node whose state is released, whose children are detached and whose bitmaps are freed. */
void blk_node_free(struct blk_node *node);

void blk_node_ref(struct blk_node *node);

/* Attaches `child` (taking over the caller's reference) as the child in an empty role. */
void blk_node_attach(struct blk_node *parent, enum blk_role role, struct blk_node *child);

/* Replaces the node's display name by a copy of `name`. */
void blk_node_rename(struct blk_node *node, const char *name);

/* The node that holds the bytes: follows the file role down to a protocol. Never NULL. */
struct blk_node *blk_bottom(struct blk_node *node);

/* Skips filters: the first node below (or this one) that is a format or protocol. */
struct blk_node *blk_skip_filters(struct blk_node *node);

#endif
