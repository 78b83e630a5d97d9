/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 format as it lies on the medium: constants, limits, and the few computations on raw
 * values that every part of the driver shares. All integers are big endian
 * (blockcore/base/bytes.h).
 */
#ifndef DRIVERS_QCOW2_FORMAT_H
#define DRIVERS_QCOW2_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/bytes.h"

#define QCOW2_MAGIC UINT32_C(0x514649fb) /* "QFI\xfb" */

#define QCOW2_HEADER_V2_BYTES 72
#define QCOW2_HEADER_V3_BYTES 104      /* the least that version 3 allows */
#define QCOW2_HEADER_CURRENT_BYTES 112 /* with the compression type, as written here */

/* Where the header's fields are. Bytes 36 to 71 hold all that a C8 switch changes. */
enum qcow2_header_field {
    QCOW2_AT_MAGIC = 0,
    QCOW2_AT_VERSION = 4,
    QCOW2_AT_BACKING_OFFSET = 8,
    QCOW2_AT_BACKING_BYTES = 16,
    QCOW2_AT_CLUSTER_BITS = 20,
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_CRYPT = 32,
    QCOW2_AT_L1_ENTRIES = 36,
    QCOW2_AT_L1_OFFSET = 40,
    QCOW2_AT_REFTABLE_OFFSET = 48,
    QCOW2_AT_REFTABLE_CLUSTERS = 56,
    QCOW2_AT_SNAPSHOT_COUNT = 60,
    QCOW2_AT_SNAPSHOTS_OFFSET = 64,
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_COMPATIBLE = 80,
    QCOW2_AT_AUTOCLEAR = 88,
    QCOW2_AT_REFCOUNT_ORDER = 96,
    QCOW2_AT_HEADER_BYTES = 100,
    QCOW2_AT_COMPRESSION = 104,
};

/* Feature bits. */
#define QCOW2_INCOMPAT_DIRTY (UINT64_C(1) << 0)
#define QCOW2_INCOMPAT_CORRUPT (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (UINT64_C(1) << 4)
#define QCOW2_INCOMPAT_KNOWN UINT64_C(0x1f)
#define QCOW2_COMPAT_LAZY_REFCOUNTS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_BITMAPS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA (UINT64_C(1) << 1)
#define QCOW2_AUTOCLEAR_KNOWN UINT64_C(0x3)

enum qcow2_crypt { QCOW2_CRYPT_NONE = 0, QCOW2_CRYPT_AES = 1, QCOW2_CRYPT_LUKS = 2 };
enum qcow2_compression { QCOW2_DEFLATE = 0, QCOW2_ZSTD = 1 };

/* Header extensions. */
#define QCOW2_EXT_END UINT32_C(0)
#define QCOW2_EXT_BACKING_FORMAT UINT32_C(0xe2792aca)
#define QCOW2_EXT_FEATURE_NAMES UINT32_C(0x6803f857)
#define QCOW2_EXT_BITMAPS UINT32_C(0x23852875)
#define QCOW2_EXT_LUKS UINT32_C(0x0537be77)
#define QCOW2_EXT_DATA_FILE UINT32_C(0x44415441)

#define QCOW2_FEATURE_NAME_BYTES 48 /* kind, bit, 46 bytes of name */
/* The bitmaps extension: count u32, reserved u32, directory size u64, directory offset u64. */
#define QCOW2_BITMAPS_EXT_BYTES 24

/* An entry of the snapshot table: these, extra data, id, name, zeroes up to a multiple of 8. */
enum qcow2_snapshot_field {
    QCOW2_SNAPSHOT_AT_L1_OFFSET = 0,
    QCOW2_SNAPSHOT_AT_L1_ENTRIES = 8,
    QCOW2_SNAPSHOT_AT_ID_BYTES = 12,
    QCOW2_SNAPSHOT_AT_NAME_BYTES = 14,
    QCOW2_SNAPSHOT_AT_SECONDS = 16,
    QCOW2_SNAPSHOT_AT_NANOSECONDS = 20,
    QCOW2_SNAPSHOT_AT_VM_CLOCK = 24,
    QCOW2_SNAPSHOT_AT_VM_STATE_BYTES = 32,
    QCOW2_SNAPSHOT_AT_EXTRA_BYTES = 36,
    QCOW2_SNAPSHOT_AT_EXTRA = 40,
};

/* Limits, as QEMU's where it has one. Nothing above them is allocated for. */
#define QCOW2_MIN_CLUSTER_BITS 9
#define QCOW2_MAX_CLUSTER_BITS 21
#define QCOW2_MIN_EXTENDED_CLUSTER_BITS 14
#define QCOW2_MAX_L1_BYTES (32 * MIB)
#define QCOW2_MAX_REFTABLE_BYTES (8 * MIB)
#define QCOW2_MAX_SNAPSHOTS 65536
#define QCOW2_MAX_SNAPSHOTS_BYTES (64 * MIB)
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024
#define QCOW2_MAX_BACKING_NAME 1023
#define QCOW2_MAX_BITMAPS 65535
#define QCOW2_MAX_BITMAP_DIRECTORY_BYTES (UINT64_C(1024) * QCOW2_MAX_BITMAPS)
#define QCOW2_MAX_HOST_OFFSET (UINT64_C(1) << 56) /* table entries have 56 bits for an offset */

/* L1 entries, standard L2 entries. */
#define QCOW2_ENTRY_COPIED (UINT64_C(1) << 63)     /* refcount is exactly 1 */
#define QCOW2_ENTRY_COMPRESSED (UINT64_C(1) << 62) /* L2 only */
#define QCOW2_ENTRY_ZERO UINT64_C(1)               /* standard L2 of version 3 */
#define QCOW2_ENTRY_OFFSET UINT64_C(0x00fffffffffffe00)
#define QCOW2_L1_RESERVED UINT64_C(0x7f000000000001ff)
/* Of standard L2 entries; with extended L2 bit 0, too. */
#define QCOW2_L2_RESERVED UINT64_C(0x3f000000000001fe)

/* Refcount table entries. */
#define QCOW2_REFTABLE_OFFSET UINT64_C(0xfffffffffffffe00)
#define QCOW2_REFTABLE_RESERVED UINT64_C(0x1ff)

/* Extended L2. */
#define QCOW2_SUBCLUSTERS 32
#define QCOW2_SUBCLUSTERS_ALL_ZERO UINT64_C(0xffffffff00000000)
#define QCOW2_SUBCLUSTERS_ALL_ALLOCATED UINT64_C(0x00000000ffffffff)

/*
 * The `index`-th count in an array of counts of (1 << order) bits, as refcount blocks hold them.
 * Also used for arrays in memory of the image's own width.
 */
static inline uint64_t qcow2_count_get(const void *counts, unsigned order, uint64_t index)
{
    const uint8_t *p = counts;
    switch (order) {
    case 0:
    case 1:
    case 2: {
        unsigned bits = 1u << order;
        unsigned shift = (unsigned)(index << order) & 7;
        return (uint64_t)(p[index >> (3 - order)] >> shift) & ((1u << bits) - 1);
    }
    case 3:
        return p[index];
    case 4:
        return be16_get(p + index * 2);
    case 5:
        return be32_get(p + index * 4);
    default:
        return be64_get(p + index * 8);
    }
}

/* `count` must fit into the width. */
static inline void qcow2_count_put(void *counts, unsigned order, uint64_t index, uint64_t count)
{
    uint8_t *p = counts;
    switch (order) {
    case 0:
    case 1:
    case 2: {
        unsigned bits = 1u << order;
        unsigned shift = (unsigned)(index << order) & 7;
        uint8_t *byte = p + (index >> (3 - order));
        *byte = (uint8_t)((*byte & ~(((1u << bits) - 1) << shift)) | (unsigned)count << shift);
        break;
    }
    case 3:
        p[index] = (uint8_t)count;
        break;
    case 4:
        be16_put(p + index * 2, (uint16_t)count);
        break;
    case 5:
        be32_put(p + index * 4, (uint32_t)count);
        break;
    default:
        be64_put(p + index * 8, count);
        break;
    }
}

/* The largest count of that width. */
static inline uint64_t qcow2_count_max(unsigned order)
{
    return order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
}

/* Bytes of an array of `counts` counts of that width. */
static inline uint64_t qcow2_counts_bytes(unsigned order, uint64_t counts)
{
    return order >= 3 ? counts << (order - 3) : div_round_up(counts, UINT64_C(8) >> order);
}

/* Bits of a compressed entry: 0..x-1 host byte offset, x..61 further sectors. */
static inline unsigned qcow2_compressed_shift(unsigned cluster_bits)
{
    return 62 - (cluster_bits - 8);
}

static inline uint64_t qcow2_compressed_offset(uint64_t entry, unsigned cluster_bits)
{
    return entry & ((UINT64_C(1) << qcow2_compressed_shift(cluster_bits)) - 1);
}

/* Bytes from the piece's first byte to the end of its last sector. */
static inline uint32_t qcow2_compressed_bytes(uint64_t entry, unsigned cluster_bits)
{
    uint64_t further = (entry & ~(QCOW2_ENTRY_COPIED | QCOW2_ENTRY_COMPRESSED)) >>
                       qcow2_compressed_shift(cluster_bits);
    uint64_t offset = qcow2_compressed_offset(entry, cluster_bits);
    return (uint32_t)((further + 1) * BLK_SECTOR_BYTES - offset % BLK_SECTOR_BYTES);
}

#endif
