/* SPDX-License-Identifier: MIT */
/*
 * LD_PRELOAD object that makes one matching call on the watched files fail, to
 * show that a command reports every error it meets.
 *
 * Environment:
 *   FAULT_FILES       the images (see preload.h for what is then watched)
 *   FAULT_CALL        write, sync, truncate, close, fallocate, rename, link,
 *                     unlink or any of these (the default); or, of the calls that
 *                     change nothing, open, read, seek, stat, short-read (half of
 *                     the bytes), eof (none of them) or close-read
 *   FAULT_N           fail the N-th matching call, from 1; 0 or unset: none
 *   FAULT_ERRNO       EIO (the default), ENOSPC, EDQUOT or a number
 *   FAULT_ONCE        1: only this call; otherwise the fault stays, and every
 *                     later matching call fails too
 *   FAULT_COUNT_FILE  gets one line of LINE_BYTES bytes for each matching call
 *                     seen: `wc -l` counts them, line N tells which one failed
 *
 * A failed call is not made, except close, which is made and then reported as
 * failed. A write covers the copy calls (copy_file_range, sendfile, clones); a
 * sync covers syncs of the directory, but not sync_file_range. A close is one of
 * a file opened for writing, a close-read one of any other.
 *
 * The number of a call is its line number in the count file, so processes that
 * share the file share the count. Without the file each process counts alone.
 */
#include "preload.h"

enum { LINE_BYTES = 96 };

static const char *const call_names[] = {
    [CALL_WRITE] = "write",         [CALL_COPY] = "write",    [CALL_TRUNCATE] = "truncate",
    [CALL_FALLOCATE] = "fallocate", [CALL_SYNC] = "sync",     [CALL_RENAME] = "rename",
    [CALL_LINK] = "link",           [CALL_UNLINK] = "unlink", [CALL_CLOSE] = "close",
    [CALL_TRY_OPEN] = "open",       [CALL_READ] = "read",     [CALL_SEEK] = "seek",
    [CALL_STAT] = "stat",
};

/* More names: ways to do these calls badly that are not an error of theirs. */
enum { SHORT_READ = CALL_STAT + 1, EOF_READ, CLOSE_READ, NAME_COUNT };
static const char *const other_names[NAME_COUNT] = {
    [SHORT_READ] = "short-read",
    [EOF_READ] = "eof",
    [CLOSE_READ] = "close-read",
};

/* Set once at the start and only read afterwards. */
static const char *wanted_call = "any";
static uint64_t wanted_number;
static int fault_errno = EIO;
static bool fault_once;
static int count_fd = -1;

static pthread_mutex_t count_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t own_count; /* guarded by count_lock */

static const char *hook_files_variable(void)
{
    return "FAULT_FILES";
}

static int parse_errno(const char *text)
{
    static const struct {
        const char *name;
        int value;
    } known[] = { { "EIO", EIO }, { "ENOSPC", ENOSPC }, { "EDQUOT", EDQUOT } };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(text, known[i].name) == 0) {
            return known[i].value;
        }
    }
    int value = atoi(text);

    if (value <= 0) {
        preload_die("FAULT_ERRNO is not known");
    }
    return value;
}

static bool is_name(const char *name, const char *text)
{
    return name != NULL && strcmp(text, name) == 0;
}

static void parse_call(const char *text)
{
    bool found = strcmp(text, "any") == 0;

    for (size_t i = 0; i < sizeof(call_names) / sizeof(call_names[0]); i++) {
        found = found || is_name(call_names[i], text);
    }
    for (size_t i = 0; i < NAME_COUNT; i++) {
        found = found || is_name(other_names[i], text);
    }
    if (!found) {
        preload_die("FAULT_CALL is not known");
    }
    wanted_call = text;
}

static void hook_start(void)
{
    const char *call = getenv("FAULT_CALL");
    const char *number = getenv("FAULT_N");
    const char *error = getenv("FAULT_ERRNO");
    const char *once = getenv("FAULT_ONCE");
    const char *count_file = getenv("FAULT_COUNT_FILE");

    if (call != NULL) {
        parse_call(call);
    }
    if (number != NULL) {
        wanted_number = strtoull(number, NULL, 10);
    }
    if (error != NULL) {
        fault_errno = parse_errno(error);
    }
    fault_once = once != NULL && strcmp(once, "1") == 0;
    if (count_file != NULL) {
        count_fd =
            REAL(openat64)(AT_FDCWD, count_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (count_fd < 0) {
            preload_die("cannot open FAULT_COUNT_FILE");
        }
    }
}

static void describe(const struct call *call, char line[LINE_BYTES + 1])
{
    char path[PATH_MAX] = "";
    const char *shown = call->new_path != NULL ? call->new_path : call->path;

    if (shown == NULL && call->fd >= 0 && descriptor_path(call->fd, path)) {
        shown = path;
    }
    const char *slash = shown != NULL ? strrchr(shown, '/') : NULL;
    char text[LINE_BYTES];

    snprintf(text, sizeof(text), "%s %.40s offset %llu bytes %llu", call_names[call->kind],
             slash != NULL ? slash + 1 : "-", (unsigned long long)call->offset,
             (unsigned long long)call->length);
    snprintf(line, LINE_BYTES + 1, "%-*s\n", LINE_BYTES - 1, text);
}

/* Counts a matching call and returns its number. */
static uint64_t count_call(const struct call *call)
{
    char line[LINE_BYTES + 1];
    uint64_t number;

    describe(call, line);
    pthread_mutex_lock(&count_lock);
    number = ++own_count;
    if (count_fd >= 0) {
        /* After a write in append mode the position is the end of what was appended. */
        if (REAL(write)(count_fd, line, LINE_BYTES) != LINE_BYTES) {
            preload_die("cannot write FAULT_COUNT_FILE");
        }
        number = (uint64_t)REAL(lseek)(count_fd, 0, SEEK_CUR) / LINE_BYTES;
    }
    pthread_mutex_unlock(&count_lock);
    return number;
}

/* Whether FAULT_CALL means this call. */
static bool is_wanted(const struct call *call)
{
    const char *name =
        call->kind < sizeof(call_names) / sizeof(call_names[0]) ? call_names[call->kind] : NULL;

    switch (call->kind) {
    case CALL_TRY_OPEN:
    case CALL_SEEK:
    case CALL_STAT:
        return is_name(name, wanted_call);
    case CALL_READ:
        return is_name(name, wanted_call) || is_name("short-read", wanted_call) ||
               is_name("eof", wanted_call);
    case CALL_CLOSE:
        if (!(call->entry.facts & FD_WRITABLE)) {
            return is_name("close-read", wanted_call);
        }
        break;
    default:
        break;
    }
    return name != NULL && (strcmp(wanted_call, "any") == 0 || is_name(name, wanted_call));
}

static int hook_before(struct call *call)
{
    if (!is_wanted(call)) {
        return 0;
    }
    uint64_t number = count_call(call);

    if (wanted_number == 0 || number < wanted_number || (fault_once && number != wanted_number)) {
        return 0;
    }
    if (strcmp(wanted_call, "short-read") == 0 || strcmp(wanted_call, "eof") == 0) {
        call->cut = true;
        call->most = strcmp(wanted_call, "eof") == 0 ? 0 : call->length / 2;
        return 0;
    }
    return fault_errno;
}

static void hook_after(struct call *call, int64_t result)
{
    (void)call;
    (void)result;
}
