/* SPDX-License-Identifier: MIT */
/*
 * Checking and repairing a qcow2 image.
 *
 *   check.c     the order of the steps; the result
 *   report.c    findings: all are counted, and listed up to a limit for each kind
 *   lost.c      guest data that can no longer be reached
 *   header.c    contradictions in the header and its extensions
 *   tables.c    reads L2 tables
 *   uses.c      counts references to host clusters
 *   refs.c      follows the L1 tables
 *   bitmaps.c   the same for bitmaps, and removes those that keep QEMU from opening the image
 *   collect.c   the references of all structures of the image
 *   counts.c    compares them with the stored refcounts
 *   entries.c   finds and mends wrong L1 and L2 entries: COPIED, reserved bits, lost data
 *   repair.c    a new refcount structure from the references, switched to by one header sector
 *
 * Memory: two bits for each cluster of the file, and a byte more for those near one that is referred
 * to several times (uses.c).
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
 * For open, when an image with the dirty bit is opened for writing: makes the counts right and
 * clears the bit.
 */
int qcow2_repair_dirty(struct blk_node *node, struct blk_error *err);

/* ---- inside a check ---- */

/*
 * What a cluster holds. Data and L2 tables may be shared by snapshots; everything else is used
 * once. OTHER is also a cluster that is used for two different things.
 */
enum qcow2_use { QCOW2_USE_NONE, QCOW2_USE_DATA, QCOW2_USE_L2, QCOW2_USE_OTHER };

/* Why guest data cannot be reached. */
enum qcow2_loss {
    QCOW2_LOSS_NONE,
    QCOW2_LOSS_PAST_END,   /* the file is too short */
    QCOW2_LOSS_DATA_FILE,  /* the data file is too short */
    QCOW2_LOSS_OFFSET,     /* no cluster can begin there */
    QCOW2_LOSS_OTHER_DATA, /* mapped to another offset of the data file than the guest's */
    QCOW2_LOSS_COMPRESSED, /* compressed, in an image with a data file */
    QCOW2_LOSS_SUBCLUSTER, /* subclusters without a cluster, or both allocated and zero */
    QCOW2_LOSS_ZERO_FLAG,  /* the zero flag in version 2, which has none */
    QCOW2_LOSS_L2_TABLE,   /* no L2 table can be at that offset */
    QCOW2_LOSS_L2_CUT,     /* the file ends inside the L2 table */
};

/* A guest range that is lost for one reason and not reported yet; bytes 0: none. */
struct qcow2_lost {
    enum qcow2_loss loss;
    uint64_t offset, bytes;
};

/* Findings of one kind: their texts differ only in numbers and names. */
#define QCOW2_MAX_FINDING_KINDS 64
struct qcow2_findings {
    const char *text;
    uint64_t count;
};

struct qcow2_check {
    struct blk_node *node;
    struct blk_check *result;
    uint64_t clusters;         /* of the file, the last one rounded up */
    uint8_t *uses;             /* enum qcow2_use, four to a byte */
    struct qcow2_extra *extra; /* references beyond the first */
    unsigned order;            /* of the image's counts: the most that is counted */
    bool no_memory;            /* references were not counted for lack of memory */
    bool shared;               /* a cluster has more than one reference */
    bool odd_entries;   /* an active entry may be wrong, or lacks COPIED: only a look can tell */
    bool l1_usable;     /* the active L1 lies where nothing else does */
    bool broken_counts; /* refcount table or blocks are unusable: only a rebuild helps */
    bool overflow;      /* a cluster has more references than the width can count */
    bool incomplete;    /* some entry could not be followed: what seems leaked may be in use */
    bool tangled;       /* tables overlap, so some of them were not followed */
    bool past_end;      /* guest data lies past the end: a longer file would show it as zeroes */
    bool counts_differ; /* some count is not the number of references */
    bool counts_low;    /* some count is below it */
    bool announce;      /* only lists the differences that are about to be repaired */
    bool may_raise;     /* the repair may raise counts: it is not of leaks alone */
    bool lost_active;   /* the disk itself has lost data, not only snapshots */
    bool discard_lost;  /* lost guest data is given up: mending makes it zeroes */
    const char *walked_snapshot; /* whose tables are being walked; NULL: the active ones */
    uint64_t walked_bytes;       /* size of its disk; no limit if VM state lies behind it */
    struct qcow2_lost lost;
    struct qcow2_findings findings[QCOW2_MAX_FINDING_KINDS];
    bool mend_header; /* the header or an extension has errors that a repair can remove */
    bool mend_extensions;
    bool mend_snapshots; /* entries of the snapshot table lack fields, or there is too much in it */
    bool drop_excess;    /* leaves out the snapshots that are too many */
    bool mend_bitmaps;   /* the bitmap directory has entries that nobody can use */
};

/*
 * report.c: reports a finding, and counts it as a corruption or a leak; a note is not counted.
 * `text` is a literal, and its address identifies the kind: only some of each kind are listed, and
 * at the end the number of the others.
 */
void qcow2_check_corruption(struct qcow2_check *check, const char *text, ...) BLK_PRINTF(2, 3);
void qcow2_check_leak(struct qcow2_check *check, uint64_t clusters, const char *text, ...)
    BLK_PRINTF(3, 4);
void qcow2_check_note(struct qcow2_check *check, const char *text, ...) BLK_PRINTF(2, 3);
void qcow2_check_report_rest(struct qcow2_check *check);

/*
 * lost.c: _loss says why the guest cluster at `guest`, which the entry maps, cannot be reached.
 * _lost counts one corruption and the lost bytes; the range is reported when the next one does not
 * continue it, or by _lost_end. _discarded returns the entry that replaces a lost one, or the same
 * entry if none can. _cut_entry is the index of the first entry of the L2 table at `l2` that is not
 * wholly in the file, or the number of entries; _given_up returns the entry that replaces such a
 * one.
 */
enum qcow2_loss qcow2_check_loss(const struct qcow2_check *check, struct qcow2_entry entry,
                                 uint64_t guest);
void qcow2_check_lost(struct qcow2_check *check, uint64_t guest, uint64_t bytes,
                      enum qcow2_loss loss);
void qcow2_check_lost_end(struct qcow2_check *check);
struct qcow2_entry qcow2_check_discarded(const struct qcow2_check *check, struct qcow2_entry entry,
                                         enum qcow2_loss loss, uint64_t guest);

uint64_t qcow2_check_cut_entry(const struct qcow2_check *check, uint64_t l2);
/*
 * _plain_end is the end of the clusters that the file has whole, as far as that matters: an entry
 * that maps one of those and has no flag but COPIED loses nothing. 0 if that does not hold for the
 * entries of this image.
 */
uint64_t qcow2_check_plain_end(const struct qcow2_check *check);
struct qcow2_entry qcow2_check_given_up(const struct qcow2_check *check);

static inline enum qcow2_use qcow2_check_use(const struct qcow2_check *check, uint64_t cluster)
{
    return (enum qcow2_use)(check->uses[cluster / 4] >> (cluster % 4 * 2) & 3);
}

/* Whether the L2 entry maps a cluster below `end`, see _plain_end, and has no flag but COPIED. */
static inline bool qcow2_check_is_plain(uint64_t entry, uint32_t cluster_bytes, uint64_t end)
{
    uint64_t offset = entry & ~QCOW2_ENTRY_COPIED;
    return offset && offset < end && !(offset & (cluster_bytes - 1));
}

/* L2 tables that lie one after the other are read together (tables.c). */
struct qcow2_check_tables {
    struct qcow2_check *check;
    uint8_t *buf;
    uint64_t room;          /* bytes of buf */
    uint64_t offset, bytes; /* what is in it */
    uint64_t row;           /* bytes of tables in a row, up to the last one asked for */
};

int qcow2_check_tables_begin(struct qcow2_check *check, struct qcow2_check_tables *tables,
                             struct blk_error *err);
/* The table at `offset`. It may be changed, and is valid up to the next call. */
int qcow2_check_tables_get(struct qcow2_check_tables *tables, uint64_t offset, uint8_t **table,
                           struct blk_error *err);
void qcow2_check_tables_end(struct qcow2_check_tables *tables);

/* uses.c: begins a check with empty arrays for the file as it is now; frees them. */
int qcow2_check_begin(struct qcow2_check *check, struct blk_node *node, struct blk_check *result,
                      struct blk_error *err);
void qcow2_check_end(struct qcow2_check *check);

/* The references to the cluster that were found; 0 past the end of the file. */
uint64_t qcow2_check_refs(const struct qcow2_check *check, uint64_t cluster);
/*
 * Of the clusters from `first` on, a multiple of 4: whether none is referred to; the references as
 * a refcount block of the image holds them.
 */
bool qcow2_check_is_unused(const struct qcow2_check *check, uint64_t first, uint64_t clusters);
void qcow2_check_write_counts(const struct qcow2_check *check, uint64_t first, uint64_t clusters,
                              uint8_t *counts);
/* The first cluster at or behind `from` that holds an L2 table; the number of clusters: none. */
uint64_t qcow2_check_next_l2(const struct qcow2_check *check, uint64_t from);
/*
 * Adds `times` references to one cluster of the file. False if that contradicts what it is used for
 * already. _data does so for a row of data clusters, and reports contradictions.
 */
bool qcow2_check_add_one(struct qcow2_check *check, uint64_t cluster, enum qcow2_use use,
                         uint64_t times);
void qcow2_check_add_data(struct qcow2_check *check, uint64_t first, uint64_t clusters,
                          uint64_t times);

/*
 * refs.c: counts `times` references to all clusters that the range touches; one past the end of the
 * file is corruption. False if anything was wrong, which has then been reported. _table is for
 * structures that nothing else may share: if it fails, the caller does not follow what the table
 * says.
 */
bool qcow2_check_add_refs(struct qcow2_check *check, uint64_t offset, uint64_t bytes,
                          enum qcow2_use use, uint64_t times, const char *what);
/* report.c: reports that `what` overlaps something else in that cluster. */
void qcow2_check_overlapping(struct qcow2_check *check, uint64_t cluster, const char *what);
/* Reports that `what`, at the offset, extends past the end of the file. */
void qcow2_check_past_end(struct qcow2_check *check, uint64_t offset, const char *what);
bool qcow2_check_add_table(struct qcow2_check *check, uint64_t offset, uint64_t bytes,
                           const char *what);

/*
 * Counts the references of the active L1 table and of those of the snapshots, and of all that they
 * lead to; fills the allocation figures.
 */
int qcow2_check_l1_tables(struct qcow2_check *check, struct blk_error *err);

/*
 * header.c: finds what keeps QEMU from opening the image, or makes programs disagree about it.
 * _mend removes it where that loses nothing.
 */
void qcow2_check_header(struct qcow2_check *check);
int qcow2_mend_header(struct qcow2_check *check, struct blk_error *err);

/*
 * bitmaps.c: counts the references that bitmaps make. _mend removes the invalid bitmaps, or all if
 * the directory cannot be read; it frees nothing.
 */
int qcow2_check_bitmaps(struct qcow2_check *check, struct blk_error *err);
int qcow2_mend_bitmaps(struct qcow2_check *check, struct blk_error *err);

/*
 * collect.c: fills refs and uses, and the allocation figures of the active table. With
 * `refcount_structure` the refcount table and its blocks count, too; without it for a new structure
 * that is to replace them.
 */
int qcow2_check_collect(struct qcow2_check *check, bool refcount_structure, struct blk_error *err);

/*
 * counts.c: finds leaks and counts that are too low. Sets counts_differ, counts_low and
 * image_end_offset. _stored_count is the image's count of a cluster, or the number of references if
 * the counts are broken.
 */
int qcow2_check_compare(struct qcow2_check *check, struct blk_error *err);
int qcow2_check_stored_count(const struct qcow2_check *check, uint64_t cluster, uint64_t *count,
                             struct blk_error *err);

/*
 * entries.c: finds wrong entries in the active L1 and its L2 tables; COPIED is compared with the
 * stored counts. MEND_CLEAR removes what must not be set (safe at any time), MEND_SET adds COPIED
 * where the count is 1 (only after the counts have been repaired as far as they can be).
 */
enum qcow2_mend { QCOW2_MEND_NOTHING, QCOW2_MEND_CLEAR, QCOW2_MEND_SET };
int qcow2_check_entries(struct qcow2_check *check, enum qcow2_mend mend, struct blk_error *err);

/*
 * repair.c: makes the counts right: all of them, or only those that are too high. Neither frees
 * anything if the check is incomplete. The file does not grow if guest data is lost past its end.
 */
int qcow2_repair_counts(struct qcow2_check *check, struct blk_error *err);
int qcow2_repair_leaks(struct qcow2_check *check, struct blk_error *err);

#endif
