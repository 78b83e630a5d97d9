/* SPDX-License-Identifier: MIT */
/*
 * What each host cluster is used for, and how often: two bits for each cluster, whose value other
 * than NONE is also the first reference. Most clusters have no more than that; where one has, the
 * references beyond the first are counted in a chunk of clusters of its own, one byte each, or as
 * wide as the image's counts once a byte is not enough.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/state.h"

#define CHUNK_CLUSTERS 32768
#define BYTE_ORDER_OF_COUNTS 3 /* 8 bits */

/* Four clusters, and 32, that hold data and are referred to once. */
#define FOUR_DATA (QCOW2_USE_DATA * 0x55)
#define EVERY_FIRST_BIT UINT64_C(0x5555555555555555)
#define CLUSTERS_PER_WORD 32

struct qcow2_extra {
    uint8_t *counts; /* NULL: all zero */
    unsigned order;
};

int qcow2_check_begin(struct qcow2_check *check, struct blk_node *node, struct blk_check *result,
                      struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(node);

    *check = (struct qcow2_check){
        .node = node,
        .result = result,
        .order = s->header.refcount_order,
        .clusters = div_round_up(blk_size(qcow2_file(node)), s->cluster_bytes),
    };
    check->uses = blk_calloc(check->clusters / CLUSTERS_PER_WORD + 1, sizeof(uint64_t));
    check->extra = blk_calloc(check->clusters / CHUNK_CLUSTERS + 1, sizeof(*check->extra));
    if (check->uses && check->extra)
        return 0;
    qcow2_check_end(check);
    return blk_fail(err, ENOMEM, "checking '%s'", node->name);
}

void qcow2_check_end(struct qcow2_check *check)
{
    for (uint64_t i = 0; check->extra && i <= check->clusters / CHUNK_CLUSTERS; i++)
        free(check->extra[i].counts);
    free(check->extra);
    free(check->uses);
    check->uses = NULL;
    check->extra = NULL;
}

/* ---- what was found ---- */

uint64_t qcow2_check_refs(const struct qcow2_check *check, uint64_t cluster)
{
    if (cluster >= check->clusters || qcow2_check_use(check, cluster) == QCOW2_USE_NONE)
        return 0;
    const struct qcow2_extra *extra = &check->extra[cluster / CHUNK_CLUSTERS];
    if (!extra->counts)
        return 1;
    return 1 + qcow2_count_get(extra->counts, extra->order, cluster % CHUNK_CLUSTERS);
}

bool qcow2_check_is_unused(const struct qcow2_check *check, uint64_t first, uint64_t clusters)
{
    ASSERT(first % 4 == 0);
    return bytes_are_zero(check->uses + first / 4, clusters / 4) &&
           (clusters % 4 == 0 ||
            (check->uses[(first + clusters) / 4] & ((1u << clusters % 4 * 2) - 1)) == 0);
}

/* 16-bit counts of the four clusters of a byte of uses. */
static uint64_t counts_of_four(uint8_t uses)
{
    uint8_t counts[8] = { 0 };
    uint64_t word;

    for (unsigned i = 0; i < 4; i++)
        counts[i * 2 + 1] = (uses >> i * 2 & 3) != QCOW2_USE_NONE;
    memcpy(&word, counts, sizeof(word));
    return word;
}

/* Whether no cluster of the range has more than one reference. */
static bool is_at_most_once(const struct qcow2_check *check, uint64_t first, uint64_t clusters)
{
    for (uint64_t i = first / CHUNK_CLUSTERS; i <= (first + clusters - 1) / CHUNK_CLUSTERS; i++)
        if (check->extra[i].counts)
            return false;
    return true;
}

void qcow2_check_write_counts(const struct qcow2_check *check, uint64_t first, uint64_t clusters,
                              uint8_t *counts)
{
    uint64_t done = 0;

    ASSERT(first % 4 == 0);
    if (check->order == 4 && clusters && is_at_most_once(check, first, clusters)) {
        uint64_t fours[256];
        for (unsigned i = 0; i < ARRAY_SIZE(fours); i++)
            fours[i] = counts_of_four((uint8_t)i);
        for (; done + 4 <= clusters; done += 4)
            memcpy(counts + done * 2, &fours[check->uses[(first + done) / 4]], sizeof(fours[0]));
    }
    for (; done < clusters; done++)
        qcow2_count_put(counts, check->order, done, qcow2_check_refs(check, first + done));
}

uint64_t qcow2_check_next_l2(const struct qcow2_check *check, uint64_t from)
{
    uint64_t at = from;

    while (at < check->clusters) {
        uint64_t word;
        memcpy(&word, check->uses + at / CLUSTERS_PER_WORD * sizeof(word), sizeof(word));
        /* L2 is the use with the second bit and without the first. */
        bool has_l2 = word >> 1 & ~word & EVERY_FIRST_BIT;
        uint64_t end = round_down(at, CLUSTERS_PER_WORD) + CLUSTERS_PER_WORD;
        for (; has_l2 && at < u64_min(end, check->clusters); at++)
            if (qcow2_check_use(check, at) == QCOW2_USE_L2)
                return at;
        at = end;
    }
    return check->clusters;
}

/* ---- adding ---- */

static void use_put(struct qcow2_check *check, uint64_t cluster, enum qcow2_use use)
{
    uint8_t *byte = &check->uses[cluster / 4];
    unsigned shift = cluster % 4 * 2;
    *byte = (uint8_t)((*byte & ~(3u << shift)) | (unsigned)use << shift);
}

/* Gives the chunk wider counts; false: no memory. */
static bool widen(struct qcow2_extra *extra, unsigned order)
{
    uint8_t *counts = blk_calloc(1, qcow2_counts_bytes(order, CHUNK_CLUSTERS));
    if (!counts)
        return false;
    for (uint64_t i = 0; extra->counts && i < CHUNK_CLUSTERS; i++)
        qcow2_count_put(counts, order, i, qcow2_count_get(extra->counts, extra->order, i));
    free(extra->counts);
    *extra = (struct qcow2_extra){ counts, order };
    return true;
}

/* The cluster has `count` references beyond the first. */
static void extra_put(struct qcow2_check *check, uint64_t cluster, uint64_t count)
{
    struct qcow2_extra *extra = &check->extra[cluster / CHUNK_CLUSTERS];
    unsigned order =
        count <= qcow2_count_max(BYTE_ORDER_OF_COUNTS) ? BYTE_ORDER_OF_COUNTS : check->order;

    check->shared = true;
    if ((!extra->counts || extra->order < order) && !widen(extra, order)) {
        check->no_memory = true;
        return;
    }
    qcow2_count_put(extra->counts, extra->order, cluster % CHUNK_CLUSTERS, count);
}

bool qcow2_check_add_one(struct qcow2_check *check, uint64_t cluster, enum qcow2_use use,
                         uint64_t times)
{
    enum qcow2_use before = qcow2_check_use(check, cluster);
    bool fits = before == QCOW2_USE_NONE || (before == use && use != QCOW2_USE_OTHER);
    uint64_t refs = before == QCOW2_USE_NONE ? 0 : qcow2_check_refs(check, cluster);

    ASSERT(use != QCOW2_USE_NONE && times);
    /* A cluster of two uses belongs to neither: it is no longer followed or mended as a table. */
    if (use != before)
        use_put(check, cluster, fits ? use : QCOW2_USE_OTHER);
    /* Other references to a table are followed only while its cluster is known as a table. */
    if (!fits && (use == QCOW2_USE_L2 || before == QCOW2_USE_L2))
        check->incomplete = check->tangled = true;

    uint64_t room = qcow2_count_max(check->order) - refs;
    if (times > room && !check->overflow) {
        qcow2_check_corruption(check,
                               "the refcount width is too small for the references to the "
                               "cluster at offset 0x%" PRIx64,
                               cluster * qcow2_state(check->node)->cluster_bytes);
        check->overflow = true;
    }
    refs += u64_min(times, room);
    if (refs > 1)
        extra_put(check, cluster, refs - 1);
    return fits;
}

static void add_data(struct qcow2_check *check, uint64_t cluster, uint64_t times)
{
    if (!qcow2_check_add_one(check, cluster, QCOW2_USE_DATA, times))
        qcow2_check_overlapping(check, cluster, "a data cluster");
}

void qcow2_check_add_data(struct qcow2_check *check, uint64_t first, uint64_t clusters,
                          uint64_t times)
{
    uint64_t at = first, end = first + clusters;

    while (at < end) {
        /* Four at a time where nothing is known of them yet. */
        if (at % 4 == 0 && times == 1)
            for (; at + 4 <= end && !check->uses[at / 4]; at += 4)
                check->uses[at / 4] = FOUR_DATA;
        if (at < end)
            add_data(check, at++, times);
    }
}
