#include "blockcore/sha256.h"

#include <errno.h>
#include <stdbool.h>

#include "config.h"

#ifdef HAVE_LIBCRYPTO

#include <openssl/evp.h>

int blk_sha256(const struct iovec *parts, unsigned count, uint8_t hash[BLK_SHA256_BYTES],
               struct blk_error *err)
{
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
