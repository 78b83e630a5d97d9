/* SPDX-License-Identifier: MIT */
/* SHA-256 by libcrypto, which gets its memory from here; without it, a clear failure. */
#include "blockcore/base/sha256.h"

#include <errno.h>
#include <stdbool.h>

#include "config.h"

#ifdef HAVE_LIBCRYPTO

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"

/*
 * libcrypto's own start does not survive a failed allocation: a lock that it could not make is
 * used. So its allocations, which are small, are ours.
 */
static void *allocate_small(size_t bytes, const char *file, int line)
{
    (void)file, (void)line;
    return blk_xmalloc(bytes);
}

static void *reallocate(void *old, size_t bytes, const char *file, int line)
{
    (void)file, (void)line;
    return blk_xrealloc(old, bytes, 1);
}

static void release(void *memory, const char *file, int line)
{
    (void)file, (void)line;
    free(memory);
}

static void take_over_memory(void)
{
    (void)CRYPTO_set_mem_functions(allocate_small, reallocate, release);
}

int blk_sha256(const struct iovec *parts, unsigned count, uint8_t hash[BLK_SHA256_BYTES],
               struct blk_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, take_over_memory);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool ok = context && EVP_DigestInit_ex(context, EVP_sha256(), NULL);

    for (unsigned i = 0; i < count && ok; i++)
        ok = EVP_DigestUpdate(context, parts[i].iov_base, parts[i].iov_len);
    ok = ok && EVP_DigestFinal_ex(context, hash, NULL);
    EVP_MD_CTX_free(context);
    return ok ? 0 : blk_fail_why(err, EIO, "libcrypto refuses", "computing a SHA-256 hash");
}

#else

int blk_sha256(const struct iovec *parts, unsigned count, uint8_t hash[BLK_SHA256_BYTES],
               struct blk_error *err)
{
    (void)parts;
    (void)count;
    (void)hash;
    return blk_fail_why(err, ENOTSUP, "this program was built without libcrypto",
                        "computing a SHA-256 hash");
}

#endif
