/* SPDX-License-Identifier: MIT */
/*
 * Guest data that can no longer be reached: the entry that maps it points where nothing is, or
 * contradicts itself.
 *
 * Such an entry may be the only way left to find the data, and reading zeroes in its place would
 * hide that anything is missing. So a repair leaves it as it is, and the image stays corrupt,
 * unless the user gives the data up. Guest ranges are listed, because those mean something to the
 * user.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "drivers/qcow2/check/check.h"
#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/state.h"
#include "drivers/qcow2/tables/map.h"

/* ---- what is lost ---- */

/* Whether reading the cluster needs what is mapped there. */
static bool maps_data(const struct qcow2_state *s, struct qcow2_entry entry)
{
    return s->extended ? (entry.bitmap & QCOW2_SUBCLUSTERS_ALL_ALLOCATED) != 0
                       : !(entry.entry & QCOW2_ENTRY_ZERO);
}

static enum qcow2_loss data_file_loss(const struct qcow2_check *check, struct qcow2_entry entry,
                                      uint64_t guest)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t end = round_up(blk_size(qcow2_data(check->node)), s->cluster_bytes);

    if (entry.entry & QCOW2_ENTRY_COMPRESSED)
        return QCOW2_LOSS_COMPRESSED;
    if (!qcow2_entry_has_host(s, entry))
        return QCOW2_LOSS_NONE;
    if ((entry.entry & QCOW2_ENTRY_OFFSET) != guest)
        return QCOW2_LOSS_OTHER_DATA;
    return maps_data(s, entry) && guest >= end ? QCOW2_LOSS_DATA_FILE : QCOW2_LOSS_NONE;
}

/*
 * Whether the piece can be unpacked from the bytes that the file has of it. One that cannot be read
 * now is not damaged: another time the medium may give it.
 */
static bool is_piece_damaged(const struct qcow2_check *check, uint64_t offset, uint64_t bytes)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    BLK_AUTOFREE uint8_t *piece = malloc(bytes);
    BLK_AUTOFREE uint8_t *cluster = malloc(s->cluster_bytes);

    return piece && cluster &&
           blk_child_pread(qcow2_file(check->node), offset, bytes, piece, NULL) == 0 &&
           qcow2_decompress_cluster(s, piece, bytes, cluster, NULL, NULL) == -EIO;
}

/*
 * The length of a compressed piece is in sectors, so a piece may seem to extend up to a sector past
 * the end. Only unpacking tells whether all of it is there.
 */
static enum qcow2_loss compressed_loss(const struct qcow2_check *check, uint64_t entry)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = qcow2_compressed_offset(entry, s->cluster_bits);
    uint32_t bytes = qcow2_compressed_bytes(entry, s->cluster_bits);
    uint64_t end = blk_size(qcow2_file(check->node));

    if (range_within(offset, bytes, end))
        return QCOW2_LOSS_NONE;
    if (offset >= end || offset + bytes - end >= BLK_SECTOR_BYTES)
        return QCOW2_LOSS_PAST_END;
    return is_piece_damaged(check, offset, end - offset) ? QCOW2_LOSS_PAST_END : QCOW2_LOSS_NONE;
}

static bool is_bitmap_impossible(const struct qcow2_state *s, struct qcow2_entry entry)
{
    uint64_t allocated = entry.bitmap & QCOW2_SUBCLUSTERS_ALL_ALLOCATED;
    return allocated &&
           (entry.bitmap >> QCOW2_SUBCLUSTERS & allocated || !qcow2_entry_has_host(s, entry));
}

/* Whether data is mapped to the last cluster of the file, and the file was cut off within it. */
static bool is_cut_cluster(const struct qcow2_check *check, struct qcow2_entry entry)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = entry.entry & QCOW2_ENTRY_OFFSET;

    return atomic_load(&s->saw_cut) && offset && maps_data(s, entry) &&
           !range_within(offset, s->cluster_bytes, blk_size(qcow2_file(check->node)));
}

enum qcow2_loss qcow2_check_loss(const struct qcow2_check *check, struct qcow2_entry entry,
                                 uint64_t guest)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t offset = entry.entry & QCOW2_ENTRY_OFFSET;
    enum qcow2_loss loss = QCOW2_LOSS_NONE;

    if (!entry.entry && !entry.bitmap)
        return QCOW2_LOSS_NONE;
    if (s->data_file)
        loss = data_file_loss(check, entry, guest);
    else if (entry.entry & QCOW2_ENTRY_COMPRESSED)
        return compressed_loss(check, entry.entry);
    else if (offset & (s->cluster_bytes - 1))
        return QCOW2_LOSS_OFFSET;
    else if (offset >> s->cluster_bits >= check->clusters || is_cut_cluster(check, entry))
        return QCOW2_LOSS_PAST_END;
    if (loss != QCOW2_LOSS_NONE)
        return loss;
    if (s->extended)
        return is_bitmap_impossible(s, entry) ? QCOW2_LOSS_SUBCLUSTER : QCOW2_LOSS_NONE;
    return s->header.version < 3 && entry.entry & QCOW2_ENTRY_ZERO ? QCOW2_LOSS_ZERO_FLAG
                                                                   : QCOW2_LOSS_NONE;
}

uint64_t qcow2_check_cut_entry(const struct qcow2_check *check, uint64_t l2)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t end = blk_size(qcow2_file(check->node));

    return l2 < end ? u64_min((end - l2) / s->l2_entry_bytes, s->l2_entries) : 0;
}

uint64_t qcow2_check_plain_end(const struct qcow2_check *check)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t end = atomic_load(&s->saw_cut)
                       ? round_down(blk_size(qcow2_file(check->node)), s->cluster_bytes)
                       : check->clusters * s->cluster_bytes;

    return s->extended || s->data_file ? 0 : u64_min(end, QCOW2_MAX_HOST_OFFSET);
}

/* ---- reporting ---- */

static const char *why_lost(enum qcow2_loss loss)
{
    static const char *const why[] = {
        [QCOW2_LOSS_PAST_END] = "they lie past the end of the file",
        [QCOW2_LOSS_DATA_FILE] = "they lie past the end of the data file",
        [QCOW2_LOSS_OFFSET] = "they are mapped to an invalid offset",
        [QCOW2_LOSS_OTHER_DATA] = "they are mapped to another offset of the data file",
        [QCOW2_LOSS_COMPRESSED] = "they are compressed, which a data file cannot hold",
        [QCOW2_LOSS_SUBCLUSTER] = "their subcluster bitmap is invalid",
        [QCOW2_LOSS_ZERO_FLAG] = "they have the zero flag, which version 2 does not have",
        [QCOW2_LOSS_L2_TABLE] = "their L2 table is at an invalid offset",
        [QCOW2_LOSS_L2_CUT] = "their part of the L2 table lies past the end of the file",
    };
    return why[loss];
}

void qcow2_check_lost_end(struct qcow2_check *check)
{
    const struct qcow2_lost *lost = &check->lost;
    bool is_cut = lost->loss == QCOW2_LOSS_PAST_END || lost->loss == QCOW2_LOSS_DATA_FILE ||
                  lost->loss == QCOW2_LOSS_L2_CUT;
    const struct blk_node *file =
        lost->loss == QCOW2_LOSS_DATA_FILE ? qcow2_data(check->node) : qcow2_file(check->node);
    char cut[64] = "";

    if (!lost->bytes)
        return;
    if (is_cut)
        snprintf(cut, sizeof(cut), ", which is cut short at %" PRIu64, blk_size(file));
    /* qcow2_check_lost() has counted each cluster: this only lists the range. */
    check->result->corruptions--;
    qcow2_check_corruption(
        check, "guest bytes %" PRIu64 " to %" PRIu64 "%s%s are lost: %s%s", lost->offset,
        (lost->offset + lost->bytes - 1), check->walked_snapshot ? " of snapshot " : "",
        check->walked_snapshot ? check->walked_snapshot : "", why_lost(lost->loss), cut);
    check->lost = (struct qcow2_lost){ .bytes = 0 };
}

void qcow2_check_lost(struct qcow2_check *check, uint64_t guest, uint64_t bytes,
                      enum qcow2_loss loss)
{
    struct qcow2_lost *lost = &check->lost;
    uint64_t size = check->walked_snapshot ? check->walked_bytes : blk_size(check->node);

    if (guest < size)
        bytes = u64_min(bytes, size - guest);
    if (lost->bytes && (lost->loss != loss || lost->offset + lost->bytes != guest))
        qcow2_check_lost_end(check);
    if (!lost->bytes)
        *lost = (struct qcow2_lost){ loss, guest, 0 };
    lost->bytes += bytes;
    check->result->corruptions++;
    check->result->lost_bytes += bytes;
    check->incomplete = true;
    check->lost_active |= !check->walked_snapshot;
    check->past_end |= loss == QCOW2_LOSS_PAST_END || loss == QCOW2_LOSS_L2_CUT;
}

/* ---- giving up ---- */

/*
 * The entry that replaces one whose cluster cannot exist: it reads as zeroes. In version 2 that is
 * only possible without a backing file.
 */
static struct qcow2_entry zero_cluster(const struct qcow2_check *check, struct qcow2_entry entry)
{
    const struct qcow2_state *s = qcow2_state(check->node);
    uint64_t allocated = entry.bitmap & QCOW2_SUBCLUSTERS_ALL_ALLOCATED;

    if (s->extended && entry.entry & QCOW2_ENTRY_COMPRESSED)
        return (struct qcow2_entry){ .bitmap = QCOW2_SUBCLUSTERS_ALL_ZERO };
    if (s->extended)
        return (struct qcow2_entry){
            .bitmap = (entry.bitmap & QCOW2_SUBCLUSTERS_ALL_ZERO) | allocated << QCOW2_SUBCLUSTERS,
        };
    if (s->header.version >= 3)
        return (struct qcow2_entry){ .entry = QCOW2_ENTRY_ZERO };
    return s->tail.backing_name ? entry : (struct qcow2_entry){ .entry = 0 };
}

struct qcow2_entry qcow2_check_given_up(const struct qcow2_check *check)
{
    const struct qcow2_state *s = qcow2_state(check->node);

    if (s->extended)
        return (struct qcow2_entry){ .bitmap = QCOW2_SUBCLUSTERS_ALL_ZERO };
    return zero_cluster(check, (struct qcow2_entry){ .entry = 0 });
}

struct qcow2_entry qcow2_check_discarded(const struct qcow2_check *check, struct qcow2_entry entry,
                                         enum qcow2_loss loss, uint64_t guest)
{
    uint64_t allocated = entry.bitmap & QCOW2_SUBCLUSTERS_ALL_ALLOCATED;

    switch (loss) {
    case QCOW2_LOSS_ZERO_FLAG:
        if (!(entry.entry & QCOW2_ENTRY_OFFSET))
            return zero_cluster(check, entry);
        entry.entry &= ~QCOW2_ENTRY_ZERO;
        return entry;
    case QCOW2_LOSS_OTHER_DATA:
        entry.entry = (entry.entry & ~QCOW2_ENTRY_OFFSET) | guest | QCOW2_ENTRY_COPIED;
        return entry;
    case QCOW2_LOSS_SUBCLUSTER:
        if (!qcow2_entry_has_host(qcow2_state(check->node), entry))
            return zero_cluster(check, entry);
        entry.bitmap &= ~(allocated << QCOW2_SUBCLUSTERS); /* data wins */
        return entry;
    default:
        return zero_cluster(check, entry);
    }
}
