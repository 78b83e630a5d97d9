/* SPDX-License-Identifier: MIT */
/*
 * LD_PRELOAD object that records what a command does to its images, so that
 * crashstates.py can rebuild what a crash at any moment may leave behind.
 *
 * Environment: CRASH_FILES lists the images (see preload.h for what is then
 * watched), CRASH_LOG names the log. The log is appended to, and several
 * processes may share it.
 *
 * Order. Every event is appended by a single write in append mode after its
 * call returned; its place in the log is its place in the one total order. It
 * also carries the length that the log had when the call started. Hence a
 * write is covered by a sync exactly if the write's record ends at or before
 * the sync's start: then the write had returned before the sync began. No
 * counter has to be shared, neither by threads nor by processes.
 *
 * Layout. Records back to back, in the machine's byte order:
 *
 *    bytes  field
 *    0- 3   magic 0x43524153
 *    4- 5   type, enum event_type
 *    6- 7   flags, enum event_flags
 *    8-15   start: length of the log when the call started
 *   16-23   handle of the file (0: none)
 *   24-31   offset in bytes; of a truncate the new size
 *   32-39   length in bytes
 *   40-43   mode: fallocate mode, rename flags, open flags
 *   44-47   thread id
 *   48-55   payload bytes that follow: the data of a write; of a name event
 *           the resolved path or paths, each ended by a zero byte
 */
#include "preload.h"

#include <sys/syscall.h>

enum { EVENT_MAGIC = 0x43524153, LOG_DESCRIPTOR_MIN = 900 };

enum event_type {
    EVENT_EXISTING = 1, /* payload: path of a file that was there */
    EVENT_MADE = 2,     /* payload: path of a file that open made */
    EVENT_UNNAMED = 3,  /* an O_TMPFILE */
    EVENT_WRITE = 4,    /* payload: the data */
    EVENT_TRUNCATE = 5,
    EVENT_FALLOCATE = 6,
    EVENT_SYNC = 7,
    EVENT_RANGE_SYNC = 8,   /* sync_file_range: no promise about the medium */
    EVENT_RENAME = 9,       /* payload: old and new path */
    EVENT_LINK = 10,        /* payload: old and new path */
    EVENT_UNLINK = 11,      /* payload: path */
    EVENT_UNSUPPORTED = 12, /* a writable shared mapping */
};

enum event_flags {
    EVENT_FLAG_SYNCED = 1,     /* a write that was stable when it returned */
    EVENT_FLAG_FOLDER = 2,     /* a sync of the folder */
    EVENT_FLAG_EVERYTHING = 4, /* a sync of the whole file system */
};

struct event_header {
    uint32_t magic;
    uint16_t type;
    uint16_t flags;
    uint64_t start;
    uint64_t handle;
    uint64_t offset;
    uint64_t length;
    uint32_t mode;
    uint32_t thread;
    uint64_t payload_bytes;
};

_Static_assert(sizeof(struct event_header) == 56, "the log layout has no padding");

static int log_fd = -1;

static const char *hook_files_variable(void)
{
    return "CRASH_FILES";
}

/* The log lives on a high descriptor, out of the way of programs that count theirs. */
static void hook_start(void)
{
    const char *path = getenv("CRASH_LOG");

    if (path == NULL) {
        return;
    }
    int fd = REAL(openat64)(AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (fd < 0) {
        preload_die("cannot open CRASH_LOG");
    }
    log_fd = REAL(fcntl64)(fd, F_DUPFD_CLOEXEC, LOG_DESCRIPTOR_MIN);
    if (log_fd < 0) {
        log_fd = fd;
    } else {
        REAL(close)(fd);
    }
}

static uint64_t log_length(void)
{
    struct stat st;

    return fstat(log_fd, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* Returns room for a record with this much payload; the caller fills the payload and appends it. */
static char *new_record(const struct call *call, enum event_type type, uint64_t payload_bytes)
{
    char *record = malloc(sizeof(struct event_header) + payload_bytes);
    struct event_header header = {
        .magic = EVENT_MAGIC,
        .type = type,
        .start = call->start,
        .handle = call->entry.handle,
        .offset = call->offset,
        .length = call->length,
        .mode = call->mode,
        .thread = syscall(SYS_gettid),
        .payload_bytes = payload_bytes,
    };

    if (record == NULL) {
        preload_die("out of memory");
    }
    if (call->synced) {
        header.flags |= EVENT_FLAG_SYNCED;
    }
    if (call->entry.facts & FD_FOLDER) {
        header.flags |= EVENT_FLAG_FOLDER;
    }
    if (call->everything) {
        header.flags |= EVENT_FLAG_EVERYTHING;
    }
    memcpy(record, &header, sizeof(header));
    return record;
}

/* Consumes the record. Part of a record would make the rest of the log unreadable. */
static void append_record(char *record, uint64_t payload_bytes)
{
    size_t bytes = sizeof(struct event_header) + payload_bytes;

    if (REAL(write)(log_fd, record, bytes) != (ssize_t)bytes) {
        preload_die("cannot write CRASH_LOG");
    }
    free(record);
}

static void record_plain(const struct call *call, enum event_type type)
{
    append_record(new_record(call, type, 0), 0);
}

static void record_names(const struct call *call, enum event_type type)
{
    size_t first = strlen(call->path) + 1;
    size_t second = call->new_path != NULL ? strlen(call->new_path) + 1 : 0;
    char *record = new_record(call, type, first + second);
    char *payload = record + sizeof(struct event_header);

    memcpy(payload, call->path, first);
    if (second != 0) {
        memcpy(payload + first, call->new_path, second);
    }
    append_record(record, first + second);
}

static void record_write(struct call *call, uint64_t done)
{
    call->length = done;
    char *record = new_record(call, EVENT_WRITE, done);
    char *payload = record + sizeof(struct event_header);

    for (int i = 0; i < call->iov_count && done > 0; i++) {
        size_t part = call->iov[i].iov_len < done ? call->iov[i].iov_len : done;

        memcpy(payload, call->iov[i].iov_base, part);
        payload += part;
        done -= part;
    }
    append_record(record, call->length);
}

/* The kernel copied, so the data is read from where it came from. */
static void record_copy(struct call *call, uint64_t done)
{
    call->length = done;
    char *record = new_record(call, EVENT_WRITE, done);
    char *payload = record + sizeof(struct event_header);

    for (uint64_t copied = 0; copied < done;) {
        ssize_t part =
            pread(call->source_fd, payload + copied, done - copied, call->source_offset + copied);

        if (part <= 0) {
            preload_die("cannot read the source of a copy");
        }
        copied += part;
    }
    append_record(record, done);
}

static void record_open(struct call *call)
{
    static const enum event_type types[] = {
        [OPENED_EXISTING] = EVENT_EXISTING,
        [OPENED_MADE] = EVENT_MADE,
        [OPENED_UNNAMED] = EVENT_UNNAMED,
    };

    if (call->opened != OPENED_KNOWN) {
        record_names(call, types[call->opened]);
    }
    if ((call->mode & O_TRUNC) &&
        (call->opened == OPENED_KNOWN || call->opened == OPENED_EXISTING)) {
        record_plain(call, EVENT_TRUNCATE);
    }
}

static int hook_before(struct call *call)
{
    call->start = log_length();
    return 0;
}

static void hook_after(struct call *call, int64_t result)
{
    if (log_fd < 0) {
        return;
    }
    switch (call->kind) {
    case CALL_OPEN:
        call->start = log_length();
        record_open(call);
        break;
    case CALL_WRITE:
        record_write(call, result);
        break;
    case CALL_COPY:
        record_copy(call, result);
        break;
    case CALL_TRUNCATE:
        record_plain(call, EVENT_TRUNCATE);
        break;
    case CALL_FALLOCATE:
        record_plain(call, EVENT_FALLOCATE);
        break;
    case CALL_SYNC:
        record_plain(call, EVENT_SYNC);
        break;
    case CALL_RANGE_SYNC:
        record_plain(call, EVENT_RANGE_SYNC);
        break;
    case CALL_RENAME:
        record_names(call, EVENT_RENAME);
        break;
    case CALL_LINK:
        record_names(call, EVENT_LINK);
        break;
    case CALL_UNLINK:
        record_names(call, EVENT_UNLINK);
        break;
    case CALL_MMAP:
        record_plain(call, EVENT_UNSUPPORTED);
        break;
    case CALL_CLOSE:
    case CALL_TRY_OPEN:
    case CALL_READ:
    case CALL_SEEK:
    case CALL_STAT:
        break;
    }
}
