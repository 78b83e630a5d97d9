/* SPDX-License-Identifier: MIT */
/*
 * What the preloaded test objects share: which descriptors belong to watched
 * files, and, in preload-calls.h, one interposer for every libc call that
 * changes a file, and for those that look at one.
 *
 * A source file that includes this one defines two hooks and gets a whole
 * LD_PRELOAD object:
 *
 *   hook_before()  sees a call on a watched file before it is made. It returns
 *                  0, or an errno value to fail the call with: the call is then
 *                  not made (a close is made all the same, because a descriptor
 *                  is gone whatever close returns).
 *   hook_after()   sees a call that was made and succeeded, with its result.
 *
 * What is watched: the files listed in the environment variable that
 * hook_files_variable() names (colon-separated), the folders that hold them
 * (for fsync of a folder and for names), and every file that the process itself
 * makes in one of these folders, named or O_TMPFILE, since such a file may get
 * a watched name later. A listed file is known by device and inode at open, so
 * links and relative names do not hide it.
 *
 * Each file gets a handle when it is first opened; a file that is made gets a
 * fresh one, so that a reused inode number is not taken for the old file.
 *
 * Only calls through libc's dynamic symbols are seen: not io_uring, io_submit,
 * syscall(2) and stdio streams, nor close_range.
 */
#ifndef TESTS_TOOLS_PRELOAD_H
#define TESTS_TOOLS_PRELOAD_H

/* The fortified inline versions in the libc headers would clash with the definitions below. */
#undef _FORTIFY_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum call_kind {
    CALL_OPEN,
    CALL_WRITE,
    CALL_COPY,
    CALL_TRUNCATE,
    CALL_FALLOCATE,
    CALL_SYNC,
    CALL_RANGE_SYNC,
    CALL_RENAME,
    CALL_LINK,
    CALL_UNLINK,
    CALL_CLOSE,
    CALL_MMAP,
    CALL_TRY_OPEN, /* an open that is about to be made; CALL_OPEN is one that succeeded */
    CALL_READ,
    CALL_SEEK,
    CALL_STAT,
};

/* Facts about a descriptor. */
enum {
    FD_WATCHED = 1 << 0,
    FD_WRITABLE = 1 << 1,
    FD_SYNCED_WRITES = 1 << 2, /* O_DSYNC or O_SYNC */
    FD_FOLDER = 1 << 3,
};

struct fd_entry {
    uint64_t handle; /* 0 for a folder */
    unsigned facts;
};

/* How an open found its file; only for CALL_OPEN. */
enum open_result {
    OPENED_KNOWN,    /* the handle was given out before */
    OPENED_EXISTING, /* a listed file, first seen now */
    OPENED_MADE,     /* the open made it, under a name */
    OPENED_UNNAMED,  /* O_TMPFILE */
};

/* One call. Fields that a kind does not use are zero. */
struct call {
    enum call_kind kind;
    struct fd_entry entry;
    int fd;
    uint64_t offset;         /* bytes; for a truncate the new size */
    uint64_t length;         /* bytes asked for; hook_after gets the bytes done as its result */
    const struct iovec *iov; /* CALL_WRITE: the data */
    int iov_count;
    int source_fd; /* CALL_COPY */
    uint64_t source_offset;
    int mode;        /* fallocate mode, open flags, or rename flags */
    bool synced;     /* CALL_WRITE: this write is stable when it returns */
    bool everything; /* CALL_SYNC: of the whole file system */
    enum open_result opened;
    bool cut; /* CALL_READ: hook_before wants at most `most` bytes to be read */
    uint64_t most;
    const char *path; /* resolved; the old name of a rename or link */
    const char *new_path;
    uint64_t start; /* free for the hooks */
};

static const char *hook_files_variable(void);
static void hook_start(void);
static int hook_before(struct call *call);
static void hook_after(struct call *call, int64_t result);

/* The next definition of a libc function, looked up once. */
#define REAL(name) \
    ({ \
        static _Atomic(void *) found_; \
        void *symbol_ = atomic_load_explicit(&found_, memory_order_relaxed); \
        if (symbol_ == NULL) { \
            symbol_ = dlsym(RTLD_NEXT, #name); \
            atomic_store_explicit(&found_, symbol_, memory_order_relaxed); \
        } \
        (__typeof__(&name))symbol_; \
    })

/* ---- what is watched ------------------------------------------------------ */

enum { MAX_DESCRIPTORS = 65536, MAX_LISTED = 64, MAX_FILES = 4096 };

struct known_file {
    dev_t dev;
    ino_t ino;
    uint64_t handle;
};

static pthread_once_t preload_once = PTHREAD_ONCE_INIT;

/* Both lists are filled once at the start and only read afterwards. */
static char *listed_paths[MAX_LISTED];
static int listed_count;
static char *watched_folders[2 * MAX_LISTED];
static int folder_count;

static pthread_mutex_t preload_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fd_entry descriptors[MAX_DESCRIPTORS]; /* guarded by preload_lock */
static struct known_file known_files[MAX_FILES];     /* guarded by preload_lock */
static int known_count;                              /* guarded by preload_lock */

static void __attribute__((noreturn)) preload_die(const char *what)
{
    dprintf(STDERR_FILENO, "preload: %s\n", what);
    _exit(126);
}

static bool folder_is_watched(const char *folder)
{
    for (int i = 0; i < folder_count; i++) {
        if (strcmp(watched_folders[i], folder) == 0) {
            return true;
        }
    }
    return false;
}

/* Whether the folder part of an absolute, resolved path is a watched folder. */
static bool path_in_watched_folder(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');

    if (slash == NULL || (size_t)(slash - path) >= sizeof(folder)) {
        return false;
    }
    memcpy(folder, path, slash - path);
    folder[slash - path] = '\0';
    return folder_is_watched(slash == path ? "/" : folder);
}

static bool path_is_listed(const char *path)
{
    for (int i = 0; i < listed_count; i++) {
        if (strcmp(listed_paths[i], path) == 0) {
            return true;
        }
    }
    return false;
}

/*
 * Resolves the folder of a path, but not its last part: that is a name to be
 * made, replaced or removed. Returns false if the folder cannot be resolved.
 */
static bool resolve_name(int folder_fd, const char *path, char resolved[PATH_MAX])
{
    char full[PATH_MAX + 64];
    char folder[PATH_MAX];

    if (path[0] == '/' || folder_fd == AT_FDCWD) {
        snprintf(full, sizeof(full), "%s", path);
    } else {
        snprintf(full, sizeof(full), "/proc/self/fd/%d/%s", folder_fd, path);
    }
    char *slash = strrchr(full, '/');
    const char *name = slash != NULL ? slash + 1 : full;
    const char *parent = slash == NULL ? "." : slash == full ? "/" : full;
    char name_copy[NAME_MAX + 1];

    if (strlen(name) >= sizeof(name_copy)) {
        return false;
    }
    strcpy(name_copy, name);
    if (slash != NULL && slash != full) {
        *slash = '\0';
    }
    if (realpath(parent, folder) == NULL) {
        return false;
    }
    int length =
        snprintf(resolved, PATH_MAX, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, name_copy);

    return length < PATH_MAX;
}

static void watch_folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = strndup(path, slash == path ? 1 : (size_t)(slash - path));

    if (folder == NULL) {
        preload_die("out of memory");
    }
    if (folder_is_watched(folder)) {
        free(folder);
        return;
    }
    watched_folders[folder_count++] = folder;
}

static void watch_listed(const char *name)
{
    char path[PATH_MAX];

    if (listed_count == MAX_LISTED) {
        preload_die("too many files listed");
    }
    if (!resolve_name(AT_FDCWD, name, path)) {
        return;
    }
    watch_folder_of(path);
    /* Of a symbolic link both its own folder and its target's see changes. */
    char *target = realpath(path, NULL);

    if (target == NULL) {
        target = strdup(path);
    }
    if (target == NULL) {
        preload_die("out of memory");
    }
    watch_folder_of(target);
    listed_paths[listed_count++] = target;
}

/* The path of an open descriptor, resolved by the kernel. */
static bool descriptor_path(int fd, char path[PATH_MAX])
{
    char link[64];

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);

    if (length < 0) {
        return false;
    }
    path[length] = '\0';
    return true;
}

static void preload_opened(int fd, int flags, bool existed);

static void preload_start(void)
{
    const char *list = getenv(hook_files_variable());
    char *copy = strdup(list != NULL ? list : "");
    char *rest = copy;

    if (copy == NULL) {
        preload_die("out of memory");
    }
    for (char *name; (name = strsep(&rest, ":")) != NULL;) {
        if (name[0] != '\0') {
            watch_listed(name);
        }
    }
    free(copy);
    hook_start();
}

static void preload_ready(void)
{
    pthread_once(&preload_once, preload_start);
}

/* Descriptors that were inherited, such as a shell's redirection, are watched too. */
static void __attribute__((constructor)) preload_load(void)
{
    preload_ready();
    for (int fd = 0; fd < 64; fd++) {
        int flags = REAL(fcntl)(fd, F_GETFL);

        if (flags >= 0) {
            preload_opened(fd, flags & ~(O_CREAT | O_TRUNC), true);
        }
    }
}

static struct fd_entry preload_fd(int fd)
{
    struct fd_entry entry = { 0, 0 };

    preload_ready();
    if (fd >= 0 && fd < MAX_DESCRIPTORS) {
        pthread_mutex_lock(&preload_lock);
        entry = descriptors[fd];
        pthread_mutex_unlock(&preload_lock);
    }
    return entry;
}

static void preload_set_fd(int fd, struct fd_entry entry)
{
    if (fd < 0) {
        return;
    }
    if (fd >= MAX_DESCRIPTORS) {
        if (entry.facts & FD_WATCHED) {
            preload_die("descriptor number too large");
        }
        return;
    }
    pthread_mutex_lock(&preload_lock);
    descriptors[fd] = entry;
    pthread_mutex_unlock(&preload_lock);
}

/* The newest handle given to an inode, or 0. */
static uint64_t find_handle(const struct stat *st)
{
    uint64_t handle = 0;

    pthread_mutex_lock(&preload_lock);
    for (int i = known_count - 1; i >= 0 && handle == 0; i--) {
        if (known_files[i].dev == st->st_dev && known_files[i].ino == st->st_ino) {
            handle = known_files[i].handle;
        }
    }
    pthread_mutex_unlock(&preload_lock);
    return handle;
}

/* Handles carry the process id, so that those of a child are not mistaken for its parent's. */
static uint64_t add_handle(const struct stat *st)
{
    pthread_mutex_lock(&preload_lock);
    if (known_count == MAX_FILES) {
        preload_die("too many files");
    }
    uint64_t handle = (uint64_t)getpid() << 32 | (uint64_t)(known_count + 1);

    known_files[known_count++] = (struct known_file){ st->st_dev, st->st_ino, handle };
    pthread_mutex_unlock(&preload_lock);
    return handle;
}

/*
 * Registers what an open returned. existed: the name was there before, which
 * only matters with O_CREAT. Calls hook_after for a watched regular file.
 */
static void preload_opened(int fd, int flags, bool existed)
{
    struct call call = { .kind = CALL_OPEN, .fd = fd, .mode = flags };
    struct stat st;
    char path[PATH_MAX];

    preload_set_fd(fd, (struct fd_entry){ 0, 0 });
    if (REAL(fstat)(fd, &st) != 0 || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) ||
        !descriptor_path(fd, path)) {
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        if (folder_is_watched(path)) {
            preload_set_fd(fd, (struct fd_entry){ 0, FD_WATCHED | FD_FOLDER });
        }
        return;
    }
    call.path = path;
    call.entry.facts = FD_WATCHED;
    if ((flags & O_ACCMODE) != O_RDONLY) {
        call.entry.facts |= FD_WRITABLE;
    }
    if (flags & O_DSYNC) { /* O_SYNC contains O_DSYNC */
        call.entry.facts |= FD_SYNCED_WRITES;
    }
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        if (!path_in_watched_folder(path)) {
            return;
        }
        call.opened = OPENED_UNNAMED;
        call.entry.handle = add_handle(&st);
    } else if ((flags & O_CREAT) && !existed) {
        if (!path_in_watched_folder(path)) {
            return;
        }
        call.opened = OPENED_MADE;
        call.entry.handle = add_handle(&st);
    } else {
        call.opened = OPENED_KNOWN;
        call.entry.handle = find_handle(&st);
        if (call.entry.handle == 0) {
            if (!path_is_listed(path)) {
                return;
            }
            call.opened = OPENED_EXISTING;
            call.entry.handle = add_handle(&st);
        }
    }
    preload_set_fd(fd, call.entry);
    hook_after(&call, fd);
}

#include "preload-calls.h"

#endif
