/*
 * The inside of the qcow2 driver: what its files share.
 *
 *   header.c       parse and validate cluster 0
 *   switch.c       lay out cluster 0; the switch by one sector (C4)
 *   table_cache.c  L2 slices and refcount blocks in memory
 *   refcount.c     counts of host clusters, the refcount table
 *   alloc.c        finding and giving clusters, pending frees
 *   epoch.c        bringing changes to the medium in an order that keeps C1 to C3
 *   metadata.c     what must never be written over; marking the image corrupt
 *   map.c          guest offset -> where its data is; L1 and L2
 *   status.c       block_status
 *   read.c, write.c, zero.c, compressed.c   the data operations
 *   bitmap*.c      dirty bitmaps (bitmap.h)
 *   resize.c       truncate, make_empty
 *   preallocate.c  places for clusters that nobody has written yet
 *   shadow.c       a whole new refcount structure next to the live one (shadow.h, C8)
 *   qcow2.c        the driver table, open, close, info
 * on top of these: check.c repair.c snapshot.c create.c amend.c measure.c compress.c
 * vm_state.c
 *
 * Locks, in the order in which they are taken:
 *   1. node->ranges    guest ranges. Read: reads. Shared: writes in place. Update, in whole
 *                      clusters: writes that allocate, which keep out all but reads until they
 *                      change the mapping. Exclusive: all else that changes one. So no cluster is
 *                      freed under a request that looked it up.
 *   2. commit_mutex    one epoch is committed at a time; held during its I/O.
 *   3. lock            the tables in memory. Lookups hold it for reading, changes for writing;
 *                      guest data is never moved under it. Tables missing from the cache are
 *                      loaded under it.
 *   4. header_mutex    sector 0 and `header`, which is always what the medium has.
 * "[locked]" below means: the caller holds `lock` for writing, by qcow2_lock(). Functions without
 * it take what they need. The operations of the shape and extras groups run alone, but keep to
 * the same rules.
 *
 * Pointers to cached tables are valid until the lock is released: nothing is evicted earlier.
 */
#ifndef DRIVERS_QCOW2_QCOW2_H
#define DRIVERS_QCOW2_QCOW2_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/error.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/status.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"
#include "drivers/qcow2/format.h"

struct blk_create;
struct blk_id;
struct blk_identity;
struct blk_options;

/* ---- header.c ---- */

/* The header's fields. Version 2 is filled up with what it implies. */
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
 * What follows the header in cluster 0: extensions in their order (without the end mark), backing
 * name.
 */
struct qcow2_tail {
    struct qcow2_extension *extensions;
    size_t count;
    char *backing_name;    /* NULL: none */
    uint32_t layout_bytes; /* as parsed: how much of cluster 0 is in use */
    uint8_t *unknown;      /* header bytes behind QCOW2_HEADER_CURRENT_BYTES, kept as they are */
    uint32_t unknown_bytes;
};

/*
 * Reads and validates the header and all that follows it in cluster 0. Refuses unknown
 * incompatible features by their names, and every size or offset beyond the limits of format.h.
 * The caller frees *tail, also after a failure (it is set to empty first).
 */
int qcow2_header_read(struct blk_node *node, struct qcow2_header *header, struct qcow2_tail *tail,
                      struct blk_error *err);

void qcow2_tail_free(struct qcow2_tail *tail);
void qcow2_tail_copy(struct qcow2_tail *to, const struct qcow2_tail *from);
/* The extension of that type, or NULL. */
const struct qcow2_extension *qcow2_tail_find(const struct qcow2_tail *tail, uint32_t type);
/* Sets (replacing in place, or adding) an extension to a copy of `data`. */
void qcow2_tail_set(struct qcow2_tail *tail, uint32_t type, const void *data, uint32_t bytes);
void qcow2_tail_remove(struct qcow2_tail *tail, uint32_t type);
/* Sets the backing name to a copy; NULL: none. */
void qcow2_tail_set_backing(struct qcow2_tail *tail, const char *name);
/* Adds the table of feature names that a new image of version 3 gets. */
void qcow2_tail_add_feature_names(struct qcow2_tail *tail);

/*
 * Lays cluster 0 out: header, extensions within the first sector but for the feature names, which
 * come last, end mark, backing name. Fills buf[0..cluster size) and header's backing_offset,
 * backing_bytes and header_bytes. For new images; an existing one goes through
 * qcow2_header_relayout(). Errors: -EFBIG when it does not fit into the cluster or the first
 * sector.
 */
int qcow2_header_encode(struct qcow2_header *header, const struct qcow2_tail *tail, uint8_t *buf,
                        struct blk_error *err);

/*
 * The switch of C4: replaces the header's fields by those of *next in one write of sector 0, and
 * flushes. cluster_bits, header_bytes, backing name and extensions stay. All that *next points to
 * must be stable before (qcow2_settle()). On success the state's header is *next. After a failure
 * nobody knows what the medium has: the image is poisoned and nothing is written to it any more.
 */
int qcow2_header_switch(struct blk_node *node, const struct qcow2_header *next,
                        struct blk_error *err);

/*
 * Writes these bytes of cluster 0, which may tear, and flushes. Requests may be in flight. A
 * failure poisons the image.
 */
int qcow2_header_patch(struct blk_node *node, uint64_t offset, const void *data, size_t bytes,
                       struct blk_error *err);

/* The same for the refcount table alone, while requests are in flight (epoch.c). */
int qcow2_header_switch_reftable(struct blk_node *node, uint64_t offset, uint32_t clusters,
                                 struct blk_error *err);

/*
 * The same with other extensions or another backing name: what lies behind sector 0 goes to bytes
 * that the old layout does not use and is flushed first. Feature names that are in the way are
 * dropped. Errors that leave everything as it was: -ENOSPC when no such layout exists. On success
 * the state's header and tail are replaced by copies of the new.
 */
int qcow2_header_relayout(struct blk_node *node, const struct qcow2_header *next,
                          const struct qcow2_tail *tail, struct blk_error *err);

/* 0 if qcow2_header_relayout() would find a layout for `tail`, else its error. Changes nothing. */
int qcow2_header_can_relayout(struct blk_node *node, const struct qcow2_tail *tail,
                              struct blk_error *err);

/* ---- table_cache.c ---- */

/* A slice of a table in memory, in the format of the medium. */
struct qcow2_table {
    uint64_t offset; /* host; the key */
    uint8_t *data;   /* cache->entry_bytes */
    uint32_t dirty_start, dirty_end; /* bytes to be written, whole units; equal: clean */
    bool fresh;             /* nothing stable points to it yet */
    bool frozen;            /* a copy is being written: must not be evicted */
    atomic_bool used;       /* since the clock hand passed last */
    struct qcow2_table *next_in_bucket;
    struct qcow2_table *clock_prev, *clock_next;
    struct qcow2_table *dirty_prev, *dirty_next;
};

struct qcow2_cache {
    uint32_t entry_bytes;   /* of one slice; a power of two, at most a cluster */
    uint32_t dirty_unit;    /* writes are multiples of this */
    size_t limit;           /* slices kept when no lock is held, dirty ones apart */
    size_t count, dirty_count;
    enum blk_event load_event;
    struct qcow2_table **buckets;
    size_t bucket_count;
    struct qcow2_table clock; /* head of the ring */
    struct qcow2_table dirty; /* head of the ring */
};

void qcow2_cache_init(struct qcow2_cache *cache, uint32_t entry_bytes, uint32_t dirty_unit,
                      uint64_t limit_bytes, enum blk_event load_event);
/* Bytes that the cache may hold. A lower limit takes effect when it is next trimmed. */
uint64_t qcow2_cache_limit(const struct qcow2_cache *cache);
void qcow2_cache_set_limit(struct qcow2_cache *cache, uint64_t bytes);
/* Frees everything; what is dirty is lost. The cache can be used again. */
void qcow2_cache_clear(struct qcow2_cache *cache);

/* The slice at `offset` if it is in memory. The lock is held, for reading at least. */
struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint64_t offset);
/* [locked] The slice at `offset`, read from the file if need be. */
int qcow2_cache_get(struct blk_node *node, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_table **table, struct blk_error *err);
/* [locked] A slice of zeroes for a newly allocated place: dirty as a whole and fresh. */
int qcow2_cache_new(struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **table,
                    struct blk_error *err);
/* [locked] Bytes [from, from + bytes) of the slice were changed. */
void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_table *table, uint32_t from,
                       uint32_t bytes);
/* [locked] The slice's changes have been frozen for writing (epoch.c). */
void qcow2_cache_clean(struct qcow2_cache *cache, struct qcow2_table *table);
/* [locked] Forgets the slices in the host range, changes included. */
void qcow2_cache_drop(struct qcow2_cache *cache, uint64_t offset, uint64_t bytes);
/* [locked] Evicts clean slices until the limit holds. */
void qcow2_cache_trim(struct qcow2_cache *cache);

/* ---- the state ---- */

/* A host range whose counts go down by one when the change that unpointed it is stable (C3). */
struct qcow2_free {
    uint64_t offset, bytes; /* whole clusters */
    bool discard;           /* tell the medium that it is not needed */
};

struct qcow2_frees {
    struct qcow2_free *list;
    size_t count, capacity;
};

/* The set of clusters that hold active L2 tables and refcount blocks (metadata.c). */
struct qcow2_cluster_set {
    uint64_t *slots; /* cluster index + 1; 0: empty; UINT64_MAX: deleted */
    size_t capacity, used;
};

/* Which freed clusters are discarded in the file. */
/* What writes are kept away from. Others that QEMU knows are not looked for. */
enum qcow2_overlap {
    QCOW2_OVERLAP_HEADER = 1 << 0,
    QCOW2_OVERLAP_L1 = 1 << 1,
    QCOW2_OVERLAP_REFTABLE = 1 << 2,
    QCOW2_OVERLAP_SNAPSHOTS = 1 << 3,
    QCOW2_OVERLAP_L2 = 1 << 4,
    QCOW2_OVERLAP_REFBLOCK = 1 << 5,
    QCOW2_OVERLAP_CONSTANT = (1 << 4) - 1, /* the first four */
    QCOW2_OVERLAP_ALL = (1 << 6) - 1,
};

struct qcow2_pass_discard {
    bool request;  /* those that a guest's discard freed */
    bool snapshot; /* a deleted snapshot's */
    bool other;
};

struct qcow2_state {
    /* fixed while open */
    uint32_t cluster_bytes;
    unsigned cluster_bits;
    uint32_t l2_entry_bytes;   /* 8, extended 16 */
    uint32_t l2_entries;       /* of a whole table */
    uint32_t slice_entries;    /* of a cached slice */
    bool extended;             /* extended L2 */
    uint32_t subclusters;      /* in a cluster: 32, or 1 */
    uint32_t subcluster_bytes;
    unsigned refcount_order;
    uint64_t refcount_max;
    uint64_t refblock_entries; /* counts in one refcount block */
    bool data_file, data_file_raw;
    struct qcow2_pass_discard pass_discard;
    atomic_uint overlap_checks; /* enum qcow2_overlap */
    bool discard_no_unref; /* what a guest discards keeps its clusters, as preallocated zeroes */

    pthread_mutex_t commit_mutex;
    pthread_rwlock_t lock;
    pthread_mutex_t header_mutex;

    /* guarded by header_mutex; read freely by operations that run alone */
    struct qcow2_header header;
    struct qcow2_tail tail;
    uint8_t sector0[BLK_SECTOR_BYTES];

    struct blk_identity *next_identity; /* to be stored with the bitmaps, or NULL */

    atomic_int poisoned;      /* errno once the medium's state is unknown: no more writing */
    atomic_bool found_corrupt; /* that is why it is poisoned */
    atomic_bool saw_damage;    /* a table was impossible or cut off, also in an image only read */
    atomic_bool saw_cut;       /* the file ends before something that lies in it */
    uint64_t opened_bytes;     /* the file's length then: whether it has grown */

    /* guarded by lock */
    struct qcow2_cache l2_cache, refblock_cache;
    uint64_t *l1;             /* NULL until the first lookup */
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint8_t *l1_dirty;        /* a byte a unit of l1_unit bytes */
    uint32_t l1_unit;
    bool l1_any_dirty;

    uint64_t *reftable;       /* NULL until the first count is asked for */
    uint64_t reftable_entries;
    uint64_t reftable_offset; /* where it is, or will be after the next epoch */
    uint64_t reftable_dirty_start, reftable_dirty_end; /* entries */
    bool reftable_moved;      /* reftable_offset is not yet in the header */
    bool reftable_homeless;   /* it grew, and has no place yet */

    uint64_t free_hint;       /* no free cluster below this index */
    uint64_t virgin;          /* host bytes from here on were never written */
    uint64_t compressed_next; /* host byte for the next compressed piece; 0: a new cluster */
    struct qcow2_frees frees; /* of the open epoch */
    struct qcow2_cluster_set metadata;
    bool metadata_known;      /* the set is filled */
    /* host clusters for the next store of bitmaps (bitmap_in_use.c) */
    uint64_t bitmap_reserve, bitmap_reserve_bytes;
    atomic_int preallocation; /* whether data may be holes in the file; -1: not looked yet */
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

/* Fills what the header decides of the state (sizes, shifts, flags) from s->header. */
void qcow2_derive(struct qcow2_state *s);

/* Entries an L1 needs for that guest size. */
uint64_t qcow2_l1_entries_for(uint64_t size, unsigned cluster_bits, bool extended);

/* ---- metadata.c ---- */

/*
 * Records that the image is damaged: sets the corrupt bit when it is writable, poisons it, and
 * fails with EIO and the text as the cause. May be called with the lock held.
 */
int qcow2_corrupt(struct blk_node *node, struct blk_error *err, const char *why, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * [locked] 0 if the host range touches no header, active L1 or L2, refcount table or block, or the
 * first cluster of the snapshot table (only reading it tells how long it is); otherwise the image
 * is corrupt (see there).
 */
int qcow2_check_overlap(struct blk_node *node, uint64_t offset, uint64_t bytes,
                        struct blk_error *err);

/* [locked] Finds out where active L2 tables and refcount blocks are, before the first change. */
int qcow2_metadata_load(struct blk_node *node, struct blk_error *err);

/* [locked] Keeps the set in step: a table or block now is, or no longer is, at that cluster. */
int qcow2_metadata_add(struct qcow2_state *s, uint64_t offset, struct blk_error *err);
void qcow2_metadata_remove(struct qcow2_state *s, uint64_t offset);

/* ---- refcount.c ---- */

/*
 * [locked] Reads the refcount table unless it is in memory. All of refcount.c and alloc.c does it
 * by itself.
 */
int qcow2_reftable_load(struct blk_node *node, struct blk_error *err);

/* [locked] The count of the cluster with that index; 0 beyond the table. */
int qcow2_refcount(struct blk_node *node, uint64_t cluster, uint64_t *count,
                   struct blk_error *err);

/*
 * [locked] Adds one to the counts of all clusters that [offset, offset + bytes) touches. Takes
 * effect on the medium before any L2 or L1 change of the same epoch. -ERANGE (nothing changed)
 * when a count is at its maximum.
 */
int qcow2_refcount_increase(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err);

/*
 * [locked] Takes one from the counts of the clusters that the range touches, at once: only for
 * what nothing on the medium points to. Otherwise qcow2_free_later(). A count of 0 is corruption.
 */
int qcow2_refcount_decrease(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            struct blk_error *err);

/* ---- alloc.c ---- */

/*
 * [locked] Finds free clusters, contiguous, and sets their counts to 1. _alloc gives exactly
 * `bytes`, rounded up to clusters; _alloc_run gives at least one cluster and at most `max_bytes`,
 * whatever comes first; *virgin says that the place reads as zeroes. _alloc_end takes exactly
 * `bytes` where nothing was ever written.
 */
int qcow2_alloc(struct blk_node *node, uint64_t bytes, uint64_t *offset, struct blk_error *err);
int qcow2_alloc_run(struct blk_node *node, uint64_t max_bytes, uint64_t *offset, uint64_t *bytes,
                    bool *virgin, struct blk_error *err);
int qcow2_alloc_end(struct blk_node *node, uint64_t bytes, uint64_t *offset, struct blk_error *err);
/* qcow2_refcount_decrease() for a caller that does not hold the lock. */
int qcow2_unalloc(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

/*
 * Makes the file have newly allocated clusters that a later epoch writes: a full disk then fails
 * the request that needs them, and not the epoch, which would poison the image. Nothing on a file
 * without a name yet.
 */
int qcow2_take_room(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

/*
 * [locked] Room for a compressed piece, which may share clusters with others: their counts go up
 * by one.
 */
int qcow2_alloc_compressed(struct blk_node *node, uint32_t bytes, uint64_t *offset,
                           struct blk_error *err);

/*
 * Why something is freed; decides with the pass-discard options whether the file is told to discard
 * it. It is always told of what a smaller disk frees: giving back space is what that is for.
 */
enum qcow2_free_why {
    QCOW2_FREE_REQUEST,
    QCOW2_FREE_SNAPSHOT,
    QCOW2_FREE_OTHER,
    QCOW2_FREE_SHRINK,
};

/*
 * [locked] Takes one from the counts of the clusters that the range touches once what unpoints
 * them (done under the same lock) is stable.
 */
void qcow2_free_later(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      enum qcow2_free_why why);

/* ---- epoch.c ---- */

/*
 * Commits until nothing is pending, and flushes: all tables in the file are as in memory, all
 * of it stable, no free is outstanding. What C8 operations begin with. Returns poison as an error.
 */
int qcow2_settle(struct blk_node *node, struct blk_error *err);

/*
 * The driver's operation: everything is handed to the file, frees and their counts included; not
 * flushed.
 */
int qcow2_flush_to_os(struct blk_node *node, struct blk_error *err);

/* Commits if the caches are full of changes or many frees wait. Called without locks, often. */
int qcow2_relieve(struct blk_node *node, struct blk_error *err);

/*
 * Makes what was written to the file and the data file stable; nothing on a file without a name
 * yet.
 */
int qcow2_barrier(struct blk_node *node, struct blk_error *err);

/*
 * Nothing is to be written any more, because of that errno; the first one stays. Whether this is
 * the first.
 */
bool qcow2_poison(struct qcow2_state *s, int code);

/* 0, or the error for an image that must not be written any more. */
int qcow2_check_poison(struct blk_node *node, struct blk_error *err);

/*
 * After the tables on the medium were replaced (C8): forgets all that is in memory of them and
 * takes L1, refcount table and widths from s->header. Nothing may be pending. Runs alone.
 */
void qcow2_forget_tables(struct blk_node *node);

/* The first half of it, which is all that a node that ends needs. */
void qcow2_drop_tables(struct qcow2_state *s);

/* ---- map.c ---- */

enum qcow2_kind {
    QCOW2_UNALLOCATED,        /* the backing file shows; no host cluster */
    QCOW2_UNALLOCATED_HOST,   /* the same, in a cluster that has a host cluster (extended L2) */
    QCOW2_ZERO,               /* reads as zeroes; no host cluster */
    QCOW2_ZERO_HOST,          /* the same, host cluster kept */
    QCOW2_DATA,
    QCOW2_COMPRESSED,
};

/* State of a guest range. */
struct qcow2_mapping {
    enum qcow2_kind kind;
    bool copied;          /* the host cluster belongs to this one alone */
    uint64_t bytes;       /* the range; host offsets run on in it */
    uint64_t host_offset; /* of the first byte asked for; of the piece when compressed */
    uint32_t compressed_bytes;
};

/*
 * Looks [offset, offset + bytes) up: the longest uniform range at its beginning, within one L2
 * slice. On failure mapping->bytes is how far it reaches; 0: not known.
 */
int qcow2_map(struct blk_node *node, uint64_t offset, uint64_t bytes,
              struct qcow2_mapping *mapping, struct blk_error *err);

/* One L2 entry, decoded. */
struct qcow2_entry {
    uint64_t entry;  /* first word */
    uint64_t bitmap; /* second word of extended L2; 0 otherwise */
};

/*
 * Kind of the subcluster (0 without extended L2) of an entry; -EIO for an impossible one, *why
 * says what.
 */
int qcow2_entry_kind(const struct qcow2_state *s, struct qcow2_entry entry, unsigned subcluster,
                     enum qcow2_kind *kind, const char **why);

struct qcow2_entry qcow2_entry_get(const struct qcow2_state *s, const uint8_t *slice,
                                   uint32_t index);
/* Whether the entry, which is not a compressed cluster's, has a host cluster. */
bool qcow2_entry_has_host(const struct qcow2_state *s, struct qcow2_entry entry);

/* [locked] Reads the L1 table unless it is in memory. */
int qcow2_l1_load(struct blk_node *node, struct blk_error *err);

/* [locked] Sets an L1 entry. */
void qcow2_l1_set(struct blk_node *node, uint32_t index, uint64_t entry);

/*
 * [locked] The slice that maps the guest offset, to change it, and the index of the entry in it. A
 * missing table is made, a shared one copied.
 */
int qcow2_slice_write(struct blk_node *node, uint64_t offset, struct qcow2_table **slice,
                      uint32_t *index, struct blk_error *err);

/*
 * [locked] Stores an entry and frees (later) what the old one pointed to and the new one does
 * not.
 */
int qcow2_slice_set(struct blk_node *node, struct qcow2_table *slice, uint32_t index,
                    struct qcow2_entry entry, enum qcow2_free_why why, struct blk_error *err);

/* [locked] Frees (later) what an entry points to. */
void qcow2_entry_free(struct blk_node *node, struct qcow2_entry entry, enum qcow2_free_why why);

/* Makes reads use another L1 table (a snapshot's). For a node opened read-only; runs alone. */
int qcow2_use_l1(struct blk_node *node, uint64_t offset, uint32_t entries, uint64_t size,
                 struct blk_error *err);

/*
 * Whether the host range goes on behind the end of the file (or data file), whose last cluster need
 * not be whole. Such a file has lost something, and what was there must not be taken for zeroes.
 */
bool qcow2_is_cut_off(const struct blk_node *node, const struct blk_node *file, uint64_t offset,
                      uint64_t bytes);
/* -EIO; `what` is at the offset. _check_ only if the range does go on behind the end. */
int qcow2_fail_cut_short(const struct blk_node *file, uint64_t offset, const char *what,
                         struct blk_error *err);
int qcow2_check_cut_off(const struct blk_node *node, const struct blk_node *file, uint64_t offset,
                        uint64_t bytes, const char *what, struct blk_error *err);

/*
 * How many of the range's bytes the file has, to the byte. All of them for a file that others may
 * be writing: it may be longer than it was.
 */
uint64_t qcow2_bytes_there(const struct blk_node *node, const struct blk_node *file,
                           uint64_t offset, uint64_t bytes);

/*
 * Reads a table of `entries` big-endian u64 at `offset` into host order; malloc()ed. Fails beyond
 * `max_bytes`, when unaligned, or outside the file. For L1 tables of snapshots, bitmap tables and
 * the like.
 */
int qcow2_read_table(struct blk_node *node, uint64_t offset, uint64_t entries, uint64_t max_bytes,
                     uint64_t **table, const char *what, struct blk_error *err);

/* ---- data operations ---- */

int qcow2_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                       struct blk_extent *extent, struct blk_error *err);

int qcow2_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                struct blk_error *err);
/*
 * Reads without taking the range; bytes between the virtual size and the machine's state are
 * zeroes. For whoever holds the range.
 */
int qcow2_read_held(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                    struct blk_error *err);
/*
 * Reads the compressed piece at the host offset and unpacks it. `piece` has room for its `bytes`,
 * `cluster` for a cluster. A piece that ends past the end of the file is good if it can be unpacked
 * from the bytes that are there: its length is in sectors. -EIO if it cannot.
 */
int qcow2_read_piece(struct blk_node *node, uint64_t offset, uint32_t bytes, uint8_t *piece,
                     void *cluster, struct blk_error *err);
/*
 * Fails if the host range, where a mapping says that guest data is, holds tables. The lock is not
 * held.
 */
int qcow2_check_target(struct blk_node *node, uint64_t host, uint64_t bytes,
                       struct blk_error *err);
int qcow2_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                 unsigned flags, struct blk_error *err);
/* Writes zeroes as data: for what cannot be marked as zero. */
int qcow2_write_zero_data(struct blk_node *node, uint64_t offset, uint64_t bytes,
                          struct blk_error *err);
/*
 * Whether the guest range is known to read as zeroes without a look at any data. For whoever
 * holds the range.
 */
int qcow2_is_known_zero(struct blk_node *node, uint64_t offset, uint64_t bytes, bool *zero,
                        struct blk_error *err);
int qcow2_copy_range(struct blk_node *node, uint64_t offset, struct blk_node *source,
                     uint64_t source_offset, uint64_t bytes, struct blk_error *err);
int qcow2_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                       struct blk_error *err);
int qcow2_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);
/*
 * Takes the mapping of whole clusters away, so that the backing file shows or zeroes do. May
 * reach past the virtual size, as far as L1 does.
 */
int qcow2_unmap(struct blk_node *node, uint64_t offset, uint64_t bytes, enum qcow2_free_why why,
                struct blk_error *err);
/*
 * Marks whole (sub)clusters as zeroes, as write_zeroes does; may reach past the virtual size.
 * Version 3.
 */
int qcow2_zero_behind(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      struct blk_error *err);
int qcow2_write_compressed(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                           struct blk_error *err);

/* ---- vm_state.c ---- */

/* Where the machine's state begins: a guest offset behind the disk. */
uint64_t qcow2_vm_state_offset(const struct blk_node *node);
/* Run alone: writing may move the L1 table. */
int qcow2_vm_state_read(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                        struct blk_error *err);
int qcow2_vm_state_write(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                         struct blk_error *err);

/* ---- resize.c ---- */

/* Gives the active L1 table at least so many entries. Runs alone. */
int qcow2_grow_l1(struct blk_node *node, uint64_t entries, struct blk_error *err);

int qcow2_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                   struct blk_error *err);
int qcow2_make_empty(struct blk_node *node, struct blk_error *err);

/* ---- preallocate.c ---- */

/*
 * Maps the unmapped clusters of the guest range to newly allocated ones that read as zeroes;
 * FALLOC and FULL reserve or write their space too. For create and truncate. OFF does nothing.
 */
int qcow2_preallocate(struct blk_node *node, uint64_t offset, uint64_t bytes,
                      enum blk_prealloc prealloc, struct blk_error *err);

/* ---- written on top of the above ---- */

/*
 * compress.c: one cluster. *out_bytes is the length of the piece; -ENOSPC when it does not fit
 * into `room`.
 */
int qcow2_compress_cluster(const struct qcow2_state *s, const void *cluster, void *out, size_t room,
                           size_t *out_bytes, struct blk_error *err);
/*
 * Unpacks a piece (`in_bytes` may include what follows it in its last sector) into exactly one
 * cluster.
 */
int qcow2_decompress_cluster(const struct qcow2_state *s, const void *in, size_t in_bytes,
                             void *out, struct blk_error *err);

/* check.c, repair.c */
int qcow2_check(struct blk_node *node, unsigned repair, struct blk_check *check,
                struct blk_error *err);
/*
 * For an image opened for writing with the dirty bit: makes the counts right and clears the bit.
 * Called by open.
 */
int qcow2_repair_dirty(struct blk_node *node, struct blk_error *err);

/* snapshot.c */
int qcow2_snapshot_list(struct blk_node *node, struct blk_snapshot **list, size_t *count,
                        struct blk_error *err);
int qcow2_snapshot_create(struct blk_node *node, const char *name, struct blk_error *err);
int qcow2_snapshot_apply(struct blk_node *node, const char *id_or_name, struct blk_error *err);
int qcow2_snapshot_delete(struct blk_node *node, const char *name, struct blk_error *err);
int qcow2_snapshot_load(struct blk_node *node, const char *id_or_name, struct blk_error *err);

/*
 * identity.c: the driver's identity_get and identity_set; and the new one put into a header's
 * tail, for bitmap_store.c.
 */
int qcow2_identity_get(struct blk_node *node, struct blk_identity *identity, struct blk_error *err);
void qcow2_identity_set(struct blk_node *node, const struct blk_identity *identity);
int qcow2_identity_put(struct blk_node *node, const struct blk_id *backup,
                       const struct blk_id *parent, struct blk_error *err);
void qcow2_identity_apply(struct blk_node *node, struct qcow2_tail *tail);
/* After opening or a store: does the image say that it is a backup? */
void qcow2_identity_note(struct blk_node *node);
/* blk_identity_lose() of the whole image, durably with the next flush; for a check. */
int qcow2_identity_give_up(struct blk_node *node, struct blk_error *err);

/* create.c, amend.c, measure.c */
extern const struct blk_option_desc qcow2_create_options[];
extern const struct blk_option_desc qcow2_amend_options[];
int qcow2_create(struct blk_create *create, struct blk_node **node, struct blk_error *err);
int qcow2_bitmaps_can_create(const struct blk_options *creation, struct blk_error *err);
int qcow2_amend(struct blk_node *node, struct blk_options *options, bool force,
                const struct blk_progress *progress, struct blk_error *err);
int qcow2_measure(struct blk_options *options, struct blk_node *source,
                  struct blk_measure *measure, struct blk_error *err);

#endif
