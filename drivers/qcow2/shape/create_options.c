/* SPDX-License-Identifier: MIT */
/* The create options: their names and order are QEMU's, as scripts use and read them. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "blockcore/base/units.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/options.h"
#include "drivers/qcow2/shape/create.h"
#include "drivers/qcow2/shape/shape.h"

const struct blk_option_desc qcow2_create_options[] = {
    { "encryption", BLK_OPT_BOOL, "AES encryption: not supported, must be off", NULL },
    { "encrypt.format", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.key-secret", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.cipher-alg", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.cipher-mode", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.ivgen-alg", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.ivgen-hash-alg", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.hash-alg", BLK_OPT_STRING, "Encryption: not supported", NULL },
    { "encrypt.iter-time", BLK_OPT_NUMBER, "Encryption: not supported", NULL },
    { "cluster_size", BLK_OPT_SIZE, "Cluster size: a power of two, 512 to 2M", "65536" },
    { "extended_l2", BLK_OPT_BOOL, "Allocate each cluster in 32 parts (subclusters)", "off" },
    { "preallocation", BLK_OPT_STRING, "Preallocation mode: off, metadata, falloc or full", NULL },
    { "compression_type", BLK_OPT_STRING, "Compression method: zlib or zstd", "zlib" },
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "compat", BLK_OPT_STRING, "Version of the format: 0.10 (v2) or 1.1 (v3)", NULL },
    { "backing_file", BLK_OPT_STRING, "Image to read where this one has no data", NULL },
    { "backing_fmt", BLK_OPT_STRING, "Format of the backing file", NULL },
    { "data_file", BLK_OPT_STRING, "External file that holds the guest data", NULL },
    { "data_file_raw", BLK_OPT_BOOL, "Keep the data file readable as a raw image", NULL },
    { "lazy_refcounts", BLK_OPT_BOOL, "Let other programs postpone refcount updates", "off" },
    { "refcount_bits", BLK_OPT_NUMBER, "Width of a reference count: a power of two, 1 to 64",
      "16" },
    { NULL, 0, NULL, NULL },
};

/* ---- single values ---- */

int qcow2_bitmaps_can_create(const struct blk_options *creation, struct blk_error *err)
{
    const char *compat = blk_options_peek(creation, "compat");
    uint32_t version = 3;

    int ret = compat ? qcow2_parse_compat(compat, &version, err) : 0;
    if (ret == 0 && version < 3)
        ret = blk_fail_why(err, ENOTSUP, "an image of version 2 has no bitmaps", "option 'compat'");
    return ret;
}

int qcow2_parse_compat(const char *text, uint32_t *version, struct blk_error *err)
{
    static const struct {
        const char *name;
        uint32_t version;
    } names[] = { { "0.10", 2 }, { "v2", 2 }, { "1.1", 3 }, { "v3", 3 } };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i].name) == 0) {
            *version = names[i].version;
            return 0;
        }
    }
    return blk_fail_why(err, EINVAL, "it must be 0.10 (v2) or 1.1 (v3)",
                        "option 'compat' has the value '%s'", text);
}

int qcow2_parse_refcount_bits(uint64_t bits, unsigned *order, struct blk_error *err)
{
    if (!is_power_of_two(bits) || bits > 64)
        return blk_fail_why(err, EINVAL, "it must be a power of two from 1 to 64",
                            "option 'refcount_bits' has the value '%" PRIu64 "'", bits);
    *order = (unsigned)__builtin_ctzll(bits);
    return 0;
}

static int parse_cluster_size(uint64_t bytes, unsigned *bits, struct blk_error *err)
{
    if (!is_power_of_two(bytes) || bytes < UINT64_C(1) << QCOW2_MIN_CLUSTER_BITS ||
        bytes > UINT64_C(1) << QCOW2_MAX_CLUSTER_BITS)
        return blk_fail_why(err, EINVAL, "it must be a power of two from 512 to 2M",
                            "option 'cluster_size' has the value '%" PRIu64 "'", bytes);
    *bits = (unsigned)__builtin_ctzll(bytes);
    return 0;
}

static int parse_compression(const char *text, enum qcow2_compression *type, struct blk_error *err)
{
    if (strcmp(text, "zlib") == 0) {
        *type = QCOW2_DEFLATE;
        return 0;
    }
    if (strcmp(text, "zstd") != 0)
        return blk_fail_why(err, EINVAL, "it must be zlib or zstd",
                            "option 'compression_type' has the value '%s'", text);
#ifdef HAVE_ZSTD
    *type = QCOW2_ZSTD;
    return 0;
#else
    return blk_fail_why(err, ENOTSUP, "this program was built without zstd",
                        "option 'compression_type' has the value 'zstd'");
#endif
}

/* ---- all of them ---- */

static int refuse_encryption(struct blk_options *options, struct blk_error *err)
{
    bool encryption = false;
    int ret = blk_options_get_bool(options, "encryption", &encryption, err);
    if (ret < 0)
        return ret;
    if (encryption)
        return blk_fail_why(err, ENOTSUP, "encryption is not supported", "option 'encryption'");
    for (const struct blk_option_desc *desc = qcow2_create_options; desc->name; desc++) {
        if (strncmp(desc->name, "encrypt.", 8) == 0 && blk_options_get(options, desc->name))
            return blk_fail_why(err, ENOTSUP, "encryption is not supported", "option '%s'",
                                desc->name);
    }
    return 0;
}

static int parse_numbers(struct blk_options *options, struct qcow2_request *request,
                         struct blk_error *err)
{
    uint64_t cluster_bytes = 64 * KIB, refcount_bits = 16, size = 0;

    int ret = blk_options_get_size(options, "size", &size, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_size(options, "cluster_size", &cluster_bytes, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_uint(options, "refcount_bits", &refcount_bits, err);
    if (ret < 0)
        return ret;
    ret = parse_cluster_size(cluster_bytes, &request->cluster_bits, err);
    if (ret < 0)
        return ret;
    ret = qcow2_parse_refcount_bits(refcount_bits, &request->refcount_order, err);
    if (ret < 0)
        return ret;
    if (size > BLK_MAX_BYTES)
        return blk_fail_why(err, EFBIG, "no image can be that large",
                            "option 'size' has the value '%s'", blk_options_peek(options, "size"));
    request->size = round_up(size, BLK_SECTOR_BYTES);
    return 0;
}

static int parse_words(struct blk_options *options, struct qcow2_request *request,
                       struct blk_error *err)
{
    const char *compat = blk_options_get(options, "compat");
    const char *compression = blk_options_get(options, "compression_type");
    const char *preallocation = blk_options_get(options, "preallocation");

    request->version = 3;
    int ret = compat ? qcow2_parse_compat(compat, &request->version, err) : 0;
    if (ret < 0)
        return ret;
    ret = compression ? parse_compression(compression, &request->compression, err) : 0;
    if (ret < 0)
        return ret;
    if (preallocation && blk_prealloc_parse(preallocation, &request->preallocation) < 0)
        return blk_fail_why(err, EINVAL, "it must be off, metadata, falloc or full",
                            "option 'preallocation' has the value '%s'", preallocation);
    request->backing_file = blk_options_get(options, "backing_file");
    request->backing_format = blk_options_get(options, "backing_fmt");
    request->data_file = blk_options_get(options, "data_file");
    return 0;
}

int qcow2_request_parse(struct blk_options *options, struct qcow2_request *request,
                        struct blk_error *err)
{
    int ret;

    *request = (struct qcow2_request){ .version = 3 };
    ret = refuse_encryption(options, err);
    if (ret < 0)
        return ret;
    ret = parse_numbers(options, request, err);
    if (ret < 0)
        return ret;
    ret = parse_words(options, request, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_bool(options, "extended_l2", &request->extended_l2, err);
    if (ret < 0)
        return ret;
    ret = blk_options_get_bool(options, "lazy_refcounts", &request->lazy_refcounts, err);
    if (ret < 0)
        return ret;
    return blk_options_get_bool(options, "data_file_raw", &request->data_file_raw, err);
}
