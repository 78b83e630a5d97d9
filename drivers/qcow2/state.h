/* SPDX-License-Identifier: MIT */
/*
 * The state of an open qcow2 image, and what every part of the driver needs: its lock, the barrier,
 * and the mark that nothing may be written any more (poison).
 *
 * The parts of the driver, each built on those above it:
 *   cache, state, medium   tables in memory, and reading them
 *   header/     cluster 0: reading it, and the switch by one sector (C4)
 *   tables/     refcounts, L1, L2: refcount; frees, l1; cluster_set, inactive, metadata, alloc;
 *               map, epoch; new_l1; shadow: a new refcount structure next to the live one (C8)
 *   data/       the requests of guests
 *   bitmap/     dirty bitmaps
 *   snapshot/   internal snapshots
 *   check/, shape/   checking and repairing; create, resize, amend, measure
 *   qcow2.c     the driver's table, open and close; nothing depends on it
 *
 * Locks, in the order in which they are taken:
 *   1. node->ranges    guest ranges. Read: reads. Shared: writes in place. Update, in whole
 *                      clusters: writes that allocate, which keep out all but reads until they
 *                      change the mapping. Exclusive: all else that changes a mapping. So no
 *                      cluster is freed while a request that looked it up is in flight.
 *   2. commit_mutex    one epoch is committed at a time; held during its I/O.
 *   3. lock            the tables in memory. Lookups hold it for reading, changes for writing. It
 *                      is held while a table missing from the cache is loaded, but never while
 *                      guest data is read or written.
 *   4. header_mutex    sector 0 and `header`, which always equals what the medium has.
 * "[locked]" at a function means that the caller holds `lock` for writing, by qcow2_lock(), and
 * that the function asserts it. Functions without this mark take the locks they need. The
 * operations of snapshot/, check/ and shape/ run alone, but keep to the same rules.
 *
 * Pointers to cached tables are valid until the lock is released: nothing is evicted before that.
 */
#ifndef DRIVERS_QCOW2_STATE_H
#define DRIVERS_QCOW2_STATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/error.h"
#include "blockcore/base/lock.h"
#include "blockcore/graph/node.h"
#include "drivers/qcow2/cache.h"
#include "drivers/qcow2/format.h"

struct blk_identity;

/* ---- cluster 0 ---- */

/* The header's fields. For version 2 those that it lacks have the values that it implies. */
struct qcow2_header {
    uint32_t version; /* 2 or 3 */
    uint64_t backing_offset;
    uint32_t backing_bytes;
    uint32_t cluster_bits;
    uint64_t size; /* guest bytes */
    uint32_t crypt;
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t header_bytes;
    uint8_t compression; /* enum qcow2_compression */
};

struct qcow2_extension {
    uint32_t type;
    uint32_t bytes;
    uint8_t *data;
};

/*
 * What follows the header in cluster 0: the extensions in order (without the end mark) and the
 * backing name.
 */
struct qcow2_tail {
    struct qcow2_extension *extensions;
    size_t count;
    char *backing_name;    /* NULL: none */
    uint32_t layout_bytes; /* as parsed: how much of cluster 0 is in use */
    uint8_t *unknown;      /* header bytes past QCOW2_HEADER_CURRENT_BYTES, kept as they are */
    uint32_t unknown_bytes;
};

/* ---- the state ---- */

/* A host range whose counts go down by one when the change that unpointed it is stable (C3). */
struct qcow2_free {
    uint64_t offset, bytes; /* whole clusters */
    bool discard;           /* discard it in the file */
};

/* Clusters that were taken for writes to come (data/run.c). */
struct qcow2_placed {
    uint64_t guest, host; /* offsets of the first */
    uint64_t clusters;
    bool unwritten; /* what is not written there reads as zeroes */
};

struct qcow2_places {
    struct qcow2_placed *list;
    size_t count, capacity;
};

struct qcow2_frees {
    struct qcow2_free *list;
    size_t count, capacity;
};

/* A set of host clusters, by index (tables/cluster_set.h). */
struct qcow2_cluster_set {
    uint64_t *slots; /* cluster index + 1; 0: empty; UINT64_MAX: deleted */
    size_t capacity, used;
};

/* What must not be written over, in QEMU's groups; its default, and ours, is CACHED. */
enum qcow2_overlap {
    QCOW2_OVERLAP_HEADER = 1 << 0,
    QCOW2_OVERLAP_L1 = 1 << 1,
    QCOW2_OVERLAP_REFTABLE = 1 << 2,
    QCOW2_OVERLAP_SNAPSHOTS = 1 << 3,
    QCOW2_OVERLAP_L2 = 1 << 4,
    QCOW2_OVERLAP_REFBLOCK = 1 << 5,
    QCOW2_OVERLAP_BITMAPS = 1 << 6, /* their directory */
    QCOW2_OVERLAP_INACTIVE_L1 = 1 << 7,
    QCOW2_OVERLAP_INACTIVE_L2 = 1 << 8,
    QCOW2_OVERLAP_CONSTANT = QCOW2_OVERLAP_HEADER | QCOW2_OVERLAP_L1 | QCOW2_OVERLAP_REFTABLE |
                             QCOW2_OVERLAP_SNAPSHOTS | QCOW2_OVERLAP_BITMAPS,
    QCOW2_OVERLAP_CACHED = QCOW2_OVERLAP_CONSTANT | QCOW2_OVERLAP_L2 | QCOW2_OVERLAP_REFBLOCK |
                           QCOW2_OVERLAP_INACTIVE_L1,
    QCOW2_OVERLAP_ALL = QCOW2_OVERLAP_CACHED | QCOW2_OVERLAP_INACTIVE_L2,
};

/* The tables of snapshots (tables/inactive.c). */
struct qcow2_inactive {
    uint64_t (*ranges)[2]; /* start and end of L1 tables, in bytes of the file; sorted, disjoint */
    size_t count;
    struct qcow2_cluster_set l2; /* filled only if asked for */
    bool l1_known, l2_known;
};

/* Which freed clusters are discarded in the file. */
struct qcow2_pass_discard {
    bool request;  /* those that a guest's discard freed */
    bool snapshot; /* a deleted snapshot's */
    bool other;
};

struct qcow2_state {
    /* fixed while open */
    uint32_t cluster_bytes;
    unsigned cluster_bits;
    uint32_t l2_entry_bytes; /* 8, extended 16 */
    uint32_t l2_entries;     /* of a whole table */
    uint32_t slice_entries;  /* of a cached slice */
    bool extended;           /* extended L2 */
    uint32_t subclusters;    /* in a cluster: 32, or 1 */
    uint32_t subcluster_bytes;
    unsigned refcount_order;
    uint64_t refcount_max;
    uint64_t refblock_entries; /* counts in one refcount block */
    bool data_file, data_file_raw;
    struct qcow2_pass_discard pass_discard;
    atomic_uint overlap_checks;                      /* enum qcow2_overlap */
    atomic_uint_fast64_t bitmaps_start, bitmaps_end; /* their directory; changes with the header */
    bool is_l2_cache_given; /* its size, by the user: it stays whatever the image is opened for */
    bool discard_no_unref;  /* discarded clusters stay allocated, as preallocated zeroes */

    struct blk_mutex commit_mutex;
    struct blk_rwlock lock;
    struct blk_mutex header_mutex;

    /* guarded by header_mutex; read freely by operations that run alone */
    struct qcow2_header header;
    struct qcow2_tail tail;
    uint8_t sector0[BLK_SECTOR_BYTES];

    struct blk_identity *next_identity; /* to be stored with the bitmaps, or NULL */

    atomic_int poisoned;       /* errno once the medium's state is unknown: no more writing */
    atomic_bool found_corrupt; /* that is why it is poisoned */
    atomic_bool saw_damage;    /* a table was invalid or cut off; also set in a read-only image */
    atomic_bool saw_cut;       /* the file ends before the end of something that it should hold */
    uint64_t opened_bytes;     /* the file's length at open: tells whether it has grown */

    /* guarded by lock */
    struct qcow2_cache l2_cache, refblock_cache;
    uint64_t *l1; /* NULL until the first lookup */
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint8_t *l1_dirty; /* one byte for each unit of l1_unit bytes */
    uint32_t l1_unit;
    bool l1_any_dirty;

    uint64_t *reftable; /* NULL until the first count is asked for */
    uint64_t reftable_entries;
    uint64_t reftable_offset;                          /* its place now, or after the next epoch */
    uint64_t reftable_dirty_start, reftable_dirty_end; /* entries */
    bool reftable_moved;    /* reftable_offset is not yet in the header */
    bool reftable_unplaced; /* it grew, and has no place yet */

    uint64_t free_hint;         /* no free cluster below this index */
    uint64_t unwritten;         /* host bytes from here on were never written */
    uint64_t compressed_next;   /* host byte for the next compressed piece; 0: a new cluster */
    struct qcow2_frees frees;   /* of the open epoch */
    struct qcow2_places places; /* chosen and not yet written to */
    struct qcow2_cluster_set metadata; /* active L2 tables and refcount blocks (metadata.c) */
    bool metadata_known;               /* the set is filled */
    struct qcow2_inactive inactive;
    /* host clusters for the next store of bitmaps (bitmap/in_use.c) */
    uint64_t bitmap_reserve, bitmap_reserve_bytes;
    atomic_int
        preallocation; /* whether data clusters may be holes in the file; -1: not known yet */
};

static inline struct qcow2_state *qcow2_state(const struct blk_node *node)
{
    return node->state;
}

static inline struct blk_node *qcow2_file(const struct blk_node *node)
{
    return node->children[BLK_ROLE_FILE];
}

/* Where guest data is. */
static inline struct blk_node *qcow2_data(const struct blk_node *node)
{
    struct blk_node *data = node->children[BLK_ROLE_DATA];
    return data ? data : node->children[BLK_ROLE_FILE];
}

/* Takes `lock` for writing; unlocking trims the caches. */
void qcow2_lock(struct qcow2_state *s);
void qcow2_unlock(struct qcow2_state *s);

static inline struct qcow2_state *qcow2_lock_scope(struct qcow2_state *s)
{
    qcow2_lock(s);
    return s;
}

static inline void qcow2_lock_scope_end(struct qcow2_state *const *s)
{
    qcow2_unlock(*s);
}

/* Held from here to the end of the block. */
#define QCOW2_LOCK_SCOPE(s) \
    BLK_SCOPE(struct qcow2_state, qcow2_lock_scope_end, qcow2_lock_scope(s), __COUNTER__)

/* Sets the fields of the state that follow from s->header: sizes, shifts, flags. */
void qcow2_derive(struct qcow2_state *s);

/*
 * Makes what was written to the file and the data file stable. Does nothing for a file that has no
 * name yet.
 */
int qcow2_barrier(struct blk_node *node, struct blk_error *err);

/*
 * Marks the image: nothing may be written any more, because of errno `code`. The first one stays;
 * returns whether this is the first.
 */
bool qcow2_poison(struct qcow2_state *s, int code);

/* 0, or the error for an image that must not be written any more. */
int qcow2_check_poison(struct blk_node *node, struct blk_error *err);

/*
 * After the tables on the medium were replaced (C8): forgets all tables in memory, and takes L1,
 * refcount table and widths from s->header. Nothing may be pending. Runs alone.
 */
void qcow2_forget_tables(struct blk_node *node);

/* Only forgets the tables in memory: for a node that is being closed. */
void qcow2_drop_tables(struct qcow2_state *s);

/* Forgets where the tables of snapshots are (tables/inactive.c). */
void qcow2_drop_inactive(struct qcow2_state *s);

#endif
