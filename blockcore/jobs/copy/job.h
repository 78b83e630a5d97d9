/* SPDX-License-Identifier: MIT */
/*
 * The state of a copy, for the files of this directory, from the bottom up:
 *
 *   chunks.c   cuts the source into chunks: what is skipped needs no worker
 *   turns.c    the order of the chunks, as far as the target's file depends on it
 *   read.c     reading a chunk, or what is left of it
 *   move.c     moving a chunk, the cheapest true way
 *   copy.c     the workers
 */
#ifndef BLOCKCORE_JOBS_COPY_JOB_H
#define BLOCKCORE_JOBS_COPY_JOB_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/clock.h"
#include "blockcore/base/lock.h"
#include "blockcore/jobs/copy/copy.h"

/* Data moves in pieces of at most this size; a multiple of every cluster size. */
#define COPY_CHUNK_BYTES (2 * MIB)

enum copy_action {
    COPY_SKIP, /* the target needs nothing here */
    COPY_ZERO,
    COPY_DATA,
};

struct copy_chunk {
    uint64_t offset, bytes; /* relative to the start of the copy */
    enum copy_action action;
    uint64_t turn;         /* its number */
    uint64_t moved_before; /* when this many bytes may have been moved, it is this chunk's turn */
    bool unreadable;       /* salvage: the map is, and so is what it leads to */
    struct blk_node *host; /* where the source's bytes lie as they are, or NULL */
    uint64_t host_offset;
};

struct copy_job {
    const struct blk_copy_params *params;
    uint64_t cluster;           /* the target's cluster size; 1 if it has none */
    bool pieces;                /* they are packed outside the order */
    bool source_has_pieces;     /* that can be used as they are */
    enum blk_write_order order; /* to be kept to; NONE if nobody asked for it */

    struct blk_mutex mutex;         /* guards what follows */
    uint64_t next;                  /* everything before has been handed out or skipped */
    struct blk_dirty_cursor marked; /* of the mask, at `next` */
    struct blk_extent extent;       /* source state at `next`; bytes 0: unknown */
    bool unreadable;                /* the extent is, with salvage */
    int unknown;                    /* -errno: the extent could not be found out */
    struct blk_error why;           /* why not */
    uint64_t done;
    uint64_t moved; /* bytes handed out to be read and written: what the rate counts */
    struct blk_rate rate;
    bool blind_works;                  /* the kernel has shared or copied blocks */
    unsigned refused;                  /* times in a row that it could not */
    const struct blk_node *asked_host; /* of which it is known */
    bool can_share;                    /* whether its blocks can be shared */
    struct copy_worker *workers;
    unsigned free_workers; /* that have not begun */
    int ret;               /* the first failure */
    struct blk_error err;

    uint64_t turns;                /* chunks handed out */
    uint64_t turn;                 /* the chunk whose turn it is */
    pthread_cond_t *turns_changed; /* [turn % slots]: it is that chunk's turn, or the job failed */
    unsigned slots;                /* as many as there are workers */
};

/* What a worker works in. */
struct copy_worker {
    uint8_t *buf;      /* COPY_CHUNK_BYTES, or a cluster if that is longer */
    uint8_t *packed;   /* with job->pieces: as much, and BLK_PIECE_ROOM */
    uint32_t *lengths; /* with job->pieces: of the pieces of a chunk */
    uint32_t *runs;    /* bytes of the runs of data and zeroes in `buf`, by turns */
    unsigned run_count;
    bool first_is_zero; /* of the runs */
};

/* Whether chunks may be moved without reading them. */
static inline bool copy_is_blind(const struct blk_copy_params *p)
{
    return (p->allow_copy_range || p->share) && !p->compressed && !p->digest;
}

/* ---- chunks.c ---- */

/*
 * Hands out the next chunk. Returns 1, 0 at the end, or -errno (-ECANCELED after a signal). The
 * mutex is held.
 */
int copy_next_chunk(struct copy_job *job, struct copy_chunk *chunk, struct blk_error *err);

/* Counts a range as done and reports the progress. The mutex is held. */
void copy_count_done(struct copy_job *job, uint64_t offset, uint64_t bytes);

/* ---- turns.c ---- */

/*
 * Waits until all chunks before have ended their turn. Every chunk that was handed out ends its
 * turn or fails the job, so nobody waits forever, and after a failure nobody waits at all.
 */
void copy_await_turn(struct copy_job *job, const struct copy_chunk *chunk);
/* Ends the chunk's turn, waiting for it first; once it has ended, does nothing. */
void copy_end_turn(struct copy_job *job, struct copy_chunk *chunk);
/* The mutex is held: nobody waits any more. */
void copy_wake_all(struct copy_job *job);

/* ---- read.c ---- */

/* Reads [chunk->offset + at, + bytes); with salvage, what cannot be read is zeroes. */
int copy_read(struct copy_job *job, const struct copy_chunk *chunk, uint64_t at, uint64_t bytes,
              uint8_t *buf, struct blk_error *err);

/* ---- move.c ---- */

int copy_move(struct copy_job *job, struct copy_chunk *chunk, struct copy_worker *worker,
              struct blk_error *err);

#endif
