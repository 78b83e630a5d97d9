/*
 * A driver is a table of operations. drivers/registry.c lists all drivers.
 *
 * All operations are synchronous. The data and durability groups may be called from several threads
 * at once on one node; the driver guards its own state. life, shape and extras run alone: the
 * caller has drained the node first.
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

struct blk_driver {
    const char *name;
    enum blk_kind kind;
    size_t state_bytes;
    bool growable;         /* writes past the end extend the node */
    bool supports_backing; /* may have a backing child */

    /* ---- life ---- */

    /*
     * "PREFIX:rest" file names belong to this protocol;
     * turns `filename` (with the prefix) into options.
     */
    const char *prefix;
    /* How options name the file child: NULL means "file"; "image" for blkdebug. */
    const char *file_group;
    int (*parse_filename)(const char *filename, struct blk_options *options, struct blk_error *err);

    /*
     * Score 0 (no) to 100 (certain) that an image that begins with `head` is of this format;
     * BLK_PROBE_ANY: any bytes are, if they are nothing better.
     */
    int (*probe)(const uint8_t *head, size_t bytes);

    /*
     * Makes the node usable: reads options, fills node->size, limits and state. The file child
     * (formats and filters) is open and attached before; the backing child is opened after, from
     * node->backing_name. On failure it must leave nothing to release in the state. NULL: only a
     * job makes such a node, and no name leads to this driver.
     */
    int (*open)(struct blk_node *node, struct blk_options *options, struct blk_error *err);

    /*
     * The rows are in the order in which `qemu-img create` prints them: scripts compare that line.
     */
    const struct blk_option_desc *create_options;
    /*
     * Creates. A protocol makes *node: open, writable, empty (or the existing device, in place),
     * and without a name until publish(). A format or filter gets its file in create->file, writes
     * the image into it, and returns with *node untouched: blockcore opens the image over the same
     * file node. `create->options` holds the create options; used ones are marked.
     */
    int (*create)(struct blk_create *create, struct blk_node **node, struct blk_error *err);

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

    /*
     * Reopen with other flags or cache mode. prepare does all that can fail (and may write to
     * children to do so). Then exactly one of commit and abort follows: abort when prepare failed.
     * `reopen->driver_state` is the driver's.
     */
    int (*reopen_prepare)(struct blk_reopen *reopen, struct blk_error *err);
    void (*reopen_commit)(struct blk_reopen *reopen);
    void (*reopen_abort)(struct blk_reopen *reopen);

    /*
     * Options that get other values while the node is open and drained. read checks them and
     * allocates *settings, which apply then puts into effect and blockcore frees.
     */
    int (*options_read)(struct blk_node *node, struct blk_options *options, void **settings,
                        struct blk_error *err);
    void (*options_apply)(struct blk_node *node, const void *settings);

    /* ---- data ---- */

    /* Reads exactly `bytes`. Bytes past the end of a growable node's medium read as zeroes. */
    int (*pread)(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                 struct blk_error *err);

    /*
     * Writes exactly `bytes`. `flags`: BLK_REQ_FUA only
     * if supports_fua. May exceed the size if growable.
     */
    int (*pwrite)(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                  unsigned flags, struct blk_error *err);
    bool supports_fua;

    /*
     * Makes the range read as zeroes. BLK_REQ_MAY_UNMAP allows deallocation; BLK_REQ_NO_FALLBACK
     * forbids writing zeroes byte by byte. -ENOTSUP makes blockcore write zeroes (unless
     * NO_FALLBACK).
     */
    int (*write_zeroes)(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags,
                        struct blk_error *err);

    /*
     * Tells that the range is not needed; what it reads
     * afterwards is unspecified. Doing nothing is valid.
     */
    int (*discard)(struct blk_node *node, uint64_t offset, uint64_t bytes, struct blk_error *err);

    /* Writes one cluster compressed (or what remains of it at the end of the image). */
    int (*write_compressed)(struct blk_node *node, uint64_t offset, uint64_t bytes,
                            const void *buf, struct blk_error *err);

    /*
     * Fills `extent` with the state of the longest uniform range that
     * begins at `offset`, at most `bytes` long and at least one
     * request_alignment. Describes this node alone, not its backing chain. On failure extent->bytes
     * is how far nothing can be read for the same reason; left 0, that is not known.
     */
    int (*block_status)(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned want,
                        struct blk_extent *extent, struct blk_error *err);

    /*
     * Copies from another node's medium without passing user space. -ENOTSUP: the caller reads and
     * writes the whole range; a part of it may have been copied by then.
     */
    int (*copy_range)(struct blk_node *node, uint64_t offset, struct blk_node *source,
                      uint64_t source_offset, uint64_t bytes, struct blk_error *err);

    /* ---- durability ---- */

    /*
     * Pushes what the driver itself caches down to its
     * children (with the barriers that its crash rules need).
     */
    int (*flush_to_os)(struct blk_node *node, struct blk_error *err);
    /* Makes the medium keep what it was given. Not called in cache mode unsafe. */
    int (*flush_to_disk)(struct blk_node *node, struct blk_error *err);
    /*
     * The same for what others wrote, under whatever name it was opened: content and directory
     * entry. For a node opened read-only that a header is about to name (backing.h).
     */
    int (*sync_foreign)(struct blk_node *node, struct blk_error *err);

    /* ---- shape ---- */

    int (*truncate)(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc, bool exact,
                    struct blk_error *err);
    int (*get_info)(struct blk_node *node, struct blk_info *info, struct blk_error *err);
    /*
     * Bytes that the medium has allocated, for "disk
     * size". Only where it is more than the file child's.
     */
    int (*allocated_bytes)(struct blk_node *node, uint64_t *bytes, struct blk_error *err);
    /*
     * Sizes for an image with `options` and the contents
     * of `source` (NULL: an empty one of options' size).
     */
    int (*measure)(struct blk_options *options, struct blk_node *source,
                   struct blk_measure *measure, struct blk_error *err);
    const struct blk_option_desc *amend_options;
    /* `progress` (may be NULL) is called at every step. */
    int (*amend)(struct blk_node *node, struct blk_options *options, bool force,
                 const struct blk_progress *progress, struct blk_error *err);
    int (*check)(struct blk_node *node, unsigned repair, struct blk_check *check,
                 struct blk_error *err);
    /* Drops all data of this layer so that the backing file shows through. */
    int (*make_empty)(struct blk_node *node, struct blk_error *err);
    /*
     * Rewrites the header's backing file; NULL name: none. Does not touch the graph. To be called
     * through blk_change_backing(), which syncs that file first (backing.h).
     * can_change_backing changes nothing and says whether the header has room for that one, so that
     * several images can be asked first.
     */
    int (*change_backing)(struct blk_node *node, const char *name, const char *format,
                          struct blk_error *err);
    int (*can_change_backing)(struct blk_node *node, const char *name, const char *format,
                              struct blk_error *err);

    /* ---- extras ---- */

    int (*snapshot_list)(struct blk_node *node, struct blk_snapshot **list, size_t *count,
                         struct blk_error *err);
    int (*snapshot_create)(struct blk_node *node, const char *name, struct blk_error *err);
    int (*snapshot_apply)(struct blk_node *node, const char *id_or_name, struct blk_error *err);
    int (*snapshot_delete)(struct blk_node *node, const char *id_or_name, struct blk_error *err);
    /* Makes reads show this snapshot; for a node opened read-only. */
    int (*snapshot_load)(struct blk_node *node, const char *id_or_name, struct blk_error *err);

    /* Bytes of VM state, which is stored next to the disk and kept by its snapshots. */
    int (*vm_state_read)(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                         struct blk_error *err);
    int (*vm_state_write)(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                          struct blk_error *err);

    /*
     * Dirty bitmaps (bitmaps.h). load reads the bits of all usable bitmaps of node->bitmaps. track
     * makes the image say, durably, that all its enabled bitmaps are in use. Storing is part of the
     * close's store step and of reopening read-only.
     */
    int (*bitmaps_load)(struct blk_node *node, struct blk_error *err);
    int (*bitmaps_track)(struct blk_node *node, struct blk_error *err);
    /* Whether one more bitmap can be kept in the image: 0, or why not. */
    int (*bitmaps_can_add)(struct blk_node *node, struct blk_error *err);
    /* The same for an image that these create options would make; marks none as used. */
    int (*bitmaps_can_create)(const struct blk_options *creation, struct blk_error *err);
    /* Frees bitmap->state when the bitmap leaves the set. */
    void (*bitmap_release)(struct blk_dirty_bitmap *bitmap);

    /*
     * Identity in a chain of backups (identity.h); all zero where the image has none. What is set
     * takes effect together with the bitmaps, in the next store, or with the next change of the
     * backing file, each time in the same write.
     */
    int (*identity_get)(struct blk_node *node, struct blk_identity *identity,
                        struct blk_error *err);
    void (*identity_set)(struct blk_node *node, const struct blk_identity *identity);
    /*
     * Changes the id or its parent's (NULL: it stays) of an image that has an identity, durably and
     * at once. Requests may be in flight.
     */
    int (*identity_put)(struct blk_node *node, const struct blk_id *backup,
                        const struct blk_id *parent, struct blk_error *err);

    /* A point in the driver above is reached (fault injection). */
    void (*event)(struct blk_node *node, enum blk_event event);
    /* io's break, resume, remove_break and wait_break. */
    int (*debug_break)(struct blk_node *node, const char *event, const char *tag,
                       struct blk_error *err);
    int (*debug_remove_break)(struct blk_node *node, const char *tag, struct blk_error *err);
    int (*debug_resume)(struct blk_node *node, const char *tag, struct blk_error *err);
    bool (*debug_is_suspended)(struct blk_node *node, const char *tag);
};

/* All drivers, NULL at the end; defined in drivers/registry.c. */
extern const struct blk_driver *const blk_drivers[];

/* The driver of that name that can be opened, or NULL. */
const struct blk_driver *blk_driver_find(const char *name);

/* Fails with -EINVAL: there is no driver of that name. Suggests the nearest one. */
int blk_driver_unknown(const char *name, struct blk_error *err);

#endif
