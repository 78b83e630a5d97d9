/* SPDX-License-Identifier: MIT */
/*
 * L2 slices and refcount blocks in memory, in the format of the medium, keyed by host offset.
 *
 * Lookups run under the lock held for reading and change nothing but a slice's `used` mark;
 * loading, changing and evicting run under it held for writing. A slice is evicted only by
 * qcow2_cache_trim(), which runs when the lock is given back: so a pointer to a slice is good for
 * as long as the lock is held, and no operation can fail for lack of a place. A changed slice
 * stays until an epoch has written it; epochs are committed before changed slices fill more than
 * the limit (qcow2_commit_if_full()).
 *
 * Eviction is by a clock: the ring is walked, a slice used since the last visit is spared once.
 */
#include "drivers/qcow2/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"

#define FIRST_BUCKETS 64
#define MIN_SLICES 8

static void ring_init(struct qcow2_cache *cache)
{
    cache->clock.clock_prev = cache->clock.clock_next = &cache->clock;
    cache->dirty.dirty_prev = cache->dirty.dirty_next = &cache->dirty;
}

void qcow2_cache_init(struct qcow2_cache *cache, const struct blk_rwlock *lock,
                      uint32_t entry_bytes, uint32_t dirty_unit, uint64_t limit_bytes,
                      enum blk_event load_event)
{
    *cache = (struct qcow2_cache){
        .lock = lock,
        .entry_bytes = entry_bytes,
        .dirty_unit = dirty_unit < entry_bytes ? dirty_unit : entry_bytes,
        .load_event = load_event,
    };
    qcow2_cache_set_limit(cache, limit_bytes);
    ring_init(cache);
}

uint64_t qcow2_cache_limit(const struct qcow2_cache *cache)
{
    return (uint64_t)cache->limit * cache->entry_bytes;
}

void qcow2_cache_set_limit(struct qcow2_cache *cache, uint64_t bytes)
{
    cache->limit = u64_max(bytes / cache->entry_bytes, MIN_SLICES);
}

static void clock_insert(struct qcow2_cache *cache, struct qcow2_table *table)
{
    table->clock_prev = cache->clock.clock_prev;
    table->clock_next = &cache->clock;
    table->clock_prev->clock_next = table->clock_next->clock_prev = table;
}

static void clock_remove(struct qcow2_table *table)
{
    table->clock_prev->clock_next = table->clock_next;
    table->clock_next->clock_prev = table->clock_prev;
}

static bool is_dirty(const struct qcow2_table *table)
{
    return table->dirty_start != table->dirty_end;
}

static void free_table(struct qcow2_table *table)
{
    free(table->data);
    free(table);
}

void qcow2_cache_clear(struct qcow2_cache *cache)
{
    struct qcow2_table *table = cache->clock.clock_next;
    while (table && table != &cache->clock) {
        struct qcow2_table *next = table->clock_next;
        free_table(table);
        table = next;
    }
    free(cache->buckets);
    cache->buckets = NULL;
    cache->bucket_count = 0;
    cache->count = cache->dirty_count = 0;
    ring_init(cache);
}

/* ---- the hash table ---- */

static size_t bucket_of(const struct qcow2_cache *cache, uint64_t offset)
{
    uint64_t key = offset / cache->entry_bytes;
    return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (cache->bucket_count - 1);
}

static int grow_buckets(struct qcow2_cache *cache)
{
    size_t count = cache->bucket_count ? cache->bucket_count * 2 : FIRST_BUCKETS;
    struct qcow2_table **buckets = blk_calloc(count, sizeof(struct qcow2_table *));
    if (!buckets)
        return -ENOMEM;
    free(cache->buckets);
    cache->buckets = buckets;
    cache->bucket_count = count;
    for (struct qcow2_table *t = cache->clock.clock_next; t != &cache->clock; t = t->clock_next) {
        struct qcow2_table **bucket = &buckets[bucket_of(cache, t->offset)];
        t->next_in_bucket = *bucket;
        *bucket = t;
    }
    return 0;
}

struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint64_t offset)
{
    if (!cache->bucket_count)
        return NULL;
    struct qcow2_table *table = cache->buckets[bucket_of(cache, offset)];
    while (table && table->offset != offset)
        table = table->next_in_bucket;
    if (table && !atomic_load_explicit(&table->used, memory_order_relaxed))
        atomic_store_explicit(&table->used, true, memory_order_relaxed);
    return table;
}

struct qcow2_table *qcow2_cache_insert(struct qcow2_cache *cache, uint64_t offset)
{
    ASSERT_LOCKED(cache->lock);
    if (cache->count >= cache->bucket_count && grow_buckets(cache) < 0)
        return NULL;
    struct qcow2_table *table = blk_calloc(1, sizeof(*table));
    if (!table)
        return NULL;
    table->data = cache->entry_bytes >= 4096 ? blk_buffer_alloc(cache->entry_bytes)
                                             : blk_malloc(cache->entry_bytes);
    if (!table->data) {
        free(table);
        return NULL;
    }
    table->offset = offset;
    atomic_init(&table->used, true);
    struct qcow2_table **bucket = &cache->buckets[bucket_of(cache, offset)];
    table->next_in_bucket = *bucket;
    *bucket = table;
    clock_insert(cache, table);
    cache->count++;
    return table;
}

static void mark_clean(struct qcow2_cache *cache, struct qcow2_table *table)
{
    if (!is_dirty(table))
        return;
    table->dirty_start = table->dirty_end = 0;
    table->dirty_prev->dirty_next = table->dirty_next;
    table->dirty_next->dirty_prev = table->dirty_prev;
    cache->dirty_count--;
}

static void forget_table(struct qcow2_cache *cache, struct qcow2_table *table)
{
    mark_clean(cache, table);
    struct qcow2_table **at = &cache->buckets[bucket_of(cache, table->offset)];
    while (*at != table)
        at = &(*at)->next_in_bucket;
    *at = table->next_in_bucket;
    clock_remove(table);
    cache->count--;
    free_table(table);
}

/* ---- for the driver ---- */

int qcow2_cache_new(struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **table,
                    struct blk_error *err)
{
    ASSERT_LOCKED(cache->lock);
    *table = qcow2_cache_find(cache, offset);
    if (!*table)
        *table = qcow2_cache_insert(cache, offset);
    if (!*table)
        return blk_fail(err, ENOMEM, "making a new table");
    memset((*table)->data, 0, cache->entry_bytes);
    (*table)->fresh = true;
    qcow2_cache_dirty(cache, *table, 0, cache->entry_bytes);
    return 0;
}

void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_table *table, uint32_t from,
                       uint32_t bytes)
{
    ASSERT_LOCKED(cache->lock);
    uint32_t unit = cache->dirty_unit;
    uint32_t start = from / unit * unit;
    uint32_t end = (from + bytes + unit - 1) / unit * unit;

    if (is_dirty(table)) {
        table->dirty_start = start < table->dirty_start ? start : table->dirty_start;
        table->dirty_end = end > table->dirty_end ? end : table->dirty_end;
        return;
    }
    table->dirty_start = start;
    table->dirty_end = end;
    table->dirty_prev = cache->dirty.dirty_prev;
    table->dirty_next = &cache->dirty;
    table->dirty_prev->dirty_next = table->dirty_next->dirty_prev = table;
    cache->dirty_count++;
}

void qcow2_cache_clean(struct qcow2_cache *cache, struct qcow2_table *table)
{
    ASSERT_LOCKED(cache->lock);
    mark_clean(cache, table);
}

void qcow2_cache_drop(struct qcow2_cache *cache, uint64_t offset, uint64_t bytes)
{
    ASSERT_LOCKED(cache->lock);
    for (uint64_t at = offset; at < offset + bytes; at += cache->entry_bytes) {
        struct qcow2_table *table = qcow2_cache_find(cache, at);
        if (table)
            forget_table(cache, table);
    }
}

void qcow2_cache_trim(struct qcow2_cache *cache)
{
    ASSERT_LOCKED(cache->lock);
    /* Twice around at most: the first round may only take the marks away. */
    size_t steps = cache->count > cache->limit ? 2 * cache->count : 0;
    struct qcow2_table *table = cache->clock.clock_next;

    while (steps-- && cache->count > cache->limit) {
        if (table == &cache->clock) {
            table = table->clock_next;
            continue;
        }
        struct qcow2_table *next = table->clock_next;
        bool spared = is_dirty(table) || table->frozen ||
                      atomic_exchange_explicit(&table->used, false, memory_order_relaxed);
        if (!spared)
            forget_table(cache, table);
        table = next;
    }
    /* The hand: what was looked at goes to the end of the ring. */
    if (table != &cache->clock && table != cache->clock.clock_next) {
        clock_remove(&cache->clock);
        cache->clock.clock_next = table;
        cache->clock.clock_prev = table->clock_prev;
        table->clock_prev->clock_next = &cache->clock;
        table->clock_prev = &cache->clock;
    }
}
