/*
 * The entries of the active L1 table and its L2 tables: what an entry should be follows from the entry itself and
 * the number of references to what it points to.
 *
 * Mending is done in place, sector by sector, in two passes. Removing COPIED or a reserved bit is safe whatever
 * else the image says; setting COPIED is safe once the refcounts on the medium are right. So neither
 * needs the other tables to change in the same instant.
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

static uint64_t right_l1(const struct qcow2_check *check, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;
    uint64_t right = entry & ~QCOW2_L1_RESERVED;
    return offset ? with_copied(check, right, offset) : right & ~QCOW2_ENTRY_COPIED;
}

/* The first word of an L2 entry as it should be. A cluster that cannot exist reads as zeroes (version 3). */
static uint64_t right_l2(const struct qcow2_check *check, uint64_t entry)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;

    if (entry & QCOW2_ENTRY_COMPRESSED)
        return entry & ~QCOW2_ENTRY_COPIED;
    uint64_t reserved = QCOW2_L2_RESERVED;
    if (s->extended || s->header.version < 3)
        reserved |= QCOW2_ENTRY_ZERO;
    uint64_t right = entry & ~reserved;

    if (s->data_file)
        return right;
    if (!offset)
        return right & ~QCOW2_ENTRY_COPIED;
    if (offset % s->cluster_bytes || offset / s->cluster_bytes >= check->clusters)
        return s->header.version >= 3 && !s->extended ? QCOW2_ENTRY_ZERO : entry;
    return with_copied(check, right, offset);
}

/* Whether this pass may change `entry` into `right`. */
static bool may_mend(enum qcow2_mend mend, uint64_t entry, uint64_t right)
{
    bool only_sets_copied = (entry ^ right) == QCOW2_ENTRY_COPIED && right & QCOW2_ENTRY_COPIED;
    return mend != QCOW2_MEND_NOTHING && only_sets_copied == (mend == QCOW2_MEND_SET);
}

/*
 * Goes over a table at `offset` in the file, whose entries are `stride` bytes apart; changed sectors are
 * written back. `buf` has room for whole sectors.
 */
static int do_table(const struct pass *pass, uint64_t offset, uint8_t *buf, uint64_t bytes,
                    uint32_t stride, bool is_l1, struct blk_error *err)
{
    struct qcow2_check *check = pass->check;
    uint64_t changed_start = bytes, changed_end = 0;

    for (uint64_t at = 0; at < bytes; at += stride) {
        uint64_t entry = be64_get(buf + at);
        uint64_t right = is_l1 ? right_l1(check, entry) : right_l2(check, entry);
        if (entry == right)
            continue;
        if (pass->mend == QCOW2_MEND_NOTHING)
            qcow2_check_corruption(check, "%s entry 0x%016llx at offset 0x%llx should be 0x%016llx",
                                   is_l1 ? "L1" : "L2", (unsigned long long)entry,
                                   (unsigned long long)(offset + at), (unsigned long long)right);
        if (!may_mend(pass->mend, entry, right))
            continue;
        be64_put(buf + at, right);
        changed_start = u64_min(changed_start, at);
        changed_end = at + 8;
    }
    if (changed_start >= changed_end)
        return 0;
    uint64_t start = round_down(changed_start, BLK_SECTOR_BYTES);
    uint64_t end = round_up(changed_end, BLK_SECTOR_BYTES);
    return blk_child_pwrite(qcow2_file(check->node), offset + start, end - start, buf + start, 0,
                            err);
}

static int do_l2(const struct pass *pass, uint64_t offset, uint8_t *buf, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(pass->check->node);
    int ret = blk_child_pread(qcow2_file(pass->check->node), offset, s->cluster_bytes, buf, err);
    if (ret < 0)
        return ret;
    return do_table(pass, offset, buf, s->cluster_bytes, s->l2_entry_bytes, false, err);
}

/* A table whose place is impossible or taken by something else: said already, and nothing to mend. */
static bool can_look(const struct qcow2_check *check, uint64_t l2)
{
    uint64_t cluster = l2 / qcow2_state(check->node)->cluster_bytes;
    return l2 && l2 % qcow2_state(check->node)->cluster_bytes == 0 && cluster < check->clusters &&
           (check->uses[cluster / 4] >> (cluster % 4 * 2) & 3) == QCOW2_USE_L2;
}

int qcow2_check_entries(struct qcow2_check *check, enum qcow2_mend mend, struct blk_error *err)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t bytes = (uint64_t)s->header.l1_entries * 8;
    struct pass pass = { .check = check, .mend = mend };

    if (!bytes || !range_within(s->header.l1_offset, bytes, check->clusters * s->cluster_bytes))
        return 0;
    BLK_AUTOFREE uint8_t *l1 = calloc(1, round_up(bytes, BLK_SECTOR_BYTES));
    BLK_AUTOFREE uint8_t *buf = malloc(s->cluster_bytes);
    if (!l1 || !buf)
        return blk_fail(err, ENOMEM, "checking '%s'", check->node->name);

    int ret = blk_child_pread(qcow2_file(check->node), s->header.l1_offset, bytes, l1, err);
    for (uint64_t at = 0; at < bytes && ret == 0; at += 8) {
        uint64_t l2 = be64_get(l1 + at) & QCOW2_ENTRY_OFFSET;
        if (can_look(check, l2))
            ret = do_l2(&pass, l2, buf, err);
    }
    if (ret == 0)
        ret = do_table(&pass, s->header.l1_offset, l1, bytes, 8, true, err);
    return ret;
}
