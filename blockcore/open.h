/*
 * Opening and creating graphs.
 */
#ifndef BLOCKCORE_OPEN_H
#define BLOCKCORE_OPEN_H

#include <stdbool.h>
#include <stdint.h>

#include "blockcore/error.h"
#include "blockcore/node.h"
#include "blockcore/options.h"

/*
 * What to open. At least one of `filename` and `options`
 * is given; with both, the name says where the file is.
 */
struct blk_open {
    const char *filename;             /* plain name, "PROTOCOL:...", or "json:{...}" */
    const struct blk_options *options; /* as from --image-opts; not changed */
    const char *format;               /* before a json: name's driver; NULL: that, else probe */
    unsigned flags;                   /* enum blk_open_flags */
    struct blk_cache_mode cache;
    const struct blk_options *defaults; /* for protocols: locking, lock-wait; or NULL */
};

/*
 * Opens the graph; *root gets its one reference. Errors:
 * -errno with the file named; *root is NULL then.
 */
int blk_open(const struct blk_open *how, struct blk_node **root, struct blk_error *err);

/*
 * For drivers: opens the child that "<group>.*" in `options` describes and attaches it.
 * `protocol` says that without a driver the child is a protocol node and not probed.
 */
int blk_open_child(struct blk_node *parent, enum blk_role role, struct blk_options *options,
                   const char *group, unsigned flags, bool protocol, struct blk_error *err);

/*
 * Opens the format `driver` over `file`, an open node whose reference passes to the new node (on
 * failure it stays with the caller). `options` (may be NULL) are the format's.
 */
int blk_open_over(const struct blk_driver *driver, struct blk_node *file,
                  struct blk_options *options, unsigned flags, struct blk_cache_mode cache,
                  struct blk_node **node, struct blk_error *err);

/*
 * The same with a DATA child that is there before the driver's open
 * (which must then not open another): for an image whose external
 * data file was just made and has no name yet. `data` may be NULL.
 */
int blk_open_over_data(const struct blk_driver *driver, struct blk_node *file,
                       struct blk_node *data, struct blk_options *options, unsigned flags,
                       struct blk_cache_mode cache, struct blk_node **node, struct blk_error *err);

/*
 * Opens, read-only, what would be the backing file of `node` by that name (relative to the image's
 * folder) and format (NULL: probed), without attaching it. `flags`: enum blk_open_flags. -ELOOP
 * when its chain leads back to `node`.
 */
int blk_open_new_backing(struct blk_node *node, const char *name, const char *format,
                         unsigned flags, struct blk_cache_mode cache, struct blk_node **backing,
                         struct blk_error *err);

/*
 * Whether the header of `node` may name that file as its backing file: 0, or why not (-ENOTUNIQ,
 * -ELOOP) when the chain below it leads to a file that this run writes, `node`'s own among them, or
 * (-EINVAL) when the name is one that cannot be stored (links.h).
 * What cannot be opened is not judged. With `held` (may be NULL) what could be opened, or NULL, is
 * left open there: nothing of it can be overwritten until it is dropped.
 */
int blk_check_backing(struct blk_node *node, const char *name, const char *format,
                      struct blk_node **held, struct blk_error *err);

/* The name of the format of what begins with `head`, readable here or not; raw matches all. */
const char *blk_probe_name(const uint8_t *head, size_t bytes);
#define BLK_PROBE_BYTES 512

/* How an image is created. */
struct blk_create {
    const char *filename;                     /* or NULL with target_options */
    const struct blk_options *target_options; /* as from --target-image-opts, or NULL */
    const struct blk_driver *driver; /* the format */
    struct blk_options *options;     /* create options, "size" among them; used ones get marked */
    unsigned flags;                  /* for the node that results; BLK_WRITABLE is implied */
    struct blk_cache_mode cache;
    bool in_place;                   /* a file that exists is overwritten and not replaced */
    const struct blk_options *defaults; /* as in struct blk_open */

    /* Set by blk_create() for the drivers. */
    struct blk_options *protocol_options; /* for a protocol: "filename" and the like */
    struct blk_node *file;                /* for a format: the open node to write the image into */

    /*
     * Set by a format's create(), with blk_create_data(): the image's external data file, or NULL.
     */
    struct blk_node *data;
};

/*
 * Creates an image and returns it open for writing; close publishes it (C6): until then no file of
 * that name exists, or the one that did is untouched. On failure nothing is left.
 */
int blk_create(struct blk_create *create, struct blk_node **root, struct blk_error *err);

/*
 * For a format's create(): makes the external data file of that name, empty and open for writing,
 * as create->data. It becomes the DATA child of the image, and gets its name when that is closed
 * (before the image gets its own).
 */
int blk_create_data(struct blk_create *create, const char *filename, struct blk_error *err);

/*
 * The name of a backing file as seen from the image: "json:" and "PROTOCOL:" names and absolute
 * paths as they are, others relative to the folder of `image`. malloc()ed.
 */
char *blk_resolve_backing_name(const char *image, const char *backing);

/*
 * The path of the file that holds the bytes of what `filename` names, in whatever way it is spelled
 * ("file:", "json:"), malloc()ed; NULL where that is no file.
 */
char *blk_file_path(const char *filename);

/*
 * Whether both names lead to one file that exists, or would be the same new file, or are the same
 * text.
 */
bool blk_same_file(const char *a, const char *b);

/*
 * Splits "prefix:rest". Returns the driver of the protocol,
 * the file driver for plain names, or NULL with `err`.
 */
const struct blk_driver *blk_protocol_of(const char *filename, struct blk_error *err);

/*
 * The protocol that the option "filename" of a node without "driver" names; what the name stands
 * for is put into `options`. NULL with `err`.
 */
const struct blk_driver *blk_protocol_by_filename(struct blk_options *options,
                                                  struct blk_error *err);

/* Whether `filename` begins with a protocol prefix ("name:" with no slash before the colon). */
bool blk_has_protocol(const char *filename);

/* Turns a filename of any kind into options. */
int blk_filename_to_options(const char *filename, struct blk_options *options,
                            struct blk_error *err);

/*
 * `options` may ask by name for a filter that calls its child otherwise (blkdebug: image). Then
 * `by_name`, made of a file name with that filter's prefix or a plain one, is changed so that the
 * name is the child's, or, if the options want a format there, that of the format's file.
 */
void blk_name_filter_child(const struct blk_options *options, struct blk_options *by_name);

/* Parses "none", "writeback", "unsafe", "writethrough", "directsync", "off". -EINVAL otherwise. */
int blk_cache_mode_parse(const char *text, struct blk_cache_mode *mode);

#endif
