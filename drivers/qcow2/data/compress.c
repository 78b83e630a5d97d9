/* SPDX-License-Identifier: MIT */
/*
 * One compressed cluster: raw deflate with a window of 4096 bytes (compression type 0), or one
 * zstd frame (type 1).
 *
 * QEMU inflates with a window of 12 bits, so nothing written here looks back further than that.
 * What is read may end anywhere in the piece: the rest of its last sector belongs to somebody
 * else. Only the first cluster of output counts: a piece that would go on is stopped there, one
 * that ends earlier is damaged.
 *
 * Each thread keeps what its compressors work in, up to a few hundred KiB, until it ends: getting
 * that much fresh memory takes longer than a request.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <zlib.h>

#ifdef HAVE_ISAL
#include <isa-l.h>
#endif
#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif

#include "drivers/qcow2/data/data.h"
#include "drivers/qcow2/state.h"

#define DEFLATE_WINDOW_BITS 12

/* For a cluster, less than half a percent larger than the default level and half as fast again. */
#define ZSTD_LEVEL 2

/* A frame may ask its reader for any window; one cluster needs no more than this, at any level. */
#define ZSTD_MAX_WINDOW_LOG 23

/* ---- what a thread keeps ---- */

struct workspace {
#ifdef HAVE_ISAL
    uint8_t level_buf[ISAL_DEF_LVL2_LARGE];
#endif
#ifdef HAVE_LIBDEFLATE
    struct libdeflate_decompressor *inflater;
#endif
#ifdef HAVE_ZSTD
    ZSTD_CCtx *compressor;
    ZSTD_DCtx *decompressor;
#endif
};

static pthread_key_t workspace_key;
static pthread_once_t workspace_once = PTHREAD_ONCE_INIT;
static int workspace_error; /* of making the key */

static void free_workspace(void *opaque)
{
    struct workspace *space = opaque;
#ifdef HAVE_LIBDEFLATE
    libdeflate_free_decompressor(space->inflater);
#endif
#ifdef HAVE_ZSTD
    ZSTD_freeCCtx(space->compressor);
    ZSTD_freeDCtx(space->decompressor);
#endif
    free(space);
}

/* The thread that leaves main() runs no destructors of keys. */
static void free_own_workspace(void)
{
    struct workspace *space = pthread_getspecific(workspace_key);
    if (space)
        free_workspace(space);
}

static void make_workspace_key(void)
{
    workspace_error = pthread_key_create(&workspace_key, free_workspace);
    if (!workspace_error && atexit(free_own_workspace) != 0)
        workspace_error = ENOMEM;
}

/* This thread's workspace, or NULL when there is no memory. */
static struct workspace *get_workspace(void)
{
    pthread_once(&workspace_once, make_workspace_key);
    if (workspace_error)
        return NULL;
    struct workspace *space = pthread_getspecific(workspace_key);
    if (space)
        return space;
    space = calloc(1, sizeof(*space));
    if (space && pthread_setspecific(workspace_key, space) != 0) {
        free(space);
        space = NULL;
    }
    return space;
}

/* ---- deflate ---- */

#ifdef HAVE_ISAL

/*
 * Level 2 makes pieces as small as zlib's default level, ten times as fast. Returns 0,
 * -ENOSPC, or -EAGAIN when zlib should try.
 */
static int isal_compress(const void *cluster, size_t bytes, void *out, size_t room,
                         size_t *out_bytes)
{
    struct workspace *space = get_workspace();
    if (!space)
        return -EAGAIN;

    struct isal_zstream stream;
    isal_deflate_stateless_init(&stream);
    stream.level = 2;
    stream.level_buf = space->level_buf;
    stream.level_buf_size = sizeof(space->level_buf);
    stream.hist_bits = DEFLATE_WINDOW_BITS;
    stream.gzip_flag = IGZIP_DEFLATE;
    stream.end_of_stream = 1;
    stream.next_in = (uint8_t *)(uintptr_t)cluster; /* only read */
    stream.avail_in = (uint32_t)bytes;
    stream.next_out = out;
    stream.avail_out = (uint32_t)room;

    int ret = isal_deflate_stateless(&stream);
    if (ret == STATELESS_OVERFLOW)
        return -ENOSPC;
    if (ret != COMP_OK || stream.avail_in != 0)
        return -EAGAIN;
    *out_bytes = stream.total_out;
    return 0;
}

#endif

static int zlib_compress(const void *cluster, size_t bytes, void *out, size_t room,
                         size_t *out_bytes, struct blk_error *err)
{
    z_stream stream = { 0 };
    int ret = deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW_BITS,
                           MAX_MEM_LEVEL, Z_DEFAULT_STRATEGY);
    if (ret != Z_OK)
        return blk_fail(err, ret == Z_MEM_ERROR ? ENOMEM : EIO, "compressing a cluster");

    stream.next_in = (Bytef *)(uintptr_t)cluster; /* only read */
    stream.avail_in = (uInt)bytes;
    stream.next_out = out;
    stream.avail_out = (uInt)room;
    ret = deflate(&stream, Z_FINISH);
    *out_bytes = room - stream.avail_out;
    deflateEnd(&stream);
    return ret == Z_STREAM_END ? 0 : -ENOSPC;
}

static int deflate_compress(const void *cluster, size_t bytes, void *out, size_t room,
                            size_t *out_bytes, struct blk_error *err)
{
#ifdef HAVE_ISAL
    int ret = isal_compress(cluster, bytes, out, room, out_bytes);
    if (ret != -EAGAIN)
        return ret;
#endif
    return zlib_compress(cluster, bytes, out, room, out_bytes, err);
}

#ifdef HAVE_LIBDEFLATE

/*
 * Whether the piece is a whole stream of exactly `bytes`; *used is its length. Others are zlib's
 * to judge.
 */
static bool inflate_whole(const void *in, size_t in_bytes, void *out, size_t bytes, size_t *used)
{
    struct workspace *space = get_workspace();
    if (space && !space->inflater)
        space->inflater = libdeflate_alloc_decompressor();
    if (!space || !space->inflater)
        return false;

    size_t made;
    return libdeflate_deflate_decompress_ex(space->inflater, in, in_bytes, out, bytes, used,
                                            &made) == LIBDEFLATE_SUCCESS &&
           made == bytes;
}

#endif

/* 0, -ENOMEM, or -EIO for a damaged piece. *used is 0 for one that goes on behind the cluster. */
static int deflate_decompress(const void *in, size_t in_bytes, void *out, size_t bytes,
                              size_t *used)
{
#ifdef HAVE_LIBDEFLATE
    if (inflate_whole(in, in_bytes, out, bytes, used))
        return 0;
#endif
    z_stream stream = {
        .next_in = (Bytef *)(uintptr_t)in, /* only read */
        .avail_in = (uInt)in_bytes,
        .next_out = out,
        .avail_out = (uInt)bytes,
    };
    if (inflateInit2(&stream, -DEFLATE_WINDOW_BITS) != Z_OK)
        return -ENOMEM;
    int ret = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    *used = ret == Z_STREAM_END ? in_bytes - stream.avail_in : 0;
    if (ret == Z_MEM_ERROR)
        return -ENOMEM;
    return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && stream.avail_out == 0 ? 0 : -EIO;
}

/* ---- zstd ---- */

#ifdef HAVE_ZSTD

static int zstd_compress(const void *cluster, size_t bytes, void *out, size_t room,
                         size_t *out_bytes, struct blk_error *err)
{
    struct workspace *space = get_workspace();
    if (space && !space->compressor) {
        space->compressor = ZSTD_createCCtx();
        if (space->compressor)
            ZSTD_CCtx_setParameter(space->compressor, ZSTD_c_compressionLevel, ZSTD_LEVEL);
    }
    if (!space || !space->compressor)
        return blk_fail(err, ENOMEM, "compressing a cluster");

    size_t ret = ZSTD_compress2(space->compressor, out, room, cluster, bytes);
    if (ZSTD_isError(ret)) {
        if (ZSTD_getErrorCode(ret) == ZSTD_error_dstSize_tooSmall)
            return -ENOSPC;
        return blk_fail_why(err, EIO, ZSTD_getErrorName(ret), "compressing a cluster");
    }
    *out_bytes = ret;
    return 0;
}

static int zstd_decompress(const void *in, size_t in_bytes, void *out, size_t bytes, size_t *used)
{
    struct workspace *space = get_workspace();
    if (space && !space->decompressor) {
        space->decompressor = ZSTD_createDCtx();
        if (space->decompressor)
            ZSTD_DCtx_setParameter(space->decompressor, ZSTD_d_windowLogMax, ZSTD_MAX_WINDOW_LOG);
    }
    if (!space || !space->decompressor)
        return -ENOMEM;

    ZSTD_DCtx_reset(space->decompressor, ZSTD_reset_session_only);
    ZSTD_inBuffer from = { in, in_bytes, 0 };
    ZSTD_outBuffer to = { out, bytes, 0 };
    size_t rest = 1;
    while (to.pos < to.size || rest) {
        size_t from_before = from.pos, to_before = to.pos;
        rest = ZSTD_decompressStream(space->decompressor, &to, &from);
        if (ZSTD_isError(rest))
            return -EIO;
        if (from.pos == from_before && to.pos == to_before)
            return -EIO; /* the piece ends too early, or goes on behind the cluster */
    }
    *used = from.pos;
    return 0;
}

#else

static int zstd_compress(const void *cluster, size_t bytes, void *out, size_t room,
                         size_t *out_bytes, struct blk_error *err)
{
    (void)cluster, (void)bytes, (void)out, (void)room, (void)out_bytes;
    return blk_fail_why(err, ENOTSUP, "this program was built without zstd",
                        "compressing a cluster with zstd");
}

static int zstd_decompress(const void *in, size_t in_bytes, void *out, size_t bytes, size_t *used)
{
    (void)in, (void)in_bytes, (void)out, (void)bytes, (void)used;
    return -ENOTSUP;
}

#endif

/* ---- both ---- */

int qcow2_compress_cluster(const struct qcow2_state *s, const void *cluster, void *out, size_t room,
                           size_t *out_bytes, struct blk_error *err)
{
    if (s->header.compression == QCOW2_ZSTD)
        return zstd_compress(cluster, s->cluster_bytes, out, room, out_bytes, err);
    return deflate_compress(cluster, s->cluster_bytes, out, room, out_bytes, err);
}

int qcow2_decompress_cluster(const struct qcow2_state *s, const void *in, size_t in_bytes,
                             void *out, size_t *used, struct blk_error *err)
{
    bool zstd = s->header.compression == QCOW2_ZSTD;
    size_t unwanted;
    if (!used)
        used = &unwanted;
    int ret = zstd ? zstd_decompress(in, in_bytes, out, s->cluster_bytes, used)
                   : deflate_decompress(in, in_bytes, out, s->cluster_bytes, used);
    if (ret == 0)
        return 0;
    return blk_fail_why(err, -ret,
                        ret == -ENOMEM    ? "there is not enough memory"
                        : ret == -ENOTSUP ? "this program was built without zstd"
                                          : "the compressed data is damaged",
                        "unpacking a compressed cluster");
}
