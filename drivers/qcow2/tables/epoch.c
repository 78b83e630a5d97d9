/* SPDX-License-Identifier: MIT */
/*
 * Bringing changed tables to the medium (ARCHITECTURE.md, "What holds at any instant").
 *
 * An epoch is what was changed since the last commit. A commit freezes copies of the changed
 * parts of all tables under the lock, and then, while others go on changing the next epoch,
 * writes in four phases:
 *
 *   1. refcount blocks; L2 tables that nothing points to yet; a refcount table that moved. (Guest
 *      data was written before its mapping was changed in memory.) Barrier.
 *   2. The refcount table's entries, or the header if the table moved. Barrier, if 3 or 4 follow.
 *   3. L2 tables in use.
 *   4. L1; what it newly points to is stable since phase 1. Barrier, if anything was freed.
 *
 * so a count is stable before the pointer that needs it (C1), data before its entry (C2), a table
 * before the entry that leads to it. Counts never go down in phase 1 for what 3 and 4 unpoint: such
 * frees wait in a list of the epoch, and are applied in memory after the last barrier (C3);
 * the next commit writes them.
 *
 * After a failed write or barrier nobody knows what the medium has: the image is poisoned, and
 * nothing is written to it any more. What is stable then keeps C1; at worst clusters have leaked.
 */
#include "drivers/qcow2/tables/epoch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/frees.h"

#define MANY_FREES 4096

enum phase { PHASE_BASE, PHASE_REFTABLE, PHASE_L2, PHASE_L1, PHASES };

/* A part of a table, to be written. */
struct frozen {
    enum phase phase;
    enum blk_event event;
    uint64_t offset;
    uint8_t *data;
    uint64_t bytes;
};

/*
 * How far an epoch has come; "=" is a barrier, the numbers are the phases of above.
 *
 *                  1                         2                        3, 4
 *   OPEN --> FROZEN --> COUNTED = COUNTS_STABLE --> HOOKED = HOOKS_STABLE --> MAPPED = DONE
 *
 * A stage with nothing to write is skipped:
 *
 *   COUNTED --> DONE                  only counts have changed
 *   COUNTS_STABLE --> MAPPED          the refcount table has not
 *   COUNTS_STABLE --> HOOKS_STABLE    it moved: the switch of the header is a barrier itself
 *   HOOKED, HOOKS_STABLE --> DONE     no L2 or L1 table has changed
 *
 * A failure from FROZEN on poisons the image, and the epoch goes no further.
 */
enum epoch_stage {
    EPOCH_OPEN,
    EPOCH_FROZEN,
    EPOCH_COUNTED,
    EPOCH_COUNTS_STABLE,
    EPOCH_HOOKED, /* the refcount table leads to the new blocks */
    EPOCH_HOOKS_STABLE,
    EPOCH_MAPPED,
    EPOCH_DONE, /* what it unpoints may be used again (C3) */
};

struct epoch {
    enum epoch_stage stage;
    struct frozen *list;
    size_t count, capacity;
    size_t in_phase[PHASES];
    bool leave_reftable; /* to a later commit */
    bool reftable_moved; /* the header must be switched to it */
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    struct qcow2_frees frees;
};

#define BIT(stage) (1u << EPOCH_##stage)

static void enter_stage(struct epoch *epoch, enum epoch_stage stage)
{
    static const unsigned may_follow[] = {
        [EPOCH_OPEN] = BIT(FROZEN),
        [EPOCH_FROZEN] = BIT(COUNTED),
        [EPOCH_COUNTED] = BIT(COUNTS_STABLE) | BIT(DONE),
        [EPOCH_COUNTS_STABLE] = BIT(HOOKED) | BIT(HOOKS_STABLE) | BIT(MAPPED),
        [EPOCH_HOOKED] = BIT(HOOKS_STABLE) | BIT(DONE),
        [EPOCH_HOOKS_STABLE] = BIT(MAPPED) | BIT(DONE),
        [EPOCH_MAPPED] = BIT(DONE),
        [EPOCH_DONE] = 0,
    };
    ASSERT(may_follow[epoch->stage] & 1u << stage);
    epoch->stage = stage;
}

/* ---- freezing, under the lock ---- */

/* Adds room for `bytes` at `offset`; the caller fills frozen->data. */
static struct frozen *add_frozen(struct epoch *epoch, enum phase phase, enum blk_event event,
                                 uint64_t offset, uint64_t bytes)
{
    if (epoch->count == epoch->capacity) {
        epoch->capacity = epoch->capacity ? epoch->capacity * 2 : 64;
        epoch->list = blk_xrealloc(epoch->list, epoch->capacity, sizeof(*epoch->list));
    }
    uint8_t *data = blk_buffer_alloc(bytes);
    if (!data)
        return NULL;
    struct frozen *frozen = &epoch->list[epoch->count++];
    *frozen = (struct frozen){ phase, event, offset, data, bytes };
    epoch->in_phase[phase]++;
    return frozen;
}

static int freeze_cache(struct epoch *epoch, struct qcow2_cache *cache, enum phase phase,
                        enum blk_event event)
{
    for (struct qcow2_table *t = cache->dirty.dirty_next; t != &cache->dirty; t = t->dirty_next) {
        uint32_t bytes = t->dirty_end - t->dirty_start;
        struct frozen *frozen = add_frozen(epoch, t->fresh ? PHASE_BASE : phase, event,
                                           t->offset + t->dirty_start, bytes);
        if (!frozen)
            return -ENOMEM;
        memcpy(frozen->data, t->data + t->dirty_start, bytes);
    }
    return 0;
}

/* Encodes entries [first, first + bytes / 8) of a table of `count`; zeroes behind its end. */
static void encode_entries(uint8_t *to, const uint64_t *table, uint64_t count, uint64_t first,
                           uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes / 8; i++)
        be64_put(to + i * 8, first + i < count ? table[first + i] : 0);
}

static int freeze_reftable(struct qcow2_state *s, struct epoch *epoch)
{
    uint64_t first = s->reftable_dirty_start, end = s->reftable_dirty_end;
    uint64_t unit = s->l1_unit / 8;
    enum phase phase = PHASE_REFTABLE;

    if (s->reftable_moved) {
        first = 0;
        end = s->reftable_entries;
        phase = PHASE_BASE;
        epoch->reftable_moved = true;
        epoch->reftable_offset = s->reftable_offset;
        epoch->reftable_clusters = (uint32_t)(s->reftable_entries * 8 / s->cluster_bytes);
    }
    if (first == end)
        return 0;
    first = round_down(first, unit);
    end = round_up(end, unit);
    struct frozen *frozen = add_frozen(epoch, phase, BLK_EVENT_REFTABLE_UPDATE,
                                       s->reftable_offset + first * 8, (end - first) * 8);
    if (!frozen)
        return -ENOMEM;
    encode_entries(frozen->data, s->reftable, s->reftable_entries, first, (end - first) * 8);
    return 0;
}

static int freeze_l1(struct qcow2_state *s, struct epoch *epoch)
{
    uint64_t units = div_round_up((uint64_t)s->l1_entries * 8, s->l1_unit);
    for (uint64_t unit = 0; s->l1_any_dirty && unit < units; unit++) {
        uint64_t first = unit;
        while (unit < units && s->l1_dirty[unit])
            unit++;
        if (unit == first)
            continue;
        uint64_t bytes = (unit - first) * s->l1_unit;
        struct frozen *frozen = add_frozen(epoch, PHASE_L1, BLK_EVENT_L1_UPDATE,
                                           s->l1_offset + first * s->l1_unit, bytes);
        if (!frozen)
            return -ENOMEM;
        encode_entries(frozen->data, s->l1, s->l1_entries, first * s->l1_unit / 8, bytes);
    }
    return 0;
}

/* Everything has been copied: what changes from here on belongs to the next epoch. */
static void begin_next_epoch(struct qcow2_state *s, struct epoch *epoch)
{
    ASSERT_LOCKED(&s->lock);
    struct qcow2_cache *caches[] = { &s->l2_cache, &s->refblock_cache };
    for (size_t i = 0; i < sizeof(caches) / sizeof(caches[0]); i++)
        while (caches[i]->dirty.dirty_next != &caches[i]->dirty) {
            struct qcow2_table *table = caches[i]->dirty.dirty_next;
            table->frozen = true;
            table->fresh = false;
            qcow2_cache_clean(caches[i], table);
        }
    if (!epoch->leave_reftable) {
        s->reftable_dirty_start = s->reftable_dirty_end = 0;
        s->reftable_moved = false;
    }
    if (s->l1_any_dirty)
        memset(s->l1_dirty, 0, div_round_up((uint64_t)s->l1_entries * 8, s->l1_unit));
    s->l1_any_dirty = false;
    epoch->frees = s->frees;
    s->frees = (struct qcow2_frees){ .count = 0 };
    enter_stage(epoch, EPOCH_FROZEN);
}

static int freeze_tables(struct qcow2_state *s, struct epoch *epoch)
{
    int ret = freeze_cache(epoch, &s->refblock_cache, PHASE_BASE, BLK_EVENT_REFBLOCK_UPDATE);
    if (ret < 0)
        return ret;
    ret = freeze_cache(epoch, &s->l2_cache, PHASE_L2, BLK_EVENT_L2_UPDATE);
    if (ret < 0)
        return ret;
    ret = epoch->leave_reftable ? 0 : freeze_reftable(s, epoch);
    return ret < 0 ? ret : freeze_l1(s, epoch);
}

static int freeze(struct blk_node *node, struct epoch *epoch, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    /* A refcount table that found no place when it grew gets another chance. */
    int ret = qcow2_reftable_place(node, err);
    if (ret < 0)
        return ret;
    ret = freeze_tables(s, epoch);
    if (ret < 0)
        return blk_fail(err, -ret, "writing the tables of '%s'", node->name);
    begin_next_epoch(s, epoch);
    return 0;
}

static void thaw(struct qcow2_state *s, const struct epoch *epoch)
{
    ASSERT_LOCKED(&s->lock);
    for (size_t i = 0; i < epoch->count; i++) {
        struct qcow2_cache *caches[] = { &s->l2_cache, &s->refblock_cache };
        for (size_t c = 0; c < 2; c++) {
            struct qcow2_table *table = qcow2_cache_find(
                caches[c], round_down(epoch->list[i].offset, caches[c]->entry_bytes));
            if (table)
                table->frozen = false;
        }
    }
}

static void epoch_free(struct epoch *epoch)
{
    for (size_t i = 0; i < epoch->count; i++)
        free(epoch->list[i].data);
    free(epoch->list);
    free(epoch->frees.list);
}

/* ---- writing ---- */

static int write_phase(struct blk_node *node, const struct epoch *epoch, enum phase phase,
                       struct blk_error *err)
{
    static const unsigned may_be_written[PHASES] = {
        [PHASE_BASE] = BIT(FROZEN),
        [PHASE_REFTABLE] = BIT(COUNTS_STABLE),
        [PHASE_L2] = BIT(COUNTS_STABLE) | BIT(HOOKS_STABLE),
        [PHASE_L1] = BIT(COUNTS_STABLE) | BIT(HOOKS_STABLE),
    };
    ASSERT(may_be_written[phase] & 1u << epoch->stage);
    for (size_t i = 0; i < epoch->count; i++) {
        const struct frozen *frozen = &epoch->list[i];
        if (frozen->phase != phase)
            continue;
        blk_event(qcow2_file(node), frozen->event);
        int ret =
            blk_child_pwrite(qcow2_file(node), frozen->offset, frozen->bytes, frozen->data, 0, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int barrier(struct blk_node *node, struct epoch *epoch, enum epoch_stage stage,
                   struct blk_error *err)
{
    int ret = qcow2_barrier(node, err);
    if (ret < 0)
        return ret;
    enter_stage(epoch, stage);
    return 0;
}

/* Phase 1. */
static int write_base(struct blk_node *node, struct epoch *epoch, bool pointers,
                      struct blk_error *err)
{
    int ret = write_phase(node, epoch, PHASE_BASE, err);
    if (ret < 0)
        return ret;
    enter_stage(epoch, EPOCH_COUNTED);
    return pointers ? barrier(node, epoch, EPOCH_COUNTS_STABLE, err) : 0;
}

/* Phase 2. A switch of the header has its own barrier. */
static int write_hooks(struct blk_node *node, struct epoch *epoch, bool map, struct blk_error *err)
{
    if (epoch->reftable_moved) {
        blk_event(qcow2_file(node), BLK_EVENT_REFBLOCK_ALLOC_SWITCH_TABLE);
        int ret = qcow2_header_switch_reftable(node, epoch->reftable_offset,
                                               epoch->reftable_clusters, err);
        if (ret < 0)
            return ret;
        enter_stage(epoch, EPOCH_HOOKS_STABLE);
    }
    if (!epoch->in_phase[PHASE_REFTABLE])
        return 0;
    int ret = write_phase(node, epoch, PHASE_REFTABLE, err);
    if (ret < 0)
        return ret;
    enter_stage(epoch, EPOCH_HOOKED);
    return map ? barrier(node, epoch, EPOCH_HOOKS_STABLE, err) : 0;
}

/* Phases 3 and 4. */
static int write_map(struct blk_node *node, struct epoch *epoch, struct blk_error *err)
{
    int ret = write_phase(node, epoch, PHASE_L2, err);
    if (ret == 0)
        ret = write_phase(node, epoch, PHASE_L1, err);
    if (ret < 0)
        return ret;
    enter_stage(epoch, EPOCH_MAPPED);
    return 0;
}

static int write_epoch(struct blk_node *node, struct epoch *epoch, struct blk_error *err)
{
    bool map = epoch->in_phase[PHASE_L2] || epoch->in_phase[PHASE_L1];
    bool hooks = epoch->in_phase[PHASE_REFTABLE] || epoch->reftable_moved;

    int ret = write_base(node, epoch, map || hooks, err);
    if (ret == 0 && hooks)
        ret = write_hooks(node, epoch, map, err);
    if (ret == 0 && map)
        ret = write_map(node, epoch, err);
    if (ret < 0)
        return ret;
    if (epoch->frees.count)
        return barrier(node, epoch, EPOCH_DONE, err);
    enter_stage(epoch, EPOCH_DONE);
    return 0;
}

/* What it unpoints can be used again, now that this is stable (C3). */
static int apply_frees(struct blk_node *node, const struct epoch *epoch, struct blk_error *err)
{
    ASSERT(epoch->stage == EPOCH_DONE);
    return qcow2_frees_apply(node, &epoch->frees, err);
}

static int commit_held(struct blk_node *node, bool leave_reftable, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct epoch epoch = { .leave_reftable = leave_reftable };

    ASSERT_LOCKED(&s->commit_mutex);
    int ret = qcow2_check_poison(node, err);
    if (ret < 0)
        return ret;
    qcow2_lock(s);
    ret = freeze(node, &epoch, err);
    qcow2_unlock(s);
    if (ret == 0) {
        ret = write_epoch(node, &epoch, err);
        if (ret == 0)
            ret = apply_frees(node, &epoch, err);
        if (ret < 0)
            qcow2_poison(s, -ret);
        QCOW2_LOCK_SCOPE(s);
        thaw(s, &epoch);
    }
    epoch_free(&epoch);
    return ret;
}

/*
 * Commits the open epoch. On return the medium has, in an order that keeps C1 to C3, all changes
 * made before the call; frees are applied in memory. A failure poisons the image.
 */
static int commit_epoch(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    LOCK_SCOPE(&s->commit_mutex);
    return commit_held(node, false, err);
}

int qcow2_flush_to_os(struct blk_node *node, struct blk_error *err)
{
    /* The second writes the counts that the first one's frees took down. */
    int ret = commit_epoch(node, err);
    return ret < 0 ? ret : commit_epoch(node, err);
}

int qcow2_commit_all(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int ret = qcow2_flush_to_os(node, err);
    if (ret == 0)
        ret = qcow2_barrier(node, err);
    if (ret < 0)
        qcow2_poison(s, -ret);
    return ret;
}

/* How full of changes the caches are: 0 little, 1 commit when nobody does, 2 commit now. */
static int pressure(struct qcow2_state *s)
{
    READ_LOCK_SCOPE(&s->lock);
    const struct qcow2_cache *l2 = &s->l2_cache, *blocks = &s->refblock_cache;
    int level = 0;
    if (l2->dirty_count * 2 > l2->limit || blocks->dirty_count * 2 > blocks->limit ||
        s->frees.count > MANY_FREES)
        level = 1;
    if (l2->dirty_count > l2->limit || blocks->dirty_count > 2 * blocks->limit ||
        s->frees.count > 4 * MANY_FREES)
        level = 2;
    return level;
}

int qcow2_commit_if_full(struct blk_node *node, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    int level = pressure(s);
    if (!level)
        return 0;
    if (level == 2) {
        blk_mutex_lock(&s->commit_mutex);
        level = pressure(s); /* somebody else may have done it meanwhile */
    } else if (!blk_mutex_trylock(&s->commit_mutex)) {
        return 0;
    }
    /*
     * When the caches are full depends on the threads. A refcount table that was written to a
     * place which it left would show that in the file; where nobody sees the file, it can wait.
     */
    int ret = level ? commit_held(node, qcow2_file(node)->unnamed, err) : 0;
    blk_mutex_unlock(&s->commit_mutex);
    return ret;
}
