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

#include "blockcore/error.h"
#include "blockcore/node.h"
#include "blockcore/options.h"

struct io_pool;

struct io_session {
    struct blk_node *node; /* the open image, or NULL */
    struct io_pool *pool;  /* runs aio requests; waited for before `node` changes or goes away */
    char **tags;           /* breakpoints that were set and may hold requests */
    size_t tag_count;
    bool misalign;         /* buffers are misaligned on purpose (-m) */
    bool quit;
    bool close_failed;
    atomic_bool failed;    /* some command or request failed; set by any thread */
};

/* ---- the language (language.c, commands.c) ---- */

enum io_needs {
    IO_NEEDS_IMAGE = 1 << 0,
    IO_NEEDS_WRITABLE = 1 << 1, /* and so an image */
};

struct io_command {
    const char *name;
    const char *alias;     /* a second name, or NULL */
    /* argv[0] is the name as it was typed. Returns 0, or -errno after having said what failed. */
    int (*run)(struct io_session *session, int argc, char **argv);
    int words_min, words_max; /* words after the name, options included; words_max -1: any number */
    unsigned needs;           /* enum io_needs */
    const char *arguments;    /* for help; "" when there are none */
    const char *summary;
    const char *details;      /* lines for "help NAME", or NULL */
};

/* All commands in alphabetical order; an entry without name ends the table. */
extern const struct io_command io_commands[];

const struct io_command *io_command_find(const char *name);

/*
 * Splits `line` at spaces, in place. Returns the words (count in *count, NULL after the last); the
 * caller frees the array. There is no quoting.
 */
char **io_split(char *line, int *count);

/* Runs one command line; an empty one does nothing. Returns 0 or -errno; a failure is recorded too. */
int io_run_line(struct io_session *session, const char *line);

/* ---- messages (language.c) ---- */

/* "blkimg: COMMAND: text" on standard error. Returns -EINVAL. */
int io_misuse(const char *command, const char *text, ...) __attribute__((format(printf, 2, 3)));

/* Reports the option that getopt() did not accept. Returns -EINVAL. */
int io_bad_option(const char *command);

/* Prints `err` on standard error. Returns -err->code. */
int io_report_error(const struct blk_error *err);

void io_session_fail(struct io_session *session);

/*
 * Parses an offset, length or other size up to 2^63 - 1; says so on standard output when `text` is
 * none. Returns 0 or -EINVAL.
 */
int io_parse_bytes(const char *text, uint64_t *bytes);

/* ---- results (report.c) ---- */

/* A moment, in nanoseconds. */
uint64_t io_now(void);

/* "64 KiB", "1.500 MiB", "100 bytes": three decimals unless they are zero, as in qemu-io. */
void io_format_bytes(double bytes, char out[64]);

/* The report of a request: two lines, or one of comma separated values when `compact`. */
void io_print_report(const char *verb, uint64_t nanoseconds, uint64_t offset, uint64_t bytes,
                     bool compact);

/* A hex dump with `offset` as the address of the first byte. */
void io_print_dump(const uint8_t *data, uint64_t bytes, uint64_t offset);

/* ---- threads (pool.c) ---- */

struct io_pool *io_pool_new(void);

/* Runs `run(opaque)` on a thread of the pool. Returns 0, or -errno when no thread could be started. */
int io_pool_submit(struct io_pool *pool, void (*run)(void *opaque), void *opaque);

/*
 * Waits until all that was submitted is done. Returns false when a signal asked to stop before
 * that; what was submitted is then still under way.
 */
bool io_pool_wait(struct io_pool *pool);

/* Ends the threads; everything submitted must be done. */
void io_pool_free(struct io_pool *pool);

/* ---- the image (image.c) ---- */

struct io_open_how {
    const char *filename;            /* may be NULL with `options` */
    const char *format;              /* or NULL */
    const struct blk_options *options; /* or NULL */
    const char *cache, *discard, *aio; /* option values as typed; NULL: the default */
    bool read_only;
    bool force_share;
};

/* Opens an image into the session, which has none. Errors: -errno with `err`. */
int io_session_open(struct io_session *session, const struct io_open_how *how,
                    struct blk_error *err);

/*
 * Waits for all requests, letting go of those that a breakpoint holds, and closes the image; prints
 * what failed and records it. Does nothing without an image. Returns 0 or -errno.
 */
int io_session_close(struct io_session *session);

/* ---- breakpoints (debug.c) ---- */

/* Waits for all requests; when a signal ends the wait, breakpoints are lifted first. */
void io_wait_requests(struct io_session *session);

/* Removes all breakpoints that were set, and resumes what they hold. */
void io_release_breaks(struct io_session *session);

/* ---- the commands, by file ---- */

/* request.c has what they share; rw.c */
int io_read(struct io_session *session, int argc, char **argv);
int io_write(struct io_session *session, int argc, char **argv);
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
int io_help(struct io_session *session, int argc, char **argv);
int io_quit(struct io_session *session, int argc, char **argv);

#endif
