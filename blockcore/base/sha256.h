/* SPDX-License-Identifier: MIT */
/* SHA-256 (FIPS 180-4), from libcrypto where the build has it; loaded by the first hash. */
#ifndef BLOCKCORE_BASE_SHA256_H
#define BLOCKCORE_BASE_SHA256_H

#include <stdint.h>
#include <sys/uio.h>

#include "blockcore/base/error.h"

#define BLK_SHA256_BYTES 32

/*
 * Hashes `count` parts as if they stood one behind the other. From any thread. -ENOTSUP in a build
 * without libcrypto or where it cannot be loaded, -EIO when the library fails.
 */
int blk_sha256(const struct iovec *parts, unsigned count, uint8_t hash[BLK_SHA256_BYTES],
               struct blk_error *err);

#endif
