/* SPDX-License-Identifier: MIT */
/* What other formats begin or end with, and the refusal to read them as raw. */
#include "blockcore/graph/foreign.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "blockcore/base/bytes.h"

/* A signature: these bytes at that offset of the file. The longest are the surest. */
struct signature {
    struct blk_foreign format;
    unsigned offset, length;
    const char *bytes;
};

/* clang-format off */
#define SIGNATURE(name, what, offset, bytes) \
    { { name, what }, offset, sizeof(bytes) - 1, bytes }
/* clang-format on */

static const struct signature signatures[] = {
    /* disk images */
    SIGNATURE("vmdk", "a VMware disk", 0, "KDMV"),
    SIGNATURE("vmdk", "a VMware disk", 0, "COWD"),
    SIGNATURE("vmdk", "a VMware disk", 0, "\xbe\xba\xfe\xca\0\0\0\0"),
    SIGNATURE("vdi", "a VirtualBox disk", 64, "\x7f\x10\xda\xbe"),
    SIGNATURE("vhdx", "a Hyper-V disk", 0, "vhdxfile"),
    SIGNATURE("vpc", "a Virtual PC disk, VHD", 0, "conectix"),
    SIGNATURE("qed", "a QED image", 0, "QED\0"),
    SIGNATURE("parallels", "a Parallels disk", 0, "WithoutFreeSpace"),
    SIGNATURE("parallels", "a Parallels disk", 0, "WithouFreSpacExt"),
    SIGNATURE("luks", "an encrypted disk", 0, "LUKS\xba\xbe"),
    SIGNATURE("bochs", "a Bochs disk", 0, "Bochs Virtual HD Image"),
    SIGNATURE("cloop", "a compressed loop image", 0, "#!/bin/sh\n#V2.0 Format\n"),
    SIGNATURE("ewf", "an EnCase image", 0, "EVF\x09\x0d\x0a\xff\0"),
    SIGNATURE("android-sparse", "an Android sparse image", 0, "\x3a\xff\x26\xed"),
    SIGNATURE("sparseimage", "an Apple sparse image", 0, "sprs\0\0\0"),
    SIGNATURE("wim", "a Windows imaging file", 0, "MSWIM\0\0\0"),
    SIGNATURE("partclone", "a partclone image", 0, "partclone-image"),

    /* compressed streams */
    SIGNATURE("gzip", "a compressed stream", 0, "\x1f\x8b\x08"),
    SIGNATURE("xz", "a compressed stream", 0, "\xfd\x37zXZ\0"),
    SIGNATURE("zstd", "a compressed stream", 0, "\x28\xb5\x2f\xfd"),
    SIGNATURE("lz4", "a compressed stream", 0, "\x04\x22\x4d\x18"),
    SIGNATURE("lzop", "a compressed stream", 0, "\x89LZO\0\x0d\x0a\x1a\x0a"),
    SIGNATURE("lzip", "a compressed stream", 0, "LZIP\x01"),

    /* archives; an OVA is a tar archive */
    SIGNATURE("tar", "an archive, such as an OVA", 257, "ustar"),
    SIGNATURE("zip", "an archive", 0, "PK\x03\x04"),
    SIGNATURE("7z", "an archive", 0, "7z\xbc\xaf\x27\x1c"),
    SIGNATURE("rar", "an archive", 0, "Rar!\x1a\x07"),
};

/* Formats that take more than a comparison. */
static const struct blk_foreign descriptor_format = { "vmdk", "the descriptor of a VMware disk" };
static const struct blk_foreign bzip2_format = { "bzip2", "a compressed stream" };
static const struct blk_foreign fixed_vhd = { "vpc", "a Virtual PC disk, VHD" };
static const struct blk_foreign qcow_format = { "qcow", "the predecessor of qcow2" };
static const struct blk_foreign dmg_format = { "dmg", "an Apple disk image" };

/* ---- the start ---- */

/* The length of the line at `text`, its end included; at most `bytes`. */
static size_t line_length(const char *text, size_t bytes)
{
    const char *end = memchr(text, '\n', bytes);
    return end ? (size_t)(end - text) + 1 : bytes;
}

static bool starts_line(const char *line, size_t length, const char *word)
{
    return length >= strlen(word) && strncasecmp(line, word, strlen(word)) == 0;
}

static bool is_blank(const char *line, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (!isspace((unsigned char)line[i]))
            return false;
    return true;
}

/* Text: comments and blank lines, and then the version. A comment may already say what it is. */
static bool is_descriptor(const uint8_t *head, size_t bytes)
{
    const char *line = (const char *)head;
    while (bytes) {
        size_t length = line_length(line, bytes);
        if (starts_line(line, length, "# Disk DescriptorFile"))
            return true;
        if (*line != '#' && !is_blank(line, length))
            return length > strlen("version=") && starts_line(line, length, "version=") &&
                   memchr("123", line[strlen("version=")], 3);
        line += length;
        bytes -= length;
    }
    return false;
}

/* "BZh", the level, and the mark of a block or of the end. */
static bool is_bzip2(const uint8_t *head, size_t bytes)
{
    return bytes >= 10 && memcmp(head, "BZh", 3) == 0 && head[3] >= '1' && head[3] <= '9' &&
           (memcmp(head + 4, "\x31\x41\x59\x26\x53\x59", 6) == 0 ||
            memcmp(head + 4, "\x17\x72\x45\x38\x50\x90", 6) == 0);
}

const struct blk_foreign *blk_foreign_by_head(const uint8_t *head, size_t bytes)
{
    for (size_t i = 0; i < sizeof(signatures) / sizeof(signatures[0]); i++) {
        const struct signature *s = &signatures[i];
        if (s->offset + s->length <= bytes && memcmp(head + s->offset, s->bytes, s->length) == 0)
            return &s->format;
    }
    if (is_bzip2(head, bytes))
        return &bzip2_format;
    return is_descriptor(head, bytes) ? &descriptor_format : NULL;
}

/* ---- the end ---- */

#define VHD_COOKIE "conectix"
#define VHD_CHECKSUM_OFFSET 64
#define VHD_OLD_FOOTER_BYTES 511

/* The footer's checksum: the complement of the sum of its bytes without the checksum itself. */
static bool is_vhd_footer(const uint8_t *footer, size_t bytes)
{
    uint32_t sum = 0;

    if (memcmp(footer, VHD_COOKIE, strlen(VHD_COOKIE)) != 0)
        return false;
    for (size_t i = 0; i < bytes; i++)
        if (i < VHD_CHECKSUM_OFFSET || i >= VHD_CHECKSUM_OFFSET + 4)
            sum += footer[i];
    return be32_get(footer + VHD_CHECKSUM_OFFSET) == ~sum;
}

/* "koly", the version, and how long the trailer is. */
static bool is_dmg_trailer(const uint8_t *trailer)
{
    return memcmp(trailer, "koly", 4) == 0 && be32_get(trailer + 4) == 4 &&
           be32_get(trailer + 8) == BLK_FOREIGN_BYTES;
}

const struct blk_foreign *blk_foreign_by_tail(const uint8_t *tail, size_t bytes)
{
    if (bytes < BLK_FOREIGN_BYTES)
        return NULL;
    tail += bytes - BLK_FOREIGN_BYTES;
    if (is_vhd_footer(tail, BLK_FOREIGN_BYTES) || is_vhd_footer(tail + 1, VHD_OLD_FOOTER_BYTES))
        return &fixed_vhd;
    return is_dmg_trailer(tail) ? &dmg_format : NULL;
}

/* ---- by name ---- */

const struct blk_foreign *blk_foreign_find(const char *name)
{
    const struct blk_foreign *others[] = { &bzip2_format, &dmg_format, &qcow_format };

    for (size_t i = 0; i < sizeof(signatures) / sizeof(signatures[0]); i++)
        if (strcmp(signatures[i].format.name, name) == 0)
            return &signatures[i].format;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (strcmp(others[i]->name, name) == 0)
            return others[i];
    return NULL;
}
