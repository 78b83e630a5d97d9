/* SPDX-License-Identifier: MIT */
/* The digest (digest.h) of all that a node shows, read by several threads. */
#ifndef BLOCKCORE_JOBS_CHECKSUM_H
#define BLOCKCORE_JOBS_CHECKSUM_H

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/jobs/copy/copy.h"
#include "blockcore/jobs/digest.h"

struct blk_checksum_params {
    struct blk_node *node;
    unsigned workers;          /* at least 1; each has 1 MiB of memory */
    blk_progress_fn *progress; /* or NULL */
    void *opaque;
};

/*
 * Reads the node to its end, except for what its block status calls zeroes. Returns 0, -ECANCELED
 * after a signal, or the first failure; -ENOTSUP in a build without libcrypto.
 */
int blk_checksum(const struct blk_checksum_params *params, uint8_t digest[BLK_DIGEST_BYTES],
                 struct blk_error *err);

#endif
