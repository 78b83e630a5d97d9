/* SPDX-License-Identifier: MIT */
/*
 * The tree of hashes. Blocks are hashed without the mutex; what they yield is put into the tree
 * under it. A subtree that becomes complete is replaced by its hash, so only paths to what is
 * missing are in memory.
 */
#include "blockcore/jobs/digest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/lock.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/sha256.h"

#define BLOCK BLK_DIGEST_BLOCK_BYTES
#define HASH BLK_DIGEST_BYTES

/* A size of 2^63 has 2^43 blocks. */
#define MAX_LEVELS 45

/* What stands before the hashed bytes, so that none can be taken for another. */
enum { TAG_BLOCK = 0, TAG_INNER = 1, TAG_ROOT = 2 };

/* A node of the tree that something was put into. Complete ones have no children any more. */
struct subtree {
    bool complete;
    uint8_t hash[HASH]; /* when complete */
    struct subtree *half[2];
};

/* A block of which some bytes have come. */
struct open_block {
    uint64_t index;
    uint64_t added; /* bytes that have come */
    uint8_t *data;  /* the whole block; NULL while all of them are zeroes */
    struct open_block *next;
};

struct blk_digest {
    uint64_t size;
    unsigned height;
    uint8_t zero_hash[MAX_LEVELS][HASH]; /* of a subtree of zeroes, by level */

    struct blk_mutex mutex; /* guards what follows; pieces are copied into their block without it */
    struct subtree root;
    struct open_block *open;
};

struct part {
    const void *bytes;
    size_t count;
};

static int hash_tagged(uint8_t tag, struct part first, struct part second, uint8_t hash[HASH],
                       struct blk_error *err)
{
    const struct iovec parts[] = {
        { &tag, 1 },
        { (void *)first.bytes, first.count },
        { (void *)second.bytes, second.count },
    };
    return blk_sha256(parts, 3, hash, err);
}

/* The hash of a block of BLOCK bytes. */
static int hash_leaf(const uint8_t *block, uint8_t hash[HASH], struct blk_error *err)
{
    return hash_tagged(TAG_BLOCK, (struct part){ block, BLOCK }, (struct part){ NULL, 0 }, hash,
                       err);
}

/* The hash of a subtree whose halves have these hashes. */
static int hash_inner(const uint8_t left[HASH], const uint8_t right[HASH], uint8_t hash[HASH],
                      struct blk_error *err)
{
    return hash_tagged(TAG_INNER, (struct part){ left, HASH }, (struct part){ right, HASH }, hash,
                       err);
}

static int hash_block(const struct blk_digest *digest, const uint8_t *block, uint8_t hash[HASH],
                      struct blk_error *err)
{
    if (!bytes_are_zero(block, BLOCK))
        return hash_leaf(block, hash, err);
    memcpy(hash, digest->zero_hash[0], HASH);
    return 0;
}

static int added_twice(uint64_t block, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, "a part of it was added twice",
                        "adding to the digest at offset %" PRIu64, block * BLOCK);
}

/* ---- the tree; the mutex is held ---- */

/*
 * What is put into the tree: the blocks [from, to), one with a hash of its own or any number of
 * zeroes.
 */
struct cover {
    const struct blk_digest *digest;
    uint64_t from, to;
    const uint8_t *hash; /* of the one block; NULL: zeroes */
};

static void free_subtree(struct subtree *at)
{
    if (!at)
        return;
    free_subtree(at->half[0]);
    free_subtree(at->half[1]);
    free(at);
}

static int combine_subtrees(struct subtree *at, struct blk_error *err)
{
    int ret = hash_inner(at->half[0]->hash, at->half[1]->hash, at->hash, err);
    if (ret < 0)
        return ret;
    at->complete = true;
    for (int side = 0; side < 2; side++) {
        free(at->half[side]);
        at->half[side] = NULL;
    }
    return 0;
}

static bool is_complete(const struct subtree *at)
{
    return at && at->complete;
}

/* Puts `cover`, which overlaps it, into the subtree at `level` whose first block is `first`. */
static int put(struct subtree *at, unsigned level, uint64_t first, const struct cover *cover,
               struct blk_error *err)
{
    uint64_t blocks = UINT64_C(1) << level;

    if (at->complete)
        return added_twice(u64_max(first, cover->from), err);
    if (cover->from <= first && first + blocks <= cover->to) {
        if (at->half[0] || at->half[1])
            return added_twice(first, err);
        memcpy(at->hash, cover->hash ? cover->hash : cover->digest->zero_hash[level], HASH);
        at->complete = true;
        return 0;
    }
    for (unsigned side = 0; side < 2; side++) {
        uint64_t half_first = first + side * (blocks / 2);
        if (cover->to <= half_first || half_first + blocks / 2 <= cover->from)
            continue;
        if (!at->half[side])
            at->half[side] = calloc(1, sizeof(*at));
        if (!at->half[side])
            return blk_fail(err, ENOMEM, "computing a digest");
        int ret = put(at->half[side], level - 1, half_first, cover, err);
        if (ret < 0)
            return ret;
    }
    return is_complete(at->half[0]) && is_complete(at->half[1]) ? combine_subtrees(at, err) : 0;
}

static int put_locked(struct blk_digest *digest, uint64_t from, uint64_t to, const uint8_t *hash,
                      struct blk_error *err)
{
    const struct cover cover = { .digest = digest, .from = from, .to = to, .hash = hash };

    LOCK_SCOPE(&digest->mutex);
    return put(&digest->root, digest->height, 0, &cover, err);
}

/* ---- blocks that come in pieces ---- */

static uint64_t block_length(const struct blk_digest *digest, uint64_t index)
{
    return u64_min(BLOCK, digest->size - index * BLOCK);
}

/*
 * The open block with this index, made if there is none, with room for data if `data`. NULL: no
 * memory.
 */
static struct open_block *open_block(struct blk_digest *digest, uint64_t index, bool data)
{
    ASSERT_LOCKED(&digest->mutex);
    struct open_block *block = digest->open;
    while (block && block->index != index)
        block = block->next;
    if (!block) {
        block = blk_xcalloc(1, sizeof(*block));
        block->index = index;
        block->next = digest->open;
        digest->open = block;
    }
    if (data && !block->data)
        block->data = calloc(1, BLOCK);
    return data && !block->data ? NULL : block;
}

/* Takes a block out of the list. */
static void unlink_block(struct blk_digest *digest, struct open_block *block)
{
    ASSERT_LOCKED(&digest->mutex);
    struct open_block **at = &digest->open;
    while (*at != block)
        at = &(*at)->next;
    *at = block->next;
}

static void free_block(struct open_block *block)
{
    free(block->data);
    free(block);
}

/* Hashes a block of which all bytes have come, and frees it. */
static int complete_block(struct blk_digest *digest, struct open_block *block,
                          struct blk_error *err)
{
    uint8_t hash[HASH];
    int ret = block->data ? hash_block(digest, block->data, hash, err) : 0;
    if (ret == 0)
        ret = put_locked(digest, block->index, block->index + 1, block->data ? hash : NULL, err);
    free_block(block);
    return ret;
}

/* Adds a piece of one block; a NULL `buf` stands for zeroes. */
static int add_piece(struct blk_digest *digest, uint64_t offset, uint64_t bytes, const void *buf,
                     struct blk_error *err)
{
    uint64_t index = offset / BLOCK;

    blk_mutex_lock(&digest->mutex);
    struct open_block *block = open_block(digest, index, buf);
    bool too_much = block && block->added + bytes > block_length(digest, index);
    blk_mutex_unlock(&digest->mutex);
    if (!block)
        return blk_fail(err, ENOMEM, "computing a digest");
    if (too_much)
        return added_twice(index, err);

    /* Without the mutex: the block cannot be complete before these bytes are counted. */
    if (buf)
        memcpy(block->data + offset % BLOCK, buf, bytes);

    blk_mutex_lock(&digest->mutex);
    block->added += bytes;
    bool complete = block->added == block_length(digest, index);
    if (complete)
        unlink_block(digest, block);
    blk_mutex_unlock(&digest->mutex);
    return complete ? complete_block(digest, block, err) : 0;
}

/* ---- the interface ---- */

static int check_digest_range(const struct blk_digest *digest, uint64_t offset, uint64_t bytes,
                              struct blk_error *err)
{
    if (range_within(offset, bytes, digest->size))
        return 0;
    return blk_fail_why(err, EINVAL, "the range ends past the end of the content",
                        "adding %" PRIu64 " bytes at offset %" PRIu64 " to a digest", bytes,
                        offset);
}

static int hash_zeroes(struct blk_digest *digest, struct blk_error *err)
{
    uint8_t *block = calloc(1, BLOCK);
    if (!block)
        return blk_fail(err, ENOMEM, "computing a digest");

    int ret = hash_leaf(block, digest->zero_hash[0], err);
    for (unsigned level = 1; level <= digest->height && ret == 0; level++) {
        const uint8_t *below = digest->zero_hash[level - 1];
        ret = hash_inner(below, below, digest->zero_hash[level], err);
    }
    free(block);
    return ret;
}

int blk_digest_begin(uint64_t size, struct blk_digest **result, struct blk_error *err)
{
    struct blk_digest *digest = blk_xcalloc(1, sizeof(*digest));
    uint64_t blocks = div_round_up(size, BLOCK);

    *result = NULL;
    digest->size = size;
    while (UINT64_C(1) << digest->height < blocks)
        digest->height++;
    blk_mutex_init(&digest->mutex);

    int ret = hash_zeroes(digest, err);
    uint64_t leaves = UINT64_C(1) << digest->height;
    if (ret == 0 && blocks < leaves)
        ret = put_locked(digest, blocks, leaves, NULL, err);
    if (ret < 0)
        blk_digest_free(digest);
    else
        *result = digest;
    return ret;
}

int blk_digest_add(struct blk_digest *digest, uint64_t offset, uint64_t bytes, const void *buf,
                   struct blk_error *err)
{
    const uint8_t *from = buf;
    int ret = check_digest_range(digest, offset, bytes, err);

    for (uint64_t piece; bytes && ret == 0; offset += piece, bytes -= piece, from += piece) {
        piece = u64_min(bytes, BLOCK - offset % BLOCK);
        if (piece < BLOCK) {
            ret = add_piece(digest, offset, piece, from, err);
            continue;
        }
        uint8_t hash[HASH];
        ret = hash_block(digest, from, hash, err);
        if (ret == 0)
            ret = put_locked(digest, offset / BLOCK, offset / BLOCK + 1, hash, err);
    }
    return ret;
}

int blk_digest_add_zeroes(struct blk_digest *digest, uint64_t offset, uint64_t bytes,
                          struct blk_error *err)
{
    int ret = check_digest_range(digest, offset, bytes, err);

    for (uint64_t piece; bytes && ret == 0; offset += piece, bytes -= piece) {
        piece = u64_min(bytes, BLOCK - offset % BLOCK);
        if (piece < BLOCK) {
            ret = add_piece(digest, offset, piece, NULL, err);
            continue;
        }
        piece = round_down(bytes, BLOCK);
        ret = put_locked(digest, offset / BLOCK, (offset + piece) / BLOCK, NULL, err);
    }
    return ret;
}

int blk_digest_finish(struct blk_digest *digest, uint8_t result[BLK_DIGEST_BYTES],
                      struct blk_error *err)
{
    uint8_t size[8];

    if (!digest->root.complete)
        return blk_fail_why(err, EINVAL, "a part of the content was not added",
                            "computing a digest");
    be64_put(size, digest->size);
    return hash_tagged(TAG_ROOT, (struct part){ size, sizeof(size) },
                       (struct part){ digest->root.hash, HASH }, result, err);
}

void blk_digest_free(struct blk_digest *digest)
{
    if (!digest)
        return;
    for (int side = 0; side < 2; side++)
        free_subtree(digest->root.half[side]);
    while (digest->open) {
        struct open_block *block = digest->open;
        digest->open = block->next;
        free_block(block);
    }
    blk_mutex_destroy(&digest->mutex);
    free(digest);
}

void blk_digest_to_hex(const uint8_t digest[BLK_DIGEST_BYTES], char hex[BLK_DIGEST_HEX_BYTES])
{
    for (int i = 0; i < BLK_DIGEST_BYTES; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}
