/* SPDX-License-Identifier: MIT */
/*
 * The entries of the active L1 table and its L2 tables. What an entry should be follows from the
 * entry itself and the number of references to what it points to. In the tables of snapshots
 * nothing is changed but entries whose lost data is given up.
 *
 * Mending is done in place, sector by sector, in two passes. Removing COPIED or a reserved bit is
 * safe whatever else the image says; setting COPIED is safe once the refcounts on the medium are
 * right. So neither needs the other tables to change in the same instant.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/snapshot/snapshot.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/map.h"

struct pass {
    struct qcow2_check *check;
    enum qcow2_mend mend;
    bool is_snapshot; /* COPIED has no meaning there, and other errors are left alone */
    uint8_t *seen;    /* one bit for each cluster: the L2 tables already gone over */
};

/*
 * Whether the entry that points to that cluster should have COPIED. A look goes by the stored
 * count, as every reader does; a count that is too low has been reported, and COPIED is then not
 * judged. Mending goes by what the count will be: the number of references, unless nothing is
 * freed.
 */
static int is_alone(const struct pass *pass, uint64_t entry, uint64_t cluster, bool *alone,
                    struct blk_error *err)
{
    uint64_t refs = qcow2_check_refs(pass->check, cluster), stored;

    int ret = qcow2_check_stored_count(pass->check, cluster, &stored, err);
    *alone = refs == 1 && !(pass->check->incomplete && stored > 1);
    if (pass->mend == QCOW2_MEND_NOTHING)
        *alone = stored < refs ? entry & QCOW2_ENTRY_COPIED : stored == 1;
    else if (pass->check->incomplete && pass->check->broken_counts && refs == 1)
        *alone = entry & QCOW2_ENTRY_COPIED; /* nobody knows */
    return ret;
}

static int with_copied(const struct pass *pass, uint64_t entry, uint64_t *right,
                       struct blk_error *err)
{
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;
    bool alone = false;

    int ret =
        is_alone(pass, entry, offset / qcow2_state(pass->check->node)->cluster_bytes, &alone, err);
    *right = alone ? entry | QCOW2_ENTRY_COPIED : entry & ~QCOW2_ENTRY_COPIED;
    return ret;
}

/* The L1 entry as it should be. One that leads nowhere is lost: it stays unless it is given up. */
static int right_l1(const struct pass *pass, uint64_t entry, uint64_t *right, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(pass->check->node);
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;

    *right = pass->is_snapshot ? entry : entry & ~QCOW2_L1_RESERVED;
    if (!offset) {
        *right &= pass->is_snapshot ? UINT64_MAX : ~QCOW2_ENTRY_COPIED;
        return 0;
    }
    if (offset % s->cluster_bytes == 0 && offset / s->cluster_bytes < pass->check->clusters)
        return pass->is_snapshot ? 0 : with_copied(pass, *right, right, err);
    if (pass->check->discard_lost && !s->tail.backing_name)
        *right = 0;
    return 0;
}

/* The L2 entry as it should be; it maps the guest cluster at `guest`. */
static int right_l2(const struct pass *pass, struct qcow2_entry entry, uint64_t guest,
                    struct qcow2_entry *right, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(pass->check->node);
    enum qcow2_loss loss = qcow2_check_loss(pass->check, entry, guest);

    *right = entry;
    if (loss != QCOW2_LOSS_NONE && pass->check->discard_lost)
        *right = qcow2_check_discarded(pass->check, entry, loss, guest);
    if (loss != QCOW2_LOSS_NONE || pass->is_snapshot)
        return 0;
    if (entry.entry & QCOW2_ENTRY_COMPRESSED) {
        *right = (struct qcow2_entry){ .entry = entry.entry & ~QCOW2_ENTRY_COPIED };
        return 0;
    }
    right->entry &= ~(QCOW2_L2_RESERVED | (s->extended ? QCOW2_ENTRY_ZERO : 0));
    if (s->data_file) {
        if (qcow2_entry_has_host(s, entry))
            right->entry |= QCOW2_ENTRY_COPIED;
        return 0;
    }
    if (entry.entry & QCOW2_ENTRY_OFFSET)
        return with_copied(pass, right->entry, &right->entry, err);
    right->entry &= ~QCOW2_ENTRY_COPIED;
    return 0;
}

/* Whether this pass may change `word` into `right`. */
static bool may_mend(enum qcow2_mend mend, uint64_t word, uint64_t right, bool may_be_flag)
{
    bool only_sets_copied =
        may_be_flag && (word ^ right) == QCOW2_ENTRY_COPIED && right & QCOW2_ENTRY_COPIED;
    return mend != QCOW2_MEND_NOTHING && only_sets_copied == (mend == QCOW2_MEND_SET);
}

/*
 * The end of the clusters whose entries need no closer look than has_right_flag() takes; 0: none.
 * Where something is not understood, or counts are wrong, only is_alone() can tell.
 */
static uint64_t plain_end_of_pass(const struct pass *pass)
{
    const struct qcow2_check *check = pass->check;

    if (pass->is_snapshot || check->incomplete || check->broken_counts ||
        (pass->mend == QCOW2_MEND_NOTHING && check->counts_differ))
        return 0;
    return qcow2_check_plain_end(check);
}

/* Whether an entry for one of these clusters is right: COPIED says that nothing else uses it. */
static bool has_right_flag(const struct pass *pass, uint64_t entry)
{
    const struct qcow2_state *s = qcow2_state(pass->check->node);
    uint64_t cluster = (entry & QCOW2_ENTRY_OFFSET) >> s->cluster_bits;
    bool copied = entry & QCOW2_ENTRY_COPIED;
    return copied == (qcow2_check_refs(pass->check, cluster) == 1);
}

/* A table that is gone over. */
struct table {
    uint64_t offset; /* in the file */
    uint8_t *buf;    /* whole sectors */
    uint64_t bytes;
    bool is_l1;
    uint64_t changed_start, changed_end;
};

/* Reports a wrong COPIED flag, as found or as about to be mended. */
static int report_copied(const struct pass *pass, const struct table *table, uint64_t at,
                         uint64_t word, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(pass->check->node);
    uint64_t entry = word, index = at / 8, count;
    uint64_t stored = 0;
    int ret = 0;

    if (pass->mend == QCOW2_MEND_NOTHING)
        ret = qcow2_check_stored_count(pass->check, (word & QCOW2_ENTRY_OFFSET) / s->cluster_bytes,
                                       &stored, err);
    else
        stored = qcow2_check_refs(pass->check, (word & QCOW2_ENTRY_OFFSET) / s->cluster_bytes);
    count = stored;
    if (pass->mend != QCOW2_MEND_NOTHING && table->is_l1)
        qcow2_check_note(pass->check,
                         "Repairing OFLAG_COPIED L2 cluster: l1_index=%" PRIu64 " l1_entry=%" PRIx64
                         " refcount=%" PRIu64,
                         index, entry, count);
    else if (pass->mend != QCOW2_MEND_NOTHING)
        qcow2_check_note(pass->check,
                         "Repairing OFLAG_COPIED data cluster: l2_entry=%" PRIx64
                         " refcount=%" PRIu64,
                         entry, count);
    else if (table->is_l1)
        qcow2_check_corruption(pass->check,
                               "OFLAG_COPIED L2 cluster: l1_index=%" PRIu64 " l1_entry=%" PRIx64
                               " refcount=%" PRIu64,
                               index, entry, count);
    else
        qcow2_check_corruption(pass->check,
                               "OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64,
                               entry, count);
    return ret;
}

/*
 * Compares a word of an entry (the first has the COPIED flag) with what it should be, and mends it
 * if the pass may.
 */
static int do_word(const struct pass *pass, struct table *table, uint64_t at, uint64_t right,
                   bool is_first, struct blk_error *err)
{
    uint64_t word = be64_get(table->buf + at);
    bool is_copied = is_first && (word ^ right) == QCOW2_ENTRY_COPIED;
    int ret = 0;

    if (word == right)
        return 0;
    if (pass->mend == QCOW2_MEND_NOTHING && !is_copied)
        qcow2_check_corruption(pass->check,
                               "%s entry at offset 0x%" PRIx64 " is 0x%016" PRIx64
                               " and should be 0x%016" PRIx64,
                               table->is_l1 ? "L1" : "L2", table->offset + at, word, right);
    bool mends = may_mend(pass->mend, word, right, is_first);
    if (is_copied && (mends || pass->mend == QCOW2_MEND_NOTHING))
        ret = report_copied(pass, table, at, word, err);
    if (!mends)
        return ret;
    be64_put(table->buf + at, right);
    table->changed_start = u64_min(table->changed_start, round_down(at, BLK_SECTOR_BYTES));
    table->changed_end = round_down(at, BLK_SECTOR_BYTES) + BLK_SECTOR_BYTES;
    return ret;
}

static int write_changes(const struct pass *pass, const struct table *table, struct blk_error *err)
{
    if (table->changed_start >= table->changed_end)
        return 0;
    return blk_child_pwrite(qcow2_file(pass->check->node), table->offset + table->changed_start,
                            table->changed_end - table->changed_start,
                            table->buf + table->changed_start, 0, err);
}

/*
 * A table that the end of the file cuts off is written whole, or not at all: a longer file would
 * show zeroes where entries are missing.
 */
static bool may_complete(const struct qcow2_check *check)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    return check->discard_lost && (s->header.version >= 3 || !s->tail.backing_name);
}

/* Gives up what the entries from `first` on mapped. */
static void complete(const struct pass *pass, struct table *table, uint64_t first)
{
    const struct qcow2_state *s = qcow2_state(pass->check->node);
    struct qcow2_entry entry = qcow2_check_given_up(pass->check);
    uint64_t at = first * s->l2_entry_bytes;

    table->changed_start = u64_min(table->changed_start, round_down(at, BLK_SECTOR_BYTES));
    table->changed_end = s->cluster_bytes;
    for (; at < s->cluster_bytes; at += s->l2_entry_bytes) {
        be64_put(table->buf + at, entry.entry);
        if (s->extended)
            be64_put(table->buf + at + 8, entry.bitmap);
    }
}

/* The L2 table that maps the guest from `guest` on. */
static int do_l2(const struct pass *pass, struct qcow2_check_tables *tables, uint64_t offset,
                 uint64_t guest, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(pass->check->node);
    struct table table = { offset, NULL, s->cluster_bytes, false, s->cluster_bytes, 0 };
    uint64_t plain_end = plain_end_of_pass(pass);
    uint64_t there = qcow2_check_cut_entry(pass->check, offset);

    if (there < s->l2_entries && pass->mend != QCOW2_MEND_NOTHING && !may_complete(pass->check))
        return 0;
    int ret = qcow2_check_tables_get(tables, offset, &table.buf, err);
    for (uint32_t i = 0; i < there && ret == 0; i++) {
        uint64_t at = (uint64_t)i * s->l2_entry_bytes;
        struct qcow2_entry entry = qcow2_entry_get(s, table.buf, i), right;
        if (qcow2_check_is_plain(entry.entry, s->cluster_bytes, plain_end) &&
            has_right_flag(pass, entry.entry))
            continue;
        ret = right_l2(pass, entry, guest + (uint64_t)i * s->cluster_bytes, &right, err);
        if (ret == 0)
            ret = do_word(pass, &table, at, right.entry, true, err);
        if (ret == 0 && s->extended)
            ret = do_word(pass, &table, at + 8, right.bitmap, false, err);
    }
    if (ret == 0 && there < s->l2_entries && pass->mend != QCOW2_MEND_NOTHING)
        complete(pass, &table, there);
    return ret < 0 ? ret : write_changes(pass, &table, err);
}

static int do_l1(const struct pass *pass, uint64_t offset, uint8_t *buf, uint64_t bytes,
                 struct blk_error *err)
{
    struct table table = { offset, buf, bytes, true, UINT64_MAX, 0 };
    int ret = 0;

    for (uint64_t at = 0; at < bytes && ret == 0; at += 8) {
        uint64_t right;
        ret = right_l1(pass, be64_get(buf + at), &right, err);
        if (ret == 0)
            ret = do_word(pass, &table, at, right, true, err);
    }
    return ret < 0 ? ret : write_changes(pass, &table, err);
}

/*
 * False for a table at an impossible place, or one taken by something else: that has been reported,
 * and there is nothing to mend.
 */
static bool can_look(const struct qcow2_check *check, uint64_t l2)
{
    uint64_t cluster = l2 / qcow2_state(check->node)->cluster_bytes;
    return l2 && l2 % qcow2_state(check->node)->cluster_bytes == 0 && cluster < check->clusters &&
           qcow2_check_use(check, cluster) == QCOW2_USE_L2;
}

/* Whether nothing else is known to lie where an L1 table does. */
static bool is_l1_alone(const struct qcow2_check *check, uint64_t offset, uint64_t bytes)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t first = offset / s->cluster_bytes;
    uint64_t clusters = div_round_up(bytes, s->cluster_bytes);

    for (uint64_t i = first; i < first + clusters; i++)
        if (qcow2_check_refs(check, i) != 1)
            return false;
    return true;
}

/*
 * Nothing is written where two structures overlap: one of them may be guest data. While tables
 * overlap, or counts are too narrow to tell, that may be anywhere.
 */
static bool may_mend_entries(struct qcow2_check *check, enum qcow2_mend mend)
{
    if (mend == QCOW2_MEND_NOTHING || !(check->tangled || check->overflow))
        return true;
    if (mend == QCOW2_MEND_CLEAR)
        qcow2_check_note(check, "The tables are left as they are: structures overlap, and a repair "
                                "could overwrite guest data");
    return false;
}

/* An L1 table, and the L2 tables that it leads to. */
static int do_tables(const struct pass *pass, uint64_t l1_offset, uint64_t entries,
                     struct blk_error *err)
{
    struct qcow2_check *check = pass->check;
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t bytes = entries * 8;
    BLK_AUTOFREE uint8_t *l1 = calloc(1, round_up(bytes, BLK_SECTOR_BYTES));
    struct qcow2_check_tables tables;
    if (!l1)
        return blk_fail(err, ENOMEM, "checking '%s'", check->node->name);

    int ret = qcow2_check_tables_begin(check, &tables, err);
    if (ret == 0)
        ret = blk_child_pread(qcow2_file(check->node), l1_offset, bytes, l1, err);
    for (uint64_t i = 0; i < entries && ret == 0; i++) {
        uint64_t l2 = be64_get(l1 + i * 8) & QCOW2_ENTRY_OFFSET;
        uint64_t cluster = l2 / s->cluster_bytes;
        if (!can_look(check, l2) || pass->seen[cluster / 8] >> cluster % 8 & 1)
            continue;
        pass->seen[cluster / 8] |= (uint8_t)(1u << cluster % 8);
        ret = do_l2(pass, &tables, l2, i * s->l2_entries * s->cluster_bytes, err);
    }
    qcow2_check_tables_end(&tables);
    if (ret == 0 && (pass->mend == QCOW2_MEND_NOTHING || is_l1_alone(check, l1_offset, bytes)))
        ret = do_l1(pass, l1_offset, l1, bytes, err);
    return ret;
}

/* A snapshot whose L1 table cannot be read has been reported, and is left alone. */
static int do_snapshot(void *opaque, const struct qcow2_snapshot *snapshot, struct blk_error *err)
{
    const struct pass *pass = opaque;
    const struct blk_node *node = pass->check->node;
    uint64_t bytes = snapshot->l1_entries * UINT64_C(8);

    if (!bytes || bytes > QCOW2_MAX_L1_BYTES ||
        snapshot->l1_offset % qcow2_state(node)->cluster_bytes ||
        !range_within(snapshot->l1_offset, bytes, blk_size(qcow2_file(node))))
        return 0;
    return do_tables(pass, snapshot->l1_offset, snapshot->l1_entries, err);
}

/* Gives up what is lost in snapshots only. */
static int give_up_in_snapshots(struct pass *pass, struct blk_error *err)
{
    struct blk_error why = BLK_ERROR_INIT;

    pass->is_snapshot = true;
    int ret = qcow2_snapshot_table_walk(pass->check->node, do_snapshot, pass, NULL, &why);
    if (ret == -EINVAL || ret == -EFBIG) {
        blk_error_clear(&why); /* the table is damaged: already reported */
        return 0;
    }
    if (ret < 0 && err)
        *err = why;
    return ret;
}

int qcow2_check_entries(struct qcow2_check *check, enum qcow2_mend mend, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);

    if (!check->l1_usable || !may_mend_entries(check, mend))
        return 0;
    /* An L2 table that two entries share is gone over once: a second time would find the same. */
    BLK_AUTOFREE uint8_t *seen = calloc(1, check->clusters / 8 + 1);
    if (!seen)
        return blk_fail(err, ENOMEM, "checking '%s'", check->node->name);
    struct pass pass = { .check = check, .mend = mend, .seen = seen };

    int ret = do_tables(&pass, s->header.l1_offset, s->header.l1_entries, err);
    if (ret == 0 && check->discard_lost && mend == QCOW2_MEND_CLEAR)
        ret = give_up_in_snapshots(&pass, err);
    return ret;
}
