/*
 * Checking and repairing a qcow2 image.
 *
 *   check.c          the order of things; allocation figures; the result
 *   check_refs.c     counts the references to every host cluster that the image's structures make
 *   check_counts.c   compares them with the refcounts the image has
 *   check_entries.c  L1 and L2 entries: COPIED, reserved bits, impossible offsets; and mending them
 *   repair.c         a new refcount structure from the references, switched to by one header sector
 *
 * Memory: one array of counts of the image's own width, in the form that refcount blocks have, so
 * that comparing is comparing bytes; and two bits a cluster that say what it is used for.
 */
#ifndef DRIVERS_QCOW2_CHECK_H
#define DRIVERS_QCOW2_CHECK_H

#include "drivers/qcow2/qcow2.h"

/*
 * What a cluster holds. Data and L2 tables may be shared by snapshots, everything else is used
 * once. OTHER, too: two things.
 */
enum qcow2_use { QCOW2_USE_NONE, QCOW2_USE_DATA, QCOW2_USE_L2, QCOW2_USE_OTHER };

struct qcow2_check {
    struct blk_node *node;
    struct blk_check *result;
    uint64_t clusters; /* of the file, the last one rounded up */
    uint8_t *refs;     /* packed counts of width `order`, big endian as in refcount blocks */
    uint8_t *uses;     /* enum qcow2_use, four to a byte */
    unsigned order;
    bool l1_usable;     /* the active L1 lies where nothing else does */
    bool broken_counts; /* refcount table or blocks cannot be used: only a rebuild helps */
    bool overflow;      /* a cluster has more references than the width can count */
    bool incomplete;    /* some table could not be followed: what seems leaked may be in use */
    bool old_snapshots; /* entries of the snapshot table lack what version 3 asks for */
};

/* Reports a finding, and counts it as a corruption or a leak. */
void qcow2_check_corruption(struct qcow2_check *check, const char *text, ...)
    __attribute__((format(printf, 2, 3)));
void qcow2_check_leak(struct qcow2_check *check, uint64_t clusters, const char *text, ...)
    __attribute__((format(printf, 3, 4)));

static inline uint64_t qcow2_check_refs(const struct qcow2_check *check, uint64_t cluster)
{
    return cluster < check->clusters ? qcow2_count_get(check->refs, check->order, cluster) : 0;
}

static inline enum qcow2_use qcow2_check_use(const struct qcow2_check *check, uint64_t cluster)
{
    return (enum qcow2_use)(check->uses[cluster / 4] >> (cluster % 4 * 2) & 3);
}

/*
 * check_refs.c: fills refs and uses, and the allocation figures of the active table. The refcount
 * table and blocks themselves count too, unless what is wanted is what a new refcount structure has
 * to say.
 */
int qcow2_check_collect(struct qcow2_check *check, bool refcount_structure, struct blk_error *err);

/* check.c: a check with empty arrays for the file as it is now; and its end. */
int qcow2_check_begin(struct qcow2_check *check, struct blk_node *node, struct blk_check *result,
                      struct blk_error *err);
void qcow2_check_end(struct qcow2_check *check);

/*
 * check_counts.c: finds leaks and counts that are too low. Sets broken_counts and image_end_offset.
 */
int qcow2_check_compare(struct qcow2_check *check, struct blk_error *err);

/*
 * check_entries.c: finds wrong entries in the active L1 and its L2 tables. MEND_CLEAR also removes
 * what must not be set (safe at any time), MEND_SET adds COPIED where the count is 1 (only after
 * the counts are right).
 */
enum qcow2_mend { QCOW2_MEND_NOTHING, QCOW2_MEND_CLEAR, QCOW2_MEND_SET };
int qcow2_check_entries(struct qcow2_check *check, enum qcow2_mend mend, struct blk_error *err);

/*
 * repair.c: makes the counts right: all of them, or only those that are too high. Neither frees
 * anything if incomplete.
 */
int qcow2_repair_counts(struct qcow2_check *check, struct blk_error *err);
int qcow2_repair_leaks(struct qcow2_check *check, struct blk_error *err);

#endif
