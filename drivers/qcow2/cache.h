/* SPDX-License-Identifier: MIT */
/*
 * The cache of L2 slices and refcount blocks: holds them and knows which were changed. Reading and
 * writing the file is for others (medium.h, tables/epoch.h). What "[locked]" means says state.h.
 */
#ifndef DRIVERS_QCOW2_CACHE_H
#define DRIVERS_QCOW2_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/base/lock.h"
#include "blockcore/graph/events.h"

/* A slice of a table in memory, in the format of the medium. */
struct qcow2_table {
    uint64_t offset;                 /* host; the key */
    uint8_t *data;                   /* cache->entry_bytes */
    uint32_t dirty_start, dirty_end; /* bytes to be written, whole units; equal: clean */
    bool fresh;                      /* nothing stable points to it yet */
    bool frozen;                     /* a copy is being written: must not be evicted */
    atomic_bool used;                /* since the clock hand passed last */
    struct qcow2_table *next_in_bucket;
    struct qcow2_table *clock_prev, *clock_next;
    struct qcow2_table *dirty_prev, *dirty_next;
};

struct qcow2_cache {
    const struct blk_rwlock *lock; /* the one that "[locked]" means */
    uint32_t entry_bytes;          /* of one slice; a power of two, at most a cluster */
    uint32_t dirty_unit;           /* writes are multiples of this */
    size_t limit;                  /* slices kept when no lock is held, dirty ones apart */
    size_t count, dirty_count;
    enum blk_event load_event;
    struct qcow2_table **buckets;
    size_t bucket_count;
    struct qcow2_table clock; /* head of the ring */
    struct qcow2_table dirty; /* head of the ring */
};

void qcow2_cache_init(struct qcow2_cache *cache, const struct blk_rwlock *lock,
                      uint32_t entry_bytes, uint32_t dirty_unit, uint64_t limit_bytes,
                      enum blk_event load_event);
/* Bytes that the cache may hold. A lower limit takes effect when it is next trimmed. */
uint64_t qcow2_cache_limit(const struct qcow2_cache *cache);
void qcow2_cache_set_limit(struct qcow2_cache *cache, uint64_t bytes);
/* Frees everything; what is dirty is lost. The cache can be used again. */
void qcow2_cache_clear(struct qcow2_cache *cache);

/*
 * The slice at `offset` if it is in memory. The lock is held, for reading at least: callers assert
 * it, as this runs for every cluster.
 */
struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint64_t offset);
/*
 * [locked] A slice, not in the cache yet, whose bytes the caller reads; NULL: no memory. Dropped
 * again if they cannot be read.
 */
struct qcow2_table *qcow2_cache_insert(struct qcow2_cache *cache, uint64_t offset);
/* [locked] A slice of zeroes for a newly allocated place: dirty as a whole and fresh. */
int qcow2_cache_new(struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **table,
                    struct blk_error *err);
/* [locked] Bytes [from, from + bytes) of the slice were changed. */
void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_table *table, uint32_t from,
                       uint32_t bytes);
/* [locked] The slice's changes have been frozen for writing (tables/epoch.c). */
void qcow2_cache_clean(struct qcow2_cache *cache, struct qcow2_table *table);
/* [locked] Forgets the slices in the host range, changes included. */
void qcow2_cache_drop(struct qcow2_cache *cache, uint64_t offset, uint64_t bytes);
/* [locked] Evicts clean slices until the limit holds. */
void qcow2_cache_trim(struct qcow2_cache *cache);

#endif
