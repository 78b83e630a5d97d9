/* SPDX-License-Identifier: MIT */
/*
 * `blkimg io`: a session that runs the commands of qemu-io's language on one open image.
 *
 * The main thread reads and runs commands, one after the other, and owns the session. Only the
 * requests of aio_read and aio_write run on other threads; they touch the image, their own
 * request, standard output (under its lock) and the session's `failed`, which is atomic.
 *
 * Where messages go: what became of a request ("wrote ...", "read failed: ...", a failed
 * verification) is the output of the program and goes to standard output, as scripts know it from
 * qemu-io. So do remarks on a number that cannot be used. A command that is misused, or that
 * fails outside of a request, is an error on standard error like that of any blkimg command.
 */
#ifndef CMD_IO_IO_H
#define CMD_IO_IO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockcore/base/error.h"
#include "blockcore/graph/node.h"
#include "blockcore/graph/options.h"
#include "cmd/common/image.h"

struct io_pool;

struct io_session {
    struct blk_node *node; /* the open image, or NULL */
    struct io_pool *pool;  /* runs aio requests; idle whenever `node` changes or goes away */
    char **tags;           /* of the breakpoints that were set on `node` */
    size_t tag_count;
    struct blk_node *image;    /* `node`, or what -C has put `node` over */
    bool temporary;            /* `node` is an overlay that is thrown away */
    uint64_t compressed_bytes; /* length of a compressed write to `node`; 0: its format has none */
    bool misalign;             /* buffers are misaligned on purpose (-m) */
    bool quit;
    bool close_failed;
    atomic_bool failed; /* some command or request failed; set by any thread */
};

/* ---- the language: commands.c, run_line.c, messages.c ---- */

enum io_needs {
    IO_NEEDS_IMAGE = 1 << 0,
    IO_NEEDS_WRITABLE = 1 << 1, /* and so an image */
};

struct io_command {
    const char *name;
    const char *alias; /* a second name, or NULL */
    /* argv[0] is the name as typed. Returns 0, or -errno after having said what failed. */
    int (*run)(struct io_session *session, int argc, char **argv);
    int words_min, words_max; /* after the name, options included; words_max -1: any number */
    unsigned needs;           /* enum io_needs */
    const char *arguments;    /* for help, or NULL */
    const char *summary;
    const char *details; /* more lines for "help NAME", or NULL */
};

/* The command of that name or alias, or NULL. */
const struct io_command *io_command_find(const char *name);

/* Runs one command line; an empty one does nothing. A failure is said and recorded. */
void io_run_line(struct io_session *session, const char *line);

/* "blkimg: io: COMMAND: text" on standard error. Returns -EINVAL. */
int io_misuse(const char *command, const char *text, ...) BLK_PRINTF(2, 3);

/* Says which option getopt() has just not accepted. Returns -EINVAL. */
int io_bad_option(const char *command);

/* Prints `err` on standard error. Returns its -errno. */
int io_report_error(const struct blk_error *err);

/*
 * Parses an offset, length or other size up to 2^63 - 1; says so on standard output when `text` is
 * none. Returns 0 or -EINVAL.
 */
int io_parse_bytes(const char *text, uint64_t *bytes);

/* ---- results: report.c ---- */

/* "64 KiB", "1.500 MiB", "100 bytes": three decimals unless they are zero, as in qemu-io. */
void io_format_bytes(double bytes, char out[64]);

/* The report of a request: two lines, or one of comma separated values when `compact`. */
void io_print_report(const char *verb, uint64_t nanoseconds, uint64_t offset, uint64_t bytes,
                     bool compact);

/* A hex dump; `offset` is the address of the first byte. */
void io_print_dump(const uint8_t *data, uint64_t bytes, uint64_t offset);

/* ---- threads: pool.c ---- */

struct io_pool *io_pool_new(void);

/* Runs `run(opaque)` on a thread of the pool. Returns 0, or -errno when it has no thread. */
int io_pool_submit(struct io_pool *pool, void (*run)(void *opaque), void *opaque);

/* Waits until all that was submitted is done. */
void io_pool_wait(struct io_pool *pool);

/* Waits, and ends the threads. */
void io_pool_free(struct io_pool *pool);

/* ---- the image: image.c ---- */

struct io_open_how {
    struct image_args image;
    const char *name;                  /* NULL: `options` alone describe the image */
    const struct blk_options *options; /* or NULL */
    const char *cache, *discard, *aio; /* as typed; NULL: the default */
    bool read_only;
    bool snapshot;     /* writes go to a temporary overlay */
    bool copy_on_read; /* what reads bring from backing files is kept */
};

/* Opens an image into the session, which has none. Errors: -errno with `err`. */
int io_session_open(struct io_session *session, const struct io_open_how *how,
                    struct blk_error *err);

/*
 * Lets go of what breakpoints hold, waits for all requests and closes the image, if there is one.
 * What fails is said and recorded. Returns 0 or -EIO.
 */
int io_session_close(struct io_session *session);

/* ---- what is put over the image: over.c ---- */

/*
 * Puts a temporary overlay, or copy-on-read, over *node, whose reference passes to what *node is
 * then. On failure *node is as before. Errors: -errno.
 */
int io_put_overlay(struct blk_node **node, bool read_only, struct blk_error *err);
int io_put_copy_on_read(struct blk_node **node, struct blk_error *err);

/*
 * Throws the overlay away, with what `root` has put over it. Returns the image that was below, now
 * the caller's.
 */
struct blk_node *io_drop_overlay(struct blk_node *root, struct blk_node *overlay);

/* ---- breakpoints: debug.c ---- */

/* Removes the breakpoints of the session's image; what they hold goes on. */
void io_release_breaks(struct io_session *session);

/* ---- the commands, by file ---- */

/* rw.c */
int io_read(struct io_session *session, int argc, char **argv);
int io_readv(struct io_session *session, int argc, char **argv);
int io_write(struct io_session *session, int argc, char **argv);
int io_writev(struct io_session *session, int argc, char **argv);
int io_discard(struct io_session *session, int argc, char **argv);
/* aio.c */
int io_aio_read(struct io_session *session, int argc, char **argv);
int io_aio_write(struct io_session *session, int argc, char **argv);
int io_aio_flush(struct io_session *session, int argc, char **argv);
/* image.c */
int io_open(struct io_session *session, int argc, char **argv);
int io_close(struct io_session *session, int argc, char **argv);
int io_reopen(struct io_session *session, int argc, char **argv);
/* query.c */
int io_map(struct io_session *session, int argc, char **argv);
int io_alloc(struct io_session *session, int argc, char **argv);
int io_length(struct io_session *session, int argc, char **argv);
int io_info(struct io_session *session, int argc, char **argv);
/* debug.c */
int io_break(struct io_session *session, int argc, char **argv);
int io_remove_break(struct io_session *session, int argc, char **argv);
int io_resume(struct io_session *session, int argc, char **argv);
int io_wait_break(struct io_session *session, int argc, char **argv);
/* misc.c */
int io_flush(struct io_session *session, int argc, char **argv);
int io_truncate(struct io_session *session, int argc, char **argv);
int io_sleep(struct io_session *session, int argc, char **argv);
int io_abort(struct io_session *session, int argc, char **argv);
int io_sigraise(struct io_session *session, int argc, char **argv);

#endif
