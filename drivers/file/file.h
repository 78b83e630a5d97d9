/* SPDX-License-Identifier: MIT */
/*
 * The parts of the file driver, which serves regular files and block devices.
 *
 * From the top down; a file calls only those below it:
 *
 *   file.c        the drivers: life, reading, writing, flush
 *   reopen.c      the same file under another descriptor
 *   foreign.c     syncing files that others wrote and a header is to name
 *   target.c      files made by this run: where they are written
 *   publish.c     and how they get their name when they are complete (C6)
 *   take_back.c   and lose it again when what follows fails
 *   holes.c       what is a hole, making holes, zeroing, copying within the kernel
 *   truncate.c    the size, and preallocation
 *   held.c        the first sector of a target that is overwritten in place, kept back until then
 *   open.c        options, opening, the state
 *   medium.c      the content: whole transfers, the size, the sync
 *   device.c      block devices, and the alignment that O_DIRECT demands
 *   lock.c        locks that keep this program and a running VM apart
 *   holder.c      who else holds a file
 *   in_place.c    what has to keep its inode
 *   attributes.c  what a file that replaces another inherits
 *   naming.c      symlinks, temporary names, directories
 *   uring.c       reads and writes by io_uring
 *   descriptor.c  a descriptor, and nothing of nodes
 *
 * Data operations run in several threads on one descriptor, which only a reopen and the release
 * replace, with nothing in flight.
 */
#ifndef DRIVERS_FILE_FILE_H
#define DRIVERS_FILE_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "blockcore/base/lock.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/node.h"

/* ---- lock.c ---- */

enum file_locking { FILE_LOCKING_AUTO, FILE_LOCKING_ON, FILE_LOCKING_OFF };

/* The lock bytes that one open file description holds. */
struct file_locks {
    int fd;        /* -1: nothing is locked (switched off, or the file system has no such locks) */
    unsigned held; /* as file_lock_bits() */
};

#define FILE_LOCKS_NONE ((struct file_locks){ .fd = -1 })

struct file_lock_policy {
    enum file_locking mode;
    uint64_t wait_seconds; /* keep trying for that long while someone else is in the way */
};

/* The bytes that a node opened with `flags` (enum blk_open_flags) takes. */
unsigned file_lock_bits(unsigned flags);

/*
 * Takes those of `wanted` that `locks` does not hold yet, on `fd` the first time, and makes sure
 * that nobody else is in the way of any. On failure `locks` is what it was. Errors: -EAGAIN with
 * the holder named, where /proc tells; -EDEADLK when another process waits for us as we would wait
 * for it; -ECANCELED after a signal while waiting.
 */
int file_locks_take(struct file_locks *locks, int fd, unsigned wanted,
                    const struct file_lock_policy *policy, const char *name, struct blk_error *err);

/* Gives back all but `keep`. */
void file_locks_keep(struct file_locks *locks, unsigned keep);

/* ---- state ---- */

struct file_target;

struct file_state {
    int fd;
    int first_fd; /* holds the locks; the same as fd until a reopen, then kept only for them */
    struct file_locks locks;
    struct file_lock_policy lock_policy;
    bool uring; /* aio=io_uring */
    bool device;
    uint32_t sector_bytes;      /* of a device: its logical block */
    int close_error;            /* errno of a close that could not be reported when it happened */
    struct file_target *target; /* made by this run and not published; else NULL */

    /* Completed changes, and how many of them are known to be on the medium. */
    atomic_uint_fast64_t changes, synced;
    atomic_uint_fast64_t unsent; /* bytes written since the kernel was asked to write them back */

    /*
     * Writers that extend the file hold it shared; who sets the size holds it exclusively, so that
     * no extension is cut off by a size computed before it.
     */
    struct blk_rwlock growth;

    /* What the file system was found not to do. */
    atomic_bool no_punch, no_zero_range, no_zero_ioctl, no_discard;
    atomic_bool no_seek, no_copy_range, no_clone;
};

/* To be called after every change, failed or not: a flush has something to do. */
static inline void file_changed(struct file_state *s)
{
    atomic_fetch_add_explicit(&s->changes, 1, memory_order_release);
}

/* ---- descriptor.c ---- */

/* The flags of open(2) for a node's flags and cache mode. */
int file_open_mode(unsigned flags, struct blk_cache_mode cache);

/* close(2) of a descriptor that may be -1, which becomes -1. 0 or -errno. */
int file_close(int *fd);

/* Closes a descriptor that is a copy: NFS and FUSE report lost writes there. 0 or -errno. */
int file_close_copy(int fd);

/* fallocate(2), repeated when interrupted: 0 or -errno. */
int file_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes);

/* ftruncate(2), repeated when interrupted: 0 or -errno. */
int file_set_size(int fd, uint64_t size);

/*
 * Whether an error of fallocate or ioctl says that it is not done here, rather than that it failed.
 */
bool file_is_unsupported(int ret);

/* ---- open.c ---- */

/* What the options of a node say. Strings belong to the option set. */
struct file_settings {
    const char *filename;
    struct file_lock_policy lock_policy;
    bool uring;
};

int file_read_settings(struct blk_options *options, struct file_settings *settings,
                       struct blk_error *err);

/* A file that is open and locked, as it is under the locks. */
struct file_opened {
    struct file_locks locks;
    struct stat st;
};

/*
 * Opens an existing file or device without ever blocking, takes the locks, and makes sure that the
 * name still leads to what was locked. Returns the descriptor or -errno. Whatever else is to be
 * known about the file has to be found out after this.
 */
int file_open_locked(const char *path, unsigned flags, struct blk_cache_mode cache,
                     const struct file_lock_policy *policy, struct file_opened *opened,
                     struct blk_error *err);

/*
 * Fills an empty state with an open descriptor; sets size and limits. The descriptor stays the
 * caller's on failure.
 */
int file_init(struct blk_node *node, int fd, const struct file_opened *opened,
              const struct file_settings *settings, struct blk_error *err);

/* ---- medium.c ---- */

/*
 * Whole transfers from and to a buffer that is aligned as the file needs it: 0 or -errno. Reads
 * past the end of the file give zeroes; -EIO where the file has no bytes although its end is
 * further away, or is nearer than the node's size.
 */
int file_read(const struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
              struct blk_error *err);
int file_write(const struct file_state *s, uint64_t offset, uint64_t bytes, const void *buf);

/* The same into a buffer of any alignment. */
int file_read_aligned(const struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                      struct blk_error *err);

/*
 * -EIO when the file, as it is now, ends before `end` and before the node's size: somebody who
 * takes no locks has cut it, and what is missing must not be called zeroes.
 */
int file_check_end(const struct blk_node *node, uint64_t end, struct blk_error *err);

/* Writes, keeps the node's size behind what is there, and notes the change. 0 or -errno. */
int file_write_medium(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf);

/* The same from a buffer of any alignment; NULL writes zeroes. */
int file_write_aligned(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf);

/* Sets the size of a regular file to at least `size`. 0 or -errno. */
int file_extend(struct blk_node *node, uint64_t size);

/* Makes the kernel write all completed changes to the medium, if there are any. */
int file_sync(struct file_state *s);

/* ---- uring.c ---- */

/* As pread(2) and pwrite(2), through a ring of the calling thread. */
ssize_t file_uring_pread(int fd, void *buf, size_t bytes, off_t offset);
ssize_t file_uring_pwrite(int fd, const void *buf, size_t bytes, off_t offset);

/* Whether this build and the kernel can do that: 0, or why not. */
int file_uring_check(struct blk_error *err);

/* ---- reopen.c ---- */

extern const struct blk_reopen_ops file_reopen_ops;

/* ---- target.c, publish.c ---- */

enum file_target_kind {
    FILE_TARGET_NEW,      /* the name is free */
    FILE_TARGET_REPLACE,  /* a file of that name exists and will be replaced */
    FILE_TARGET_IN_PLACE, /* it is overwritten: a device, or a file that cannot be replaced */
};

/*
 *   MAKING ---> UNNAMED ----------------.
 *     | |          | first a name to     \
 *     | |          v be renamed from      v
 *     | '-----> TEMPORARY -----------> GIVEN -----------> KEPT
 *     |            |                    ^  |               ^
 *     |            | exchanged          |  '--> TAKEN_BACK |
 *     |            v                    |          ^       |
 *     |        GIVEN_OLD_KEPT ----------|----------+-------'
 *     |                                 |
 *     '-------> UNTOUCHED --> ERASED ---'
 *    in place          first        first
 *                      change       sector
 *
 * What has not come to GIVEN when the node is closed is removed; in place it stays erased.
 */
enum file_target_life {
    FILE_TARGET_MAKING,
    FILE_TARGET_UNNAMED,        /* the file has no name */
    FILE_TARGET_TEMPORARY,      /* it has the temporary name */
    FILE_TARGET_UNTOUCHED,      /* the medium still has the old content */
    FILE_TARGET_ERASED,         /* the old content is destroyed, the new one has no first sector */
    FILE_TARGET_GIVEN,          /* the name, or the first sector, is there */
    FILE_TARGET_GIVEN_OLD_KEPT, /* and what was replaced has the temporary name */
    FILE_TARGET_KEPT,
    FILE_TARGET_TAKEN_BACK,
};

struct file_target {
    enum file_target_kind kind;
    atomic_uint life;            /* enum file_target_life; changed by file_target_become() */
    int directory_fd;            /* -1 in place */
    bool directory_is_path;      /* directory_fd is O_PATH: it may not be read, and so not synced */
    char *base;                  /* the name in the directory */
    char *temporary;             /* the temporary name; whose it is, `life` says; or NULL */
    struct given *given;         /* what a hold will need, made beforehand; or NULL */
    int old_fd;                  /* FILE_TARGET_REPLACE: the file that will be replaced */
    struct file_locks old_locks; /* held on it */

    /* In place. Lock order: erase_mutex, file_state.growth, held_mutex. */
    struct blk_mutex erase_mutex; /* held while the old content is destroyed */
    struct blk_mutex held_mutex;  /* guards the content of held */
    uint8_t *held;                /* the first held_bytes, not yet on the medium; else NULL */
    uint32_t held_bytes;
};

/* ---- life.c ---- */

/* Enters a state, which must be one that may follow the present one. */
void file_target_become(struct file_target *t, enum file_target_life life);
bool file_target_is(const struct file_target *t, enum file_target_life life);

/* ---- target.c, publish.c ---- */

extern const struct blk_option_desc file_create_options[];
/* The node that results is one of `driver`. */
int file_create(struct blk_create *create, const struct blk_driver *driver, struct blk_node **node,
                struct blk_error *err);

int file_publish(struct blk_node *node, struct blk_published *published, struct blk_error *err);

/*
 * Frees the target; what was not published is gone. 0, or -errno with `err` when something was
 * left behind.
 */
int file_target_free(struct blk_node *node, struct blk_error *err);

/* ---- attributes.c ---- */

/* Gives the new file what the old one has: owner, mode, ACL, extended attributes. 0 or -errno. */
int file_copy_attributes(int old_fd, int new_fd);

/* ---- naming.c ---- */

/* A name beside `base` that nobody uses yet; malloc()ed. */
char *file_temporary_name(const char *base);

/* Gives a file that has no name yet (O_TMPFILE) one in the target's directory. 0 or -errno. */
int file_link_unnamed(int fd, const struct file_target *t, const char *name);

/* The directory's entry reaches the medium (fsync(2)); `fd`: a file in it. 0 or -errno. */
int file_target_sync_directory(const struct file_target *t, int fd);

/* ---- in_place.c ---- */

/* Whether a loop device shows the file that `st` describes. */
bool file_is_behind_loop_device(const struct stat *st);

/* ---- foreign.c ---- */

int file_sync_foreign(struct blk_node *node, struct blk_error *err);

/* ---- take_back.c ---- */

/* Frees the target and what it has open. */
void file_target_drop(struct file_target *t);

/* Makes what file_target_hold() needs, so that nothing can fail once the name is given. */
void file_target_prepare_hold(struct blk_node *node);

/*
 * The node's name has just been given: it can be taken back through `published`, which owns the
 * target from now on.
 */
void file_target_hold(struct blk_node *node, struct blk_published *published);

/* ---- held.c ---- */

/* Makes a target in place look empty; the medium is untouched until file_overwrite(). */
void file_held_begin(struct blk_node *node);

/*
 * To be called before every change: destroys the old content of a target in place, once. Does
 * nothing for other nodes. 0, or -errno with `err` filled.
 */
int file_overwrite(struct blk_node *node, struct blk_error *err);

/* Whether what is on the medium is the old content, and so not to be read. */
bool file_shows_old(const struct file_state *s);

/* Whether [offset, ...) begins in what is kept back. */
bool file_is_held(const struct file_state *s, uint64_t offset);

/*
 * Serve the part of a request that is kept back; return its length, 0 where nothing is. NULL
 * writes zeroes.
 */
uint64_t file_held_read(struct file_state *s, uint64_t offset, uint64_t bytes, void *buf);
uint64_t file_held_write(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf);

/* Forgets what lies at and after `size`. */
void file_held_truncate(struct file_state *s, uint64_t size);

/* Writes what was kept back. */
int file_held_end(struct blk_node *node);

/* ---- holes.c ---- */

int file_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                      struct blk_error *err);
int file_discard(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);
int file_block_status(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                      struct blk_extent *extent, struct blk_error *err);
int file_copy_range(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                    uint64_t bytes, struct blk_error *err);

bool file_can_share(struct blk_node *node, const struct blk_node *source);

/* ---- truncate.c ---- */

int file_truncate(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                  struct blk_error *err);

/* ---- device.c ---- */

/* Size of what `fd` is, in bytes. */
int file_medium_size(int fd, const struct stat *st, uint64_t *bytes);

/* What requests must keep to when `fd` is open with or without O_DIRECT. */
int file_find_limits(int fd, const struct stat *st, bool direct, struct blk_limits *limits);

/* The device's logical block, 512 when it does not tell. */
uint32_t file_device_sector(int fd);

int file_device_zero(struct file_state *s, uint64_t offset, uint64_t bytes, unsigned flags);
int file_device_discard(struct file_state *s, uint64_t offset, uint64_t bytes);

#endif
