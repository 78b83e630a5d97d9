/* SPDX-License-Identifier: MIT */
/*
 * A driver is a table of operations: those that every driver has, and groups that most lack.
 * drivers/registry.c lists all drivers.
 *
 * All operations are synchronous. Those of the data group may be called from several threads at
 * once on one node; the driver guards its own state. All others run alone: the caller has drained
 * the node first.
 *
 * Common contract: 0 or -errno is returned, and `err` (which may be NULL) may be filled with
 * something better than the general message that blockcore makes. A NULL operation means the
 * generic implementation where there is one, else "not supported". Offsets and lengths are bytes;
 * ranges are within the node's size unless stated otherwise, and keep to node->limits.
 */
#ifndef BLOCKCORE_GRAPH_DRIVER_H
#define BLOCKCORE_GRAPH_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/events.h"
#include "blockcore/graph/info.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/types.h"

struct blk_options;
struct blk_create;
struct blk_reopen;
struct blk_dirty_bitmap;
struct blk_id;
struct blk_identity;
struct blk_published;

enum blk_kind {
    BLK_PROTOCOL, /* reaches bytes by itself: no file child */
    BLK_FORMAT,   /* interprets its file child */
    BLK_FILTER,   /* passes its file child through; transparent for users of the graph */
};

enum blk_option_type { BLK_OPT_STRING, BLK_OPT_BOOL, BLK_OPT_SIZE, BLK_OPT_NUMBER };

/* One option of create or amend, for parsing and for "-o help". A table ends with a NULL name. */
struct blk_option_desc {
    const char *name;
    enum blk_option_type type;
    const char *help;
    const char *default_text; /* as shown in help, or NULL */
};

#define BLK_PROBE_ANY 1

/* ---- data ---- */

/* What every driver has. A filter takes those that it leaves to its file child from pass.h. */
struct blk_data_ops {
    /* Reads exactly `bytes`. Bytes past the end of a growable node's medium read as zeroes. */
    int (*pread)(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                 struct blk_error *err);

    /*
     * Writes exactly `bytes`. `flags`: BLK_REQ_FUA only if the driver supports_fua. May exceed the
     * size if growable.
     */
    int (*pwrite)(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                  unsigned flags, struct blk_error *err);

    /*
     * Makes the range read as zeroes. BLK_REQ_MAY_UNMAP allows deallocation; BLK_REQ_NO_FALLBACK
     * forbids writing zeroes byte by byte. -ENOTSUP makes blockcore write zeroes (unless
     * NO_FALLBACK).
     */
    int (*write_zeroes)(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                        struct blk_error *err);

    /*
     * The range is not needed any more; what it reads as afterwards is unspecified. Doing nothing
     * is valid.
     */
    int (*discard)(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

    /* Writes one cluster compressed (or what remains of it at the end of the image). */
    int (*write_compressed)(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                            struct blk_error *err);

    /*
     * The same in parts, of which the first needs no order: compress packs the cluster into the
     * piece, which has as much room (*length 0: it does not get smaller); write_pieces writes what
     * it made. node->pieces says of what kind. Formats have both or neither.
     */
    int (*compress)(struct blk_node *node, const void *cluster, void *piece, uint32_t *length,
                    struct blk_error *err);
    int (*write_pieces)(struct blk_node *node, uint64_t offset, const struct blk_pieces *pieces,
                        struct blk_error *err);

    /* Reads the cluster at `offset`, which is aligned to it. A piece is unpacked, too. */
    int (*read_piece)(struct blk_node *node, uint64_t offset, struct blk_piece_read *read,
                      struct blk_error *err);

    /*
     * Chooses where a write of the range, which will follow, is going to be. A driver that has
     * this leaves the same file in whatever order the writes come. NULL: see fixed_places.
     */
    int (*place)(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);
    /* Gives back the places that no write has used. */
    void (*end_places)(struct blk_node *node);

    /*
     * Fills `extent` with the state of the longest uniform range that begins at `offset`, at most
     * `bytes` long and at least one request_alignment. Describes this node alone, not its backing
     * chain. On failure extent->bytes is how far the range cannot be read for the same reason; 0:
     * not known.
     */
    int (*block_status)(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                        struct blk_extent *extent, struct blk_error *err);

    /*
     * Copies from another node's medium without passing user space. -ENOTSUP: the caller must read
     * and write the whole range; a part of it may have been copied by then.
     */
    int (*copy_range)(struct blk_node *node, uint64_t offset, const struct blk_copy_from *from,
                      uint64_t bytes, struct blk_error *err);

    /*
     * Whether blocks of BLK_SHARE_BYTES of that protocol node can be shared, aligned in both.
     * Changes nothing. NULL: no.
     */
    bool (*can_share)(struct blk_node *node, const struct blk_node *source);

    /* Runs alone, as the operations outside this group do. */
    int (*truncate)(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                    struct blk_error *err);

    /*
     * Pushes what the driver itself caches down to its children (with the barriers that its crash
     * rules need).
     */
    int (*flush_to_os)(struct blk_node *node, struct blk_error *err);
    /* Makes the medium keep what it was given. Not called in cache mode unsafe. */
    int (*flush_to_disk)(struct blk_node *node, struct blk_error *err);
    /*
     * The same for a file that others wrote, opened read-only under whatever name: content and
     * directory entry. For a file that a header is about to name (backing.h).
     */
    int (*sync_foreign)(struct blk_node *node, struct blk_error *err);
};

/* ---- the driver ---- */

struct blk_driver {
    const char *name;
    enum blk_kind kind;
    size_t state_bytes;
    bool growable;         /* writes past the end extend the node */
    bool supports_backing; /* may have a backing child */
    bool supports_fua;
    bool fixed_places; /* the offset alone says where data is in the medium, or in the file child */

    /*
     * "PREFIX:rest" file names belong to this protocol; parse_filename turns `filename` (with the
     * prefix) into options.
     */
    const char *prefix;
    int (*parse_filename)(const char *filename, struct blk_options *options, struct blk_error *err);
    /* How options name the file child: NULL means "file"; "image" for blkdebug. */
    const char *file_group;

    /*
     * How certain it is, from 0 (no) to 100, that an image that begins with `head` has this format.
     * BLK_PROBE_ANY: any bytes may have it, if no other format claims them.
     */
    int (*probe)(const uint8_t *head, size_t bytes);

    /*
     * Makes the node usable: reads options, fills node->size, limits and state. The file child
     * (formats and filters) is open and attached before; the backing child is opened after, from
     * node->backing_name. On failure it must leave nothing in the state to release. NULL: only a
     * job makes such a node; the driver cannot be opened by name.
     */
    int (*open)(struct blk_node *node, struct blk_options *options, struct blk_error *err);

    /*
     * The steps of a strict close, in this order, after a flush (close.h). Each can fail. store
     * runs only on writable nodes; publish only where nothing failed before. The name is given in a
     * way that can be taken back, and added to `published`, even where publish fails after that.
     * release always runs, exactly once, frees the state whatever it returns, and does not touch
     * children.
     */
    int (*store)(struct blk_node *node, struct blk_close_report *report, struct blk_error *err);
    int (*publish)(struct blk_node *node, struct blk_published *published, struct blk_error *err);
    int (*release)(struct blk_node *node, struct blk_error *err);

    int (*get_info)(struct blk_node *node, struct blk_info *info, struct blk_error *err);
    /*
     * Bytes that the medium has allocated, for "disk size". Only where it is more than the file
     * child's.
     */
    int (*allocated_bytes)(struct blk_node *node, uint64_t *bytes, struct blk_error *err);

    struct blk_data_ops data;

    /* What not every driver can do: NULL, or a table. Only BLK_OP() looks into these. */
    const struct blk_creation_ops *creation;
    const struct blk_reopen_ops *reopen;
    const struct blk_backing_ops *backing;
    const struct blk_upkeep_ops *upkeep;
    const struct blk_snapshot_ops *snapshots;
    const struct blk_vm_state_ops *vm_state;
    const struct blk_bitmap_ops *bitmaps;
    const struct blk_identity_ops *identity;
    const struct blk_debug_ops *debug;
};

/* An entry of one of a driver's groups; NULL where the driver lacks the group or the entry. */
#define BLK_OP(driver, group, op) ((driver)->group ? (driver)->group->op : NULL)

/* ---- making images ---- */

struct blk_creation_ops {
    /*
     * The rows are in the order in which `qemu-img create` prints them: scripts compare that line.
     */
    const struct blk_option_desc *options;

    /*
     * A protocol makes *node: open, writable, empty (or the existing device, in place), and without
     * a name until publish(). Options: create->protocol_options; used ones are marked.
     */
    int (*make_node)(struct blk_create *create, struct blk_node **node, struct blk_error *err);

    /*
     * A format writes a new image into create->file, which blockcore then opens over the same file
     * node. Options: create->options; used ones are marked.
     */
    int (*write_image)(struct blk_create *create, struct blk_error *err);

    /*
     * For a filter that the name of a target asks for: it is now open over the file made for the
     * target. If this fails, nothing is left of either.
     */
    int (*made)(struct blk_node *node, struct blk_error *err);

    /*
     * A format: sizes for an image with `options` and the contents of `source` (NULL: an empty one
     * of options' size).
     */
    int (*measure)(struct blk_options *options, struct blk_node *source,
                   struct blk_measure *measure, struct blk_error *err);
};

/* ---- reopening ---- */

struct blk_reopen_ops {
    /*
     * Reopen with other flags or cache mode. prepare does all that can fail (and may write to
     * children to do so). Then exactly one of commit and abort follows: abort when prepare failed.
     * `reopen->driver_state` is the driver's.
     */
    int (*prepare)(struct blk_reopen *reopen, struct blk_error *err);
    void (*commit)(struct blk_reopen *reopen);
    void (*abort)(struct blk_reopen *reopen);

    /*
     * Options that get other values while the node is open and drained. read checks them and
     * allocates *settings, which apply then puts into effect and blockcore frees.
     */
    int (*options_read)(struct blk_node *node, struct blk_options *options, void **settings,
                        struct blk_error *err);
    void (*options_apply)(struct blk_node *node, const void *settings);
};

/* ---- the backing file ---- */

struct blk_backing_ops {
    /*
     * Rewrites the header's backing file; NULL name: none. Does not touch the graph. To be called
     * through blk_change_backing(), which syncs that file first (backing.h).
     */
    int (*change)(struct blk_node *node, const char *name, const char *format,
                  struct blk_error *err);
    /*
     * Whether the header has room for that backing file; changes nothing. So several images can be
     * asked before the first is changed.
     */
    int (*can_change)(struct blk_node *node, const char *name, const char *format,
                      struct blk_error *err);
};

/* ---- an image as a whole ---- */

struct blk_upkeep_ops {
    int (*check)(struct blk_node *node, unsigned repair, struct blk_check *check,
                 struct blk_error *err);
    const struct blk_option_desc *amend_options;
    /* `progress` (may be NULL) is called at every step. */
    int (*amend)(struct blk_node *node, struct blk_options *options, bool force,
                 const struct blk_progress *progress, struct blk_error *err);
    /* Drops all data of this layer so that the backing file shows through. */
    int (*make_empty)(struct blk_node *node, struct blk_error *err);
};

/* ---- internal snapshots; all of these or none ---- */

struct blk_snapshot_ops {
    int (*list)(struct blk_node *node, struct blk_snapshot **list, size_t *count,
                struct blk_error *err);
    int (*create)(struct blk_node *node, const char *name, struct blk_error *err);
    int (*apply)(struct blk_node *node, const char *id_or_name, struct blk_error *err);
    int (*remove)(struct blk_node *node, const char *id_or_name, struct blk_error *err);
    /* Makes reads show this snapshot; for a node opened read-only. */
    int (*load)(struct blk_node *node, const char *id_or_name, struct blk_error *err);
};

/* Bytes of a machine's state, which is stored next to the disk and kept by its snapshots. */
struct blk_vm_state_ops {
    int (*read)(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                struct blk_error *err);
    int (*write)(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                 struct blk_error *err);
};

/* ---- dirty bitmaps (bitmaps.h) ---- */

/* Storing is part of the close's store step and of reopening read-only. */
struct blk_bitmap_ops {
    /* Reads the bits of a usable bitmap. One that is damaged becomes inconsistent: no failure. */
    int (*load)(struct blk_node *node, struct blk_dirty_bitmap *bitmap, struct blk_error *err);
    /* Makes the image say, durably, that all its enabled bitmaps are in use. */
    int (*track)(struct blk_node *node, struct blk_error *err);
    /* Whether one more bitmap can be kept in the image: 0, or why not. */
    int (*can_add)(struct blk_node *node, struct blk_error *err);
    /* The same for an image that these create options would make; marks none as used. */
    int (*can_create)(const struct blk_options *creation, struct blk_error *err);
    /* Frees bitmap->state when the bitmap leaves the set. */
    void (*release)(struct blk_dirty_bitmap *bitmap);
};

/* ---- identity in a chain of backups (identity.h); all of these or none ---- */

/*
 * What is set takes effect together with the bitmaps, in the next store, or with the next change of
 * the backing file, each time in the same write.
 */
struct blk_identity_ops {
    /* All zero where the image has none. */
    int (*get)(struct blk_node *node, struct blk_identity *identity, struct blk_error *err);
    void (*set)(struct blk_node *node, const struct blk_identity *identity);
    /*
     * Changes the id or its parent's (NULL: it stays) of an image that has an identity, durably and
     * at once. Requests may be in flight.
     */
    int (*put)(struct blk_node *node, const struct blk_id *backup, const struct blk_id *parent,
               struct blk_error *err);
};

/* ---- fault injection ---- */

struct blk_debug_ops {
    /* A point in the driver above is reached. */
    void (*event)(struct blk_node *node, enum blk_event event);
    /* io's break, resume, remove_break and wait_break: all of these or none. */
    int (*set_break)(struct blk_node *node, const char *event, const char *tag,
                     struct blk_error *err);
    int (*remove_break)(struct blk_node *node, const char *tag, struct blk_error *err);
    int (*resume)(struct blk_node *node, const char *tag, struct blk_error *err);
    bool (*is_suspended)(struct blk_node *node, const char *tag);
};

/* ---- all drivers ---- */

/* All drivers, NULL at the end; defined in drivers/registry.c. */
extern const struct blk_driver *const blk_drivers[];

/* The driver of that name that can be opened, or NULL. */
const struct blk_driver *blk_driver_find(const char *name);

/* Fails with -EINVAL: there is no driver of that name. Suggests the nearest one. */
int blk_driver_unknown(const char *name, struct blk_error *err);

#endif
