/* SPDX-License-Identifier: MIT */
/*
 * The digest of what a guest sees in an image: the same for every format, cluster size and
 * allocation, and computed by any number of threads in any order. Zeroes cost neither reading nor
 * hashing.
 *
 * Definition ("sha256-tree"; H is SHA-256, || concatenates):
 * - The content of `size` bytes is split into blocks of 1 MiB; the last one is padded with zeroes.
 * - The hash of a block is H(0x00 || block).
 * - The blocks are the first leaves of a complete binary tree: of 2^h leaves, h being the smallest
 *   number with 2^h >= max(1, number of blocks). The remaining leaves are blocks of zeroes.
 * - The hash of an inner node is H(0x01 || hash of its left child || hash of its right child).
 * - The digest is H(0x02 || size as 8 bytes, big endian || hash of the topmost node).
 *
 * A subtree of zeroes has the same hash wherever it is, so a hole of any length costs a few steps
 * per level. Memory holds one hash for each complete subtree whose parent is not complete: little,
 * as long as the content arrives roughly in order.
 */
#ifndef BLOCKCORE_JOBS_DIGEST_H
#define BLOCKCORE_JOBS_DIGEST_H

#include <stdint.h>

#include "blockcore/base/error.h"

#define BLK_DIGEST_NAME "sha256-tree"
#define BLK_DIGEST_BYTES 32
#define BLK_DIGEST_HEX_BYTES (2 * BLK_DIGEST_BYTES + 1)
#define BLK_DIGEST_BLOCK_BYTES (UINT64_C(1) << 20)

struct blk_digest;

/* Begins the digest of `size` bytes. -ENOTSUP in a build without libcrypto, -ENOMEM. */
int blk_digest_begin(uint64_t size, struct blk_digest **digest, struct blk_error *err);

/*
 * Adds content, from any thread and in any order. Every byte must be added exactly once, here or as
 * zeroes: what is added twice is refused with -EINVAL where it is noticed. Pieces may have any
 * offset and length. Whole blocks are hashed where they lie; a block that comes in pieces is put
 * together in memory (1 MiB) until its last byte is there, so neighbouring pieces should come soon
 * after each other. `buf` is not kept.
 */
int blk_digest_add(struct blk_digest *digest, uint64_t offset, uint64_t bytes, const void *buf,
                   struct blk_error *err);

/* The same for a range that is known to read as zeroes. */
int blk_digest_add_zeroes(struct blk_digest *digest, uint64_t offset, uint64_t bytes,
                          struct blk_error *err);

/* The result. No other thread may be adding any more. -EINVAL when something was not added. */
int blk_digest_finish(struct blk_digest *digest, uint8_t result[BLK_DIGEST_BYTES],
                      struct blk_error *err);

void blk_digest_free(struct blk_digest *digest);

/* As lower-case hexadecimal digits with a zero byte at the end. */
void blk_digest_to_hex(const uint8_t digest[BLK_DIGEST_BYTES], char hex[BLK_DIGEST_HEX_BYTES]);

#endif
