/* SPDX-License-Identifier: MIT */
/*
 * Where a write goes: the row of clusters at its beginning that are treated alike, and their place.
 *
 * A place can be chosen before the write comes (qcow2_place()), so that the layout of a file does
 * not depend on which of several writes comes first. It is a promise in memory: the clusters are
 * counted, nothing points to them, and the write that finds them takes them over.
 */
#include "drivers/qcow2/data/run.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/header/corrupt.h"
#include "drivers/qcow2/tables/alloc.h"
#include "drivers/qcow2/tables/map.h"
#include "drivers/qcow2/tables/metadata.h"
#include "drivers/qcow2/tables/refcount.h"

static unsigned first_subcluster(const struct qcow2_state *s, uint64_t offset)
{
    return (unsigned)((offset & (s->cluster_bytes - 1)) / s->subcluster_bytes);
}

/* Bits [first, last] of the allocation half of a bitmap. */
static uint64_t bits(unsigned first, unsigned last)
{
    return (QCOW2_SUBCLUSTERS_ALL_ALLOCATED >> (QCOW2_SUBCLUSTERS - 1 - (last - first))) << first;
}

uint64_t qcow2_subclusters_between(const struct qcow2_state *s, uint64_t from, uint64_t to)
{
    return bits(first_subcluster(s, from), first_subcluster(s, to - 1));
}

/* How the part [from, to) of one cluster, within that cluster, can be written. */
static int classify(struct blk_node *node, struct qcow2_entry entry, uint64_t from, uint64_t to,
                    enum qcow2_way *way, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    bool all_data = true, host = false;

    for (unsigned sub = first_subcluster(s, from); sub <= first_subcluster(s, to - 1); sub++) {
        enum qcow2_kind kind;
        const char *problem;
        if (qcow2_entry_kind(s, entry, sub, &kind, &problem) < 0)
            return qcow2_corrupt(node, err, "guest offset %" PRIu64 " is mapped to %s", from,
                                 problem);
        all_data = all_data && kind == QCOW2_DATA;
        host = kind == QCOW2_DATA || kind == QCOW2_ZERO_HOST || kind == QCOW2_UNALLOCATED_HOST;
    }
    bool own = host && entry.entry & QCOW2_ENTRY_COPIED;
    if (s->data_file)
        *way = own && all_data ? QCOW2_WRITE_IN_PLACE : QCOW2_WRITE_KEPT;
    else
        *way = !own ? QCOW2_WRITE_NEW : all_data ? QCOW2_WRITE_IN_PLACE : QCOW2_WRITE_KEPT;
    return 0;
}

static uint64_t host_of(const struct qcow2_state *s, struct qcow2_entry entry, uint64_t guest)
{
    return s->data_file ? guest : entry.entry & QCOW2_ENTRY_OFFSET;
}

/* Whether a cluster that is written this way can be written together with those of the run. */
static bool joins(const struct qcow2_state *s, const struct qcow2_run *run, enum qcow2_way way,
                  uint64_t host)
{
    if (way == QCOW2_WRITE_NEW || run->way == QCOW2_WRITE_NEW)
        return way == run->way;
    return host == run->host + run->clusters * s->cluster_bytes;
}

/* Fills way, host and clusters: the longest row of clusters that are treated alike. */
static int find_write_run(struct blk_node *node, const struct qcow2_table *slice, uint32_t index,
                          struct qcow2_run *run, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);
    uint64_t cluster_bytes = s->cluster_bytes;

    run->clusters = 0;
    for (uint64_t at = run->guest; at < run->to && index < s->slice_entries; at += cluster_bytes) {
        struct qcow2_entry entry = qcow2_entry_get(s, slice->data, index++);
        enum qcow2_way way = QCOW2_WRITE_NEW;
        int ret = classify(node, entry, u64_max(at, run->from),
                           u64_min(at + cluster_bytes, run->to), &way, err);
        if (ret < 0)
            return ret;
        uint64_t host = host_of(s, entry, at);
        if (!run->clusters) {
            run->way = way;
            run->first_data = way == QCOW2_WRITE_IN_PLACE;
            run->host = host;
        } else if (!joins(s, run, way, host)) {
            break;
        }
        if (way == QCOW2_WRITE_KEPT)
            run->way = QCOW2_WRITE_KEPT;
        run->last_data = way == QCOW2_WRITE_IN_PLACE;
        run->clusters++;
    }
    run->to = u64_min(run->to, run->guest + run->clusters * cluster_bytes);
    return 0;
}

/*
 * Subclusters of the entry that must be complete after the write touches `touched` of them: what
 * is in a cluster that is left behind comes along.
 */
static uint64_t needed_subclusters(struct qcow2_entry entry, enum qcow2_way way, uint64_t touched)
{
    if (way == QCOW2_WRITE_KEPT)
        return touched;
    if (entry.entry & QCOW2_ENTRY_COMPRESSED)
        return QCOW2_SUBCLUSTERS_ALL_ALLOCATED;
    return touched | (entry.bitmap & QCOW2_SUBCLUSTERS_ALL_ALLOCATED);
}

/*
 * Whether the subcluster holds data that stays where it is, so that nothing has to be filled
 * around a write in it.
 */
static bool stays(struct qcow2_entry entry, enum qcow2_way way, unsigned subcluster)
{
    return way == QCOW2_WRITE_KEPT && entry.bitmap >> subcluster & 1;
}

/* fill_from and fill_to with extended L2: as little as the two outer clusters allow. */
static void find_fill_extended(const struct qcow2_state *s, const struct qcow2_table *slice,
                               uint32_t index, struct qcow2_run *run)
{
    uint32_t last_index = index + (uint32_t)run->clusters - 1;
    uint64_t last_guest = run->guest + (run->clusters - 1) * s->cluster_bytes;
    struct qcow2_entry first = qcow2_entry_get(s, slice->data, index);
    struct qcow2_entry last = qcow2_entry_get(s, slice->data, last_index);
    unsigned from_sub = first_subcluster(s, run->from), to_sub = first_subcluster(s, run->to - 1);

    uint64_t head = needed_subclusters(
        first, run->way, bits(from_sub, run->clusters > 1 ? QCOW2_SUBCLUSTERS - 1 : to_sub));
    uint64_t tail =
        needed_subclusters(last, run->way, bits(run->clusters > 1 ? 0 : from_sub, to_sub));
    uint64_t low = (uint64_t)__builtin_ctzll(head);
    uint64_t high = 63 - (uint64_t)__builtin_clzll(tail);

    run->fill_from =
        stays(first, run->way, from_sub) ? run->from : run->guest + low * s->subcluster_bytes;
    run->fill_to =
        stays(last, run->way, to_sub) ? run->to : last_guest + (high + 1) * s->subcluster_bytes;
}

static void find_fill(const struct qcow2_state *s, const struct qcow2_table *slice, uint32_t index,
                      struct qcow2_run *run)
{
    run->fill_from = run->first_data ? run->from : run->guest;
    run->fill_to = run->last_data ? run->to : run->guest + run->clusters * s->cluster_bytes;
    if (s->extended)
        find_fill_extended(s, slice, index, run);
}

/* [locked] Fills way, host and clusters for a write of [run->from, run->to) in one slice. */
static int look_up_run(struct blk_node *node, struct qcow2_run *run, struct qcow2_table **slice,
                       uint32_t *index, struct blk_error *err)
{
    ASSERT_LOCKED(&qcow2_state(node)->lock);
    int ret = qcow2_slice_write(node, run->guest, slice, index, err);
    return ret < 0 ? ret : find_write_run(node, *slice, *index, run, err);
}

static void shorten(const struct qcow2_state *s, struct qcow2_run *run, uint64_t clusters)
{
    run->clusters = u64_min(run->clusters, clusters);
    run->to = u64_min(run->to, run->guest + run->clusters * s->cluster_bytes);
}

/* ---- places chosen beforehand ---- */

/* The entry that has the guest cluster, or NULL. */
static struct qcow2_placed *find_placed(struct qcow2_state *s, uint64_t guest)
{
    for (size_t i = 0; i < s->places.count; i++) {
        struct qcow2_placed *placed = &s->places.list[i];
        if (guest - placed->guest < placed->clusters * s->cluster_bytes)
            return placed;
    }
    return NULL;
}

static void add_placed(struct qcow2_state *s, struct qcow2_placed placed)
{
    struct qcow2_places *places = &s->places;
    if (!placed.clusters)
        return;
    if (places->count == places->capacity) {
        places->capacity = places->capacity ? places->capacity * 2 : 64;
        places->list = blk_xrealloc(places->list, places->capacity, sizeof(*places->list));
    }
    places->list[places->count++] = placed;
}

/*
 * Uses the place of the run's first clusters, if there is one. It stays on the list until the run
 * is linked: another request may share its last cluster, and must not place that again.
 */
static bool use_placed(struct qcow2_state *s, struct qcow2_run *run)
{
    ASSERT_LOCKED(&s->lock);
    const struct qcow2_placed *placed = find_placed(s, run->guest);
    if (!placed)
        return false;
    uint64_t before = (run->guest - placed->guest) / s->cluster_bytes;
    shorten(s, run, placed->clusters - before);
    run->host = placed->host + before * s->cluster_bytes;
    run->unwritten = placed->unwritten;
    run->placed = true;
    return true;
}

void qcow2_end_placed(struct blk_node *node, const struct qcow2_run *run)
{
    struct qcow2_state *s = qcow2_state(node);
    ASSERT_LOCKED(&s->lock);
    if (!run->placed)
        return;
    struct qcow2_placed *placed = find_placed(s, run->guest);
    ASSERT(placed);
    struct qcow2_placed head = *placed, tail = *placed;
    *placed = s->places.list[--s->places.count];
    head.clusters = (run->guest - head.guest) / s->cluster_bytes;
    uint64_t used = head.clusters + run->clusters;
    tail.guest += used * s->cluster_bytes;
    tail.host += used * s->cluster_bytes;
    tail.clusters -= used;
    add_placed(s, head);
    add_placed(s, tail);
}

static int take_free(struct blk_node *node, struct qcow2_run *run, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t bytes;
    int ret = qcow2_alloc_run(node, run->clusters * s->cluster_bytes, &run->host, &bytes,
                              &run->unwritten, err);
    if (ret == 0)
        shorten(s, run, bytes / s->cluster_bytes);
    return ret;
}

/* Places a run of new clusters, unless another part of its first cluster has been placed. */
static int place_run(struct blk_node *node, struct qcow2_run *run, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    const struct qcow2_placed *placed = find_placed(s, run->guest);
    if (placed) {
        uint64_t before = (run->guest - placed->guest) / s->cluster_bytes;
        shorten(s, run, placed->clusters - before);
        return 0;
    }
    int ret = take_free(node, run, err);
    if (ret == 0)
        add_placed(s,
                   (struct qcow2_placed){ run->guest, run->host, run->clusters, run->unwritten });
    return ret;
}

int qcow2_place(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    uint64_t per_slice = (uint64_t)s->slice_entries << s->cluster_bits;
    int ret = qcow2_check_poison(node, err);

    QCOW2_LOCK_SCOPE(s);
    while (bytes && ret == 0) {
        struct qcow2_run run = {
            .guest = round_down(offset, s->cluster_bytes),
            .from = offset,
            .to = offset + u64_min(bytes, per_slice - offset % per_slice),
        };
        struct qcow2_table *slice;
        uint32_t index;
        ret = look_up_run(node, &run, &slice, &index, err);
        if (ret == 0 && run.way == QCOW2_WRITE_NEW)
            ret = place_run(node, &run, err);
        offset += run.to - run.from;
        bytes -= run.to - run.from;
    }
    return ret;
}

void qcow2_end_places(struct blk_node *node)
{
    struct qcow2_state *s = qcow2_state(node);
    QCOW2_LOCK_SCOPE(s);
    for (size_t i = 0; i < s->places.count; i++) {
        const struct qcow2_placed *placed = &s->places.list[i];
        qcow2_refcount_decrease(node, placed->host, placed->clusters * s->cluster_bytes, NULL);
    }
    free(s->places.list);
    s->places = (struct qcow2_places){ .count = 0 };
}

/* ---- what a write does ---- */

int qcow2_choose_run(struct blk_node *node, struct qcow2_run *run, struct blk_error *err)
{
    struct qcow2_state *s = qcow2_state(node);
    struct qcow2_table *slice;
    uint32_t index;
    int ret = look_up_run(node, run, &slice, &index, err);
    if (ret < 0)
        return ret;

    if (run->way == QCOW2_WRITE_NEW) {
        if (!use_placed(s, run))
            ret = take_free(node, run, err);
        if (ret < 0)
            return ret;
    } else if (!s->data_file) {
        ret = qcow2_check_overlap(node, run->host, run->clusters * s->cluster_bytes, err);
    }
    if (run->way == QCOW2_WRITE_IN_PLACE) {
        run->fill_from = run->from;
        run->fill_to = run->to;
    } else {
        find_fill(s, slice, index, run);
    }
    return ret;
}
