/* SPDX-License-Identifier: MIT */
/*
 * Checking and repairing a qcow2 image.
 *
 *   check.c     the order of things; the result
 *   report.c    findings: all are counted, and listed up to a limit for each kind
 *   lost.c      guest data that cannot be reached any more
 *   header.c    what the header and its extensions say that cannot be
 *   refs.c      counts references to host clusters; follows the L1 tables
 *   bitmaps.c   the same for bitmaps, and removes those that keep QEMU from opening the image
 *   collect.c   all references that the image's structures make
 *   counts.c    compares them with the refcounts the image has
 *   entries.c   L1 and L2 entries: COPIED, reserved bits, impossible offsets; and mending them
 *   repair.c    a new refcount structure from the references, switched to by one header sector
 *
 * Memory: one array of counts of the image's own width, in the form that refcount blocks have, so
 * that comparing is comparing bytes; and two bits a cluster that say what it is used for.
 */
#ifndef DRIVERS_QCOW2_CHECK_CHECK_H
#define DRIVERS_QCOW2_CHECK_CHECK_H

#include "blockcore/graph/types.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/map.h"

/* ---- the operations ---- */

int qcow2_check(struct blk_node *node, unsigned repair, struct blk_check *check,
                struct blk_error *err);
/*
 * For an image opened for writing with the dirty bit: makes the counts right and clears the bit.
 * Called by open.
 */
int qcow2_repair_dirty(struct blk_node *node, struct blk_error *err);

/* ---- inside a check ---- */

/*
 * What a cluster holds. Data and L2 tables may be shared by snapshots, everything else is used
 * once. OTHER, too: two things.
 */
enum qcow2_use { QCOW2_USE_NONE, QCOW2_USE_DATA, QCOW2_USE_L2, QCOW2_USE_OTHER };

/* Why guest data cannot be reached. */
enum qcow2_loss {
    QCOW2_LOSS_NONE,
    QCOW2_LOSS_PAST_END,   /* the file is too short */
    QCOW2_LOSS_DATA_FILE,  /* the data file is */
    QCOW2_LOSS_OFFSET,     /* no cluster can begin there */
    QCOW2_LOSS_OTHER_DATA, /* the data file has it elsewhere than the guest */
    QCOW2_LOSS_COMPRESSED, /* in an image with a data file */
    QCOW2_LOSS_SUBCLUSTER, /* subclusters allocated in no cluster, or allocated and zero at once */
    QCOW2_LOSS_ZERO_FLAG,  /* in version 2, which has none */
    QCOW2_LOSS_L2_TABLE,   /* the L2 table is where none can be */
    QCOW2_LOSS_L2_CUT,     /* the file ends inside the L2 table */
};

/* Neighbouring guest ranges that are lost for one reason, not told yet; bytes 0: none. */
struct qcow2_lost {
    enum qcow2_loss loss;
    uint64_t offset, bytes;
};

/* Findings of one kind: their text is the same but for the numbers. */
#define QCOW2_MAX_FINDING_KINDS 64
struct qcow2_findings {
    const char *text;
    uint64_t count;
};

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
    bool incomplete;    /* some entry could not be followed: what seems leaked may be in use */
    bool tangled;       /* tables overlap, so that what some of them map was not followed */
    bool past_end;      /* guest data lies past the end: a longer file would show it as zeroes */
    bool counts_differ; /* some count is not the number of references */
    bool counts_low;    /* some count is below it */
    bool announce;      /* differences are about to be repaired: says so, and counts nothing */
    bool may_raise;     /* the repair is not only of leaks */
    bool lost_active;   /* some of what is lost is of the disk itself, and not of snapshots */
    bool discard_lost;  /* lost guest data is given up: mending makes it zeroes */
    const char *walked_snapshot; /* whose tables are being walked; NULL: the active ones */
    uint64_t walked_bytes;       /* its disk; with a VM state, which lies behind, there is no end */
    struct qcow2_lost lost;
    struct qcow2_findings findings[QCOW2_MAX_FINDING_KINDS];
    bool mend_header; /* the header or an extension says what can be taken back */
    bool mend_extensions;
    bool mend_snapshots; /* the snapshot table has too little, or too much */
    bool drop_excess;    /* counts what will be left without the snapshots that are too many */
    bool mend_bitmaps;   /* the bitmap directory has what nobody can use */
};

/*
 * report.c: reports a finding, and counts it as a corruption or a leak; a note is not counted.
 * `text` is a literal and names the kind: of each only some are listed, and at the end how many
 * more there were.
 */
void qcow2_check_corruption(struct qcow2_check *check, const char *text, ...) BLK_PRINTF(2, 3);
void qcow2_check_leak(struct qcow2_check *check, uint64_t clusters, const char *text, ...)
    BLK_PRINTF(3, 4);
void qcow2_check_note(struct qcow2_check *check, const char *text, ...) BLK_PRINTF(2, 3);
void qcow2_check_report_rest(struct qcow2_check *check);

/*
 * lost.c: why the guest cluster at `guest` that the entry maps cannot be reached. _lost counts one
 * corruption and what is lost; the range is reported when one that does not continue it follows,
 * or by _lost_end. _discarded is the entry that takes the place of a lost one; the same entry where
 * none can. _cut_entry is the first entry of the L2 table at `l2` that the file does not hold as a
 * whole, or the number of entries; _given_up is what takes the place of such a one.
 */
enum qcow2_loss qcow2_check_loss(const struct qcow2_check *check, struct qcow2_entry entry,
                                 uint64_t guest);
void qcow2_check_lost(struct qcow2_check *check, uint64_t guest, uint64_t bytes,
                      enum qcow2_loss loss);
void qcow2_check_lost_end(struct qcow2_check *check);
struct qcow2_entry qcow2_check_discarded(const struct qcow2_check *check, struct qcow2_entry entry,
                                         enum qcow2_loss loss, uint64_t guest);

uint64_t qcow2_check_cut_entry(const struct qcow2_check *check, uint64_t l2);
struct qcow2_entry qcow2_check_given_up(const struct qcow2_check *check);

static inline uint64_t qcow2_check_refs(const struct qcow2_check *check, uint64_t cluster)
{
    return cluster < check->clusters ? qcow2_count_get(check->refs, check->order, cluster) : 0;
}

static inline enum qcow2_use qcow2_check_use(const struct qcow2_check *check, uint64_t cluster)
{
    return (enum qcow2_use)(check->uses[cluster / 4] >> (cluster % 4 * 2) & 3);
}

/* refs.c: a check with empty arrays for the file as it is now; and its end. */
int qcow2_check_begin(struct qcow2_check *check, struct blk_node *node, struct blk_check *result,
                      struct blk_error *err);
void qcow2_check_end(struct qcow2_check *check);

/*
 * Counts `times` references to all clusters that the range touches. Past the end of the file is
 * corruption. False if anything was wrong, which has been said then. _table is for what is used
 * once, and by nobody else; without that nothing it says is followed.
 */
bool qcow2_check_add_refs(struct qcow2_check *check, uint64_t offset, uint64_t bytes,
                          enum qcow2_use use, uint64_t times, const char *what);
/* Reports that what is at the offset goes on past the end of the file. */
void qcow2_check_past_end(struct qcow2_check *check, uint64_t offset, const char *what);
bool qcow2_check_add_table(struct qcow2_check *check, uint64_t offset, uint64_t bytes,
                           const char *what);

/*
 * Counts what the active L1 table and those of the snapshots lead to; fills the allocation figures.
 */
int qcow2_check_l1_tables(struct qcow2_check *check, struct blk_error *err);

/*
 * header.c: finds what keeps QEMU from opening the image, or makes programs disagree about it.
 * _mend removes that, where nothing is lost by it.
 */
void qcow2_check_header(struct qcow2_check *check);
int qcow2_mend_header(struct qcow2_check *check, struct blk_error *err);

/*
 * bitmaps.c: counts the references that bitmaps make. _mend removes the bitmaps that cannot be, and
 * the others too where the directory cannot be read; nothing is freed.
 */
int qcow2_check_bitmaps(struct qcow2_check *check, struct blk_error *err);
int qcow2_mend_bitmaps(struct qcow2_check *check, struct blk_error *err);

/*
 * collect.c: fills refs and uses, and the allocation figures of the active table. The refcount
 * table and blocks themselves count too, unless what is wanted is what a new refcount structure has
 * to say.
 */
int qcow2_check_collect(struct qcow2_check *check, bool refcount_structure, struct blk_error *err);

/*
 * counts.c: finds leaks and counts that are too low. Sets counts_differ, counts_low and
 * image_end_offset. _stored_count is the image's count of a cluster, or the number of references
 * where the counts are broken.
 */
int qcow2_check_compare(struct qcow2_check *check, struct blk_error *err);
int qcow2_check_stored_count(const struct qcow2_check *check, uint64_t cluster, uint64_t *count,
                             struct blk_error *err);

/*
 * entries.c: finds wrong entries in the active L1 and its L2 tables; COPIED is compared with the
 * counts that are stored. MEND_CLEAR removes what must not be set (safe at any time), MEND_SET adds
 * COPIED where the count is 1 (only after the counts are as right as they will be).
 */
enum qcow2_mend { QCOW2_MEND_NOTHING, QCOW2_MEND_CLEAR, QCOW2_MEND_SET };
int qcow2_check_entries(struct qcow2_check *check, enum qcow2_mend mend, struct blk_error *err);

/*
 * repair.c: makes the counts right: all of them, or only those that are too high. Neither frees
 * anything if incomplete. The file does not grow if guest data is lost past its end.
 */
int qcow2_repair_counts(struct qcow2_check *check, struct blk_error *err);
int qcow2_repair_leaks(struct qcow2_check *check, struct blk_error *err);

#endif
