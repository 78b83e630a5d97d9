/*
 * The entries of the active L1 table and its L2 tables: what an entry should be follows from the
 * entry itself and the number of references to what it points to.
 *
 * Mending is done in place, sector by sector, in two passes. Removing COPIED or a reserved bit is
 * safe whatever else the image says; setting COPIED is safe once the refcounts on the medium are
 * right. So neither needs the other tables to change in the same instant.
 */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/memory.h"
#include "drivers/qcow2/check.h"

struct pass {
    struct qcow2_check *check;
    enum qcow2_mend mend;
};

static uint64_t with_copied(const struct qcow2_check *check, uint64_t entry, uint64_t offset)
{
    uint64_t refs = qcow2_check_refs(check, offset / qcow2_state(check->node)->cluster_bytes);
    return refs == 1 ? entry | QCOW2_ENTRY_COPIED : entry & ~QCOW2_ENTRY_COPIED;
}

/* An L1 entry as it should be. */
static uint64_t right_l1(const struct qcow2_check *check, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;
    uint64_t right = entry & ~QCOW2_L1_RESERVED;
    return offset ? with_copied(check, right, offset) : right & ~QCOW2_ENTRY_COPIED;
}

/*
 * What stands for a cluster that cannot exist: it reads as zeroes. In version 2 that takes an image
 * without a backing file.
 */
static struct qcow2_entry lost_cluster(const struct qcow2_check *check, struct qcow2_entry entry)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t allocated = entry.bitmap & QCOW2_SUBCLUSTERS_ALL_ALLOCATED;

    if (s->extended)
        return (struct qcow2_entry){
            .bitmap = (entry.bitmap & QCOW2_SUBCLUSTERS_ALL_ZERO) | allocated << QCOW2_SUBCLUSTERS,
        };
    if (s->header.version >= 3)
        return (struct qcow2_entry){ .entry = QCOW2_ENTRY_ZERO };
    return s->tail.backing_name ? entry : (struct qcow2_entry){ .entry = 0 };
}

/* Subclusters cannot be allocated and zero at once (data wins), nor allocated in no cluster. */
static uint64_t right_bitmap(uint64_t bitmap, bool has_host)
{
    uint64_t allocated = bitmap & QCOW2_SUBCLUSTERS_ALL_ALLOCATED;

    if (has_host)
        return bitmap & ~(allocated << QCOW2_SUBCLUSTERS);
    return (bitmap & QCOW2_SUBCLUSTERS_ALL_ZERO) | allocated << QCOW2_SUBCLUSTERS;
}

/* An L2 entry as it should be; it maps the guest cluster at `guest`. */
static struct qcow2_entry right_l2(const struct qcow2_check *check, struct qcow2_entry entry,
                                   uint64_t guest)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = entry.entry & QCOW2_ENTRY_OFFSET;
    uint64_t reserved = QCOW2_L2_RESERVED;
    struct qcow2_entry right = entry;

    if (entry.entry & QCOW2_ENTRY_COMPRESSED) {
        if (!s->data_file)
            right = (struct qcow2_entry){ .entry = entry.entry & ~QCOW2_ENTRY_COPIED };
        return right;
    }
    if (s->extended || s->header.version < 3)
        reserved |= QCOW2_ENTRY_ZERO;
    right.entry &= ~reserved;

    if (s->data_file) {
        bool has_host = offset || entry.entry & QCOW2_ENTRY_COPIED;
        if (has_host)
            right.entry = (right.entry & ~QCOW2_ENTRY_OFFSET) | guest | QCOW2_ENTRY_COPIED;
        right.bitmap = right_bitmap(entry.bitmap, has_host);
        return right;
    }
    if (offset % s->cluster_bytes || offset / s->cluster_bytes >= check->clusters)
        return lost_cluster(check, right);
    right.bitmap = right_bitmap(entry.bitmap, offset);
    right.entry = offset ? with_copied(check, right.entry, offset)
                         : right.entry & ~QCOW2_ENTRY_COPIED;
    return right;
}

/* Whether this pass may change `word` into `right`. */
static bool may_mend(enum qcow2_mend mend, uint64_t word, uint64_t right, bool may_be_flag)
{
    bool only_sets_copied = may_be_flag && (word ^ right) == QCOW2_ENTRY_COPIED &&
                            right & QCOW2_ENTRY_COPIED;
    return mend != QCOW2_MEND_NOTHING && only_sets_copied == (mend == QCOW2_MEND_SET);
}

/* A table that is gone over. */
struct table {
    uint64_t offset; /* in the file */
    uint8_t *buf;    /* whole sectors */
    uint64_t bytes;
    const char *name;
    uint64_t changed_start, changed_end;
};

/*
 * Compares a word of an entry (the first has the COPIED flag) with what it should be, and mends it
 * if the pass may.
 */
static void do_word(const struct pass *pass, struct table *table, uint64_t at, uint64_t right,
                    bool is_first)
{
    uint64_t word = be64_get(table->buf + at);
    if (word == right)
        return;
    if (pass->mend == QCOW2_MEND_NOTHING)
        qcow2_check_corruption(pass->check, "%s entry 0x%016llx at offset 0x%llx should be "
                               "0x%016llx", table->name, (unsigned long long)word,
                               (unsigned long long)(table->offset + at), (unsigned long long)right);
    if (!may_mend(pass->mend, word, right, is_first))
        return;
    be64_put(table->buf + at, right);
    table->changed_start = u64_min(table->changed_start, round_down(at, BLK_SECTOR_BYTES));
    table->changed_end = round_down(at, BLK_SECTOR_BYTES) + BLK_SECTOR_BYTES;
}

static int write_changes(const struct pass *pass, const struct table *table, struct blk_error *err)
{
    if (table->changed_start >= table->changed_end)
        return 0;
    return blk_child_pwrite(qcow2_file(pass->check->node), table->offset + table->changed_start,
                            table->changed_end - table->changed_start,
                            table->buf + table->changed_start, 0, err);
}

/* The L2 table that maps the guest from `guest` on. */
static int do_l2(const struct pass *pass, uint64_t offset, uint64_t guest, uint8_t *buf,
                 struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(pass->check->node);
    struct table table = { offset, buf, s->cluster_bytes, "L2", s->cluster_bytes, 0 };

    int ret = blk_child_pread(qcow2_file(pass->check->node), offset, s->cluster_bytes, buf, err);
    if (ret < 0)
        return ret;
    for (uint32_t i = 0; i < s->l2_entries; i++) {
        struct qcow2_entry right = right_l2(pass->check, qcow2_entry_get(s, buf, i),
                                            guest + (uint64_t)i * s->cluster_bytes);
        uint64_t at = (uint64_t)i * s->l2_entry_bytes;
        do_word(pass, &table, at, right.entry, true);
        if (s->extended)
            do_word(pass, &table, at + 8, right.bitmap, false);
    }
    return write_changes(pass, &table, err);
}

static int do_l1(const struct pass *pass, uint64_t offset, uint8_t *buf, uint64_t bytes,
                 struct blk_error *err)
{
    struct table table = { offset, buf, bytes, "L1", UINT64_MAX, 0 };

    for (uint64_t at = 0; at < bytes; at += 8)
        do_word(pass, &table, at, right_l1(pass->check, be64_get(buf + at)), true);
    return write_changes(pass, &table, err);
}

/*
 * A table whose place is impossible or taken by something else: said already, and nothing to mend.
 */
static bool can_look(const struct qcow2_check *check, uint64_t l2)
{
    uint64_t cluster = l2 / qcow2_state(check->node)->cluster_bytes;
    return l2 && l2 % qcow2_state(check->node)->cluster_bytes == 0 && cluster < check->clusters &&
           qcow2_check_use(check, cluster) == QCOW2_USE_L2;
}

int qcow2_check_entries(struct qcow2_check *check, enum qcow2_mend mend, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t bytes = (uint64_t)s->header.l1_entries * 8;
    struct pass pass = { .check = check, .mend = mend };

    if (!check->l1_usable)
        return 0;
    BLK_AUTOFREE uint8_t *l1 = calloc(1, round_up(bytes, BLK_SECTOR_BYTES));
    BLK_AUTOFREE uint8_t *buf = malloc(s->cluster_bytes);
    /* An L2 table that two entries share is gone over once: each time would find the same. */
    BLK_AUTOFREE uint8_t *seen = calloc(1, check->clusters / 8 + 1);
    if (!l1 || !buf || !seen)
        return blk_fail(err, ENOMEM, "checking '%s'", check->node->name);

    int ret = blk_child_pread(qcow2_file(check->node), s->header.l1_offset, bytes, l1, err);
    for (uint64_t i = 0; i < s->header.l1_entries && ret == 0; i++) {
        uint64_t l2 = be64_get(l1 + i * 8) & QCOW2_ENTRY_OFFSET;
        uint64_t cluster = l2 / s->cluster_bytes;
        if (!can_look(check, l2) || seen[cluster / 8] >> cluster % 8 & 1)
            continue;
        seen[cluster / 8] |= (uint8_t)(1u << cluster % 8);
        ret = do_l2(&pass, l2, i * s->l2_entries * s->cluster_bytes, buf, err);
    }
    if (ret == 0)
        ret = do_l1(&pass, s->header.l1_offset, l1, bytes, err);
    return ret;
}
