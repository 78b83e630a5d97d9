/* SPDX-License-Identifier: MIT */
/*
 * SHA-256 by libcrypto, which gets its memory from here; without it, a clear failure.
 *
 * The library is loaded by the first hash, not with the program: its relocations alone took a third
 * of the time of a command that only reads a header, and few commands hash anything.
 */
#include "blockcore/base/sha256.h"

#include <errno.h>
#include <stdbool.h>

#include "config.h"

#ifdef HAVE_LIBCRYPTO

#include <dlfcn.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"

/* What is used of the library, each with its own type. */
#define FUNCTIONS(X) \
    X(CRYPTO_set_mem_functions) \
    X(EVP_MD_CTX_new) \
    X(EVP_MD_CTX_free) \
    X(EVP_sha256) \
    X(EVP_DigestInit_ex) \
    X(EVP_DigestUpdate) \
    X(EVP_DigestFinal_ex)

static struct {
    bool loaded; /* all of it is there */
    char why_not[256];
#define X(name) __typeof__(&name) name;
    FUNCTIONS(X)
#undef X
} crypto;

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

#ifdef LIBCRYPTO_NAME

/* It stays loaded until the program ends. */
static bool find_functions(void)
{
    void *library = dlopen(LIBCRYPTO_NAME, RTLD_LAZY | RTLD_LOCAL);

    if (!library)
        return false;
#define X(name) \
    crypto.name = (__typeof__(crypto.name))dlsym(library, #name); \
    if (!crypto.name) \
        return false;
    FUNCTIONS(X)
#undef X
    return true;
}

static const char *last_error(void)
{
    const char *error = dlerror();
    return error ? error : LIBCRYPTO_NAME " is unusable";
}

#else /* it is part of the program */

static bool find_functions(void)
{
#define X(name) crypto.name = name;
    FUNCTIONS(X)
#undef X
    return true;
}

static const char *last_error(void)
{
    return "";
}

#endif

static void load_library(void)
{
    crypto.loaded = find_functions();
    if (crypto.loaded)
        (void)crypto.CRYPTO_set_mem_functions(allocate_small, reallocate, release);
    else
        snprintf(crypto.why_not, sizeof(crypto.why_not), "%s", last_error());
}

int blk_sha256(const struct iovec *parts, unsigned count, uint8_t hash[BLK_SHA256_BYTES],
               struct blk_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, load_library);
    if (!crypto.loaded)
        return blk_fail_why(err, ENOTSUP, crypto.why_not, "computing a SHA-256 hash");
    EVP_MD_CTX *context = crypto.EVP_MD_CTX_new();
    bool ok = context && crypto.EVP_DigestInit_ex(context, crypto.EVP_sha256(), NULL);

    for (unsigned i = 0; i < count && ok; i++)
        ok = crypto.EVP_DigestUpdate(context, parts[i].iov_base, parts[i].iov_len);
    ok = ok && crypto.EVP_DigestFinal_ex(context, hash, NULL);
    crypto.EVP_MD_CTX_free(context);
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
