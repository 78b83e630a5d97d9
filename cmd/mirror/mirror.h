/* SPDX-License-Identifier: MIT */
/*
 * blkimg mirror: copying an image, proving the copy, and moving overlays to it (cmd/pivot/).
 *
 *   mirror.c    the command: its options, and the order of things
 *   copy.c      the target, the copy and its proof
 *   live.c      --guest-io: the copy of an image that is being written
 */
#ifndef CMD_MIRROR_MIRROR_H
#define CMD_MIRROR_MIRROR_H

#include "cmd/common/common.h"

/* What the command line of mirror says. */
struct mirror_request {
    struct image_args source, target;
    const char *source_name, *target_name;
    bool top; /* copy only what the source itself holds */
    struct cmd_list creation, overlays;
    const char *source_cache, *target_cache, *witness;
    const char *guest_io; /* file of commands that run meanwhile; or NULL */
    unsigned workers;
    uint64_t bytes_per_second;
    bool compressed, show_progress;
};

struct mirror {
    const struct mirror_request *request;
    struct blk_node *source, *target;
    struct blk_node *format; /* the source without filters */
    struct progress progress;
    const char *left;     /* what became of the target once it has its name; NULL: all is said */
    uint64_t bytes_moved; /* read and written; without those of a live mirror's last part */
};

/* Makes the target, open for writing. It has no name until it is closed. */
int mirror_make_target(struct mirror *mirror, struct blk_error *err);

/* Copies all there is to copy, or what `mask` marks (NULL: all). */
int mirror_copy(struct mirror *mirror, const struct blk_dirty_bitmap *mask, struct blk_error *err);

/*
 * The same while a guest writes to the source: until its commands have ended and both are in step.
 */
int mirror_copy_live(struct mirror *mirror, struct blk_error *err);

/* Opens the finished target as anybody would, and compares. */
int mirror_prove_target(struct mirror *mirror, struct blk_error *err);

/* The proved target says which backup it is, if the source is one. */
int mirror_carry_identity(struct mirror *mirror, struct blk_error *err);

#endif
