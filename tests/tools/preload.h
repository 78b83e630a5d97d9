/*
 * What the preloaded test objects share: which descriptors belong to watched
 * files, and one interposer for every libc call that changes a file.
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
#ifndef BLKIMG_TESTS_TOOLS_PRELOAD_H
#define BLKIMG_TESTS_TOOLS_PRELOAD_H

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
    uint64_t offset;           /* bytes; for a truncate the new size */
    uint64_t length;           /* bytes asked for; hook_after gets the bytes done as its result */
    const struct iovec *iov;   /* CALL_WRITE: the data */
    int iov_count;
    int source_fd;             /* CALL_COPY */
    uint64_t source_offset;
    int mode;                  /* fallocate mode, open flags, or rename flags */
    bool synced;               /* CALL_WRITE: this write is stable when it returns */
    bool everything;           /* CALL_SYNC: of the whole file system */
    enum open_result opened;
    const char *path;          /* resolved; the old name of a rename or link */
    const char *new_path;
    uint64_t start;            /* free for the hooks */
};

static const char *hook_files_variable(void);
static void hook_start(void);
static int hook_before(struct call *call);
static void hook_after(struct call *call, int64_t result);

/* The next definition of a libc function, looked up once. */
#define REAL(name)                                                                \
    ({                                                                            \
        static _Atomic(void *) found_;                                            \
        void *symbol_ = atomic_load_explicit(&found_, memory_order_relaxed);      \
        if (symbol_ == NULL) {                                                    \
            symbol_ = dlsym(RTLD_NEXT, #name);                                    \
            atomic_store_explicit(&found_, symbol_, memory_order_relaxed);        \
        }                                                                         \
        (__typeof__(&name))symbol_;                                               \
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
    int length = snprintf(resolved, PATH_MAX, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, name_copy);

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
    struct fd_entry entry = {0, 0};

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

    known_files[known_count++] = (struct known_file){st->st_dev, st->st_ino, handle};
    pthread_mutex_unlock(&preload_lock);
    return handle;
}

/*
 * Registers what an open returned. existed: the name was there before, which
 * only matters with O_CREAT. Calls hook_after for a watched regular file.
 */
static void preload_opened(int fd, int flags, bool existed)
{
    struct call call = {.kind = CALL_OPEN, .fd = fd, .mode = flags};
    struct stat st;
    char path[PATH_MAX];

    preload_set_fd(fd, (struct fd_entry){0, 0});
    if (fstat(fd, &st) != 0 || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) || !descriptor_path(fd, path)) {
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        if (folder_is_watched(path)) {
            preload_set_fd(fd, (struct fd_entry){0, FD_WATCHED | FD_FOLDER});
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

/* ---- open, close, dup ----------------------------------------------------- */

static int interpose_open(int folder_fd, const char *path, int flags, mode_t mode)
{
    struct stat st;
    bool existed = false;

    preload_ready();
    if ((flags & O_CREAT) && (flags & O_TMPFILE) != O_TMPFILE) {
        existed = fstatat(folder_fd, path, &st, 0) == 0;
    }
    int fd = REAL(openat64)(folder_fd, path, flags, mode);

    if (fd >= 0) {
        int saved = errno;

        preload_opened(fd, flags, existed);
        errno = saved;
    }
    return fd;
}

/* The mode argument is only there when a file may be made. */
#define OPEN_MODE(flags)                                             \
    ({                                                               \
        mode_t mode_ = 0;                                            \
        if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) { \
            va_list arguments_;                                      \
            va_start(arguments_, flags);                             \
            mode_ = va_arg(arguments_, mode_t);                      \
            va_end(arguments_);                                      \
        }                                                            \
        mode_;                                                       \
    })

int open(const char *path, int flags, ...)
{
    return interpose_open(AT_FDCWD, path, flags, OPEN_MODE(flags));
}

int open64(const char *path, int flags, ...)
{
    return interpose_open(AT_FDCWD, path, flags, OPEN_MODE(flags));
}

int openat(int folder_fd, const char *path, int flags, ...)
{
    return interpose_open(folder_fd, path, flags, OPEN_MODE(flags));
}

int openat64(int folder_fd, const char *path, int flags, ...)
{
    return interpose_open(folder_fd, path, flags, OPEN_MODE(flags));
}

int creat(const char *path, mode_t mode)
{
    return interpose_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode)
{
    return interpose_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* What programs compiled with _FORTIFY_SOURCE call. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int folder_fd, const char *path, int flags);
int __openat64_2(int folder_fd, const char *path, int flags);

int __open_2(const char *path, int flags)
{
    return interpose_open(AT_FDCWD, path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
    return interpose_open(AT_FDCWD, path, flags, 0);
}

int __openat_2(int folder_fd, const char *path, int flags)
{
    return interpose_open(folder_fd, path, flags, 0);
}

int __openat64_2(int folder_fd, const char *path, int flags)
{
    return interpose_open(folder_fd, path, flags, 0);
}

int close(int fd)
{
    struct call call = {.kind = CALL_CLOSE, .fd = fd, .entry = preload_fd(fd)};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(close)(fd);
    }
    /* Forgotten before the real close: the number may be reused at once. */
    preload_set_fd(fd, (struct fd_entry){0, 0});
    int error = hook_before(&call);
    int result = REAL(close)(fd);

    if (error != 0) {
        errno = error;
        return -1;
    }
    return result;
}

int dup(int fd)
{
    int copy = REAL(dup)(fd);

    preload_set_fd(copy, preload_fd(fd));
    return copy;
}

int dup2(int fd, int wanted)
{
    int copy = REAL(dup2)(fd, wanted);

    preload_set_fd(copy, preload_fd(fd));
    return copy;
}

int dup3(int fd, int wanted, int flags)
{
    int copy = REAL(dup3)(fd, wanted, flags);

    preload_set_fd(copy, preload_fd(fd));
    return copy;
}

static int interpose_fcntl(int fd, int command, void *argument)
{
    int result = REAL(fcntl64)(fd, command, argument);

    if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC)) {
        preload_set_fd(result, preload_fd(fd));
    }
    return result;
}

/* Every fcntl argument is an int or a pointer: both pass unchanged as a pointer-sized word. */
int fcntl(int fd, int command, ...)
{
    va_list arguments;

    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return interpose_fcntl(fd, command, argument);
}

int fcntl64(int fd, int command, ...)
{
    va_list arguments;

    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return interpose_fcntl(fd, command, argument);
}

/* ---- calls that change data ----------------------------------------------- */

/*
 * Runs the real call between the hooks; its value is the call's result, or -1
 * with errno set by hook_before.
 */
#define BETWEEN_HOOKS(call, real_call)             \
    ({                                             \
        int64_t result_ = -1;                      \
        int error_ = hook_before(&(call));         \
        if (error_ == 0) {                         \
            result_ = (real_call);                 \
            if (result_ >= 0) {                    \
                int saved_ = errno;                \
                hook_after(&(call), result_);      \
                errno = saved_;                    \
            }                                      \
        } else {                                   \
            errno = error_;                        \
        }                                          \
        result_;                                   \
    })

static uint64_t iov_bytes(const struct iovec *iov, int count)
{
    uint64_t bytes = 0;

    for (int i = 0; i < count; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}

/* offset -1: at the descriptor's own position, as write does. */
static ssize_t interpose_write(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    struct call call = {.kind = CALL_WRITE, .fd = fd, .entry = preload_fd(fd), .iov = iov, .iov_count = count};

    if (!(call.entry.facts & FD_WATCHED)) {
        return offset >= 0 || flags != 0 ? REAL(pwritev64v2)(fd, iov, count, offset, flags)
                                         : REAL(writev)(fd, iov, count);
    }
    call.length = iov_bytes(iov, count);
    call.synced = (call.entry.facts & FD_SYNCED_WRITES) || (flags & (RWF_DSYNC | RWF_SYNC));
    int status = REAL(fcntl)(fd, F_GETFL);
    bool append = (status >= 0 && (status & O_APPEND)) || (flags & RWF_APPEND);

    if (offset >= 0 && !append) {
        call.offset = offset;
    } else if (append) {
        struct stat st;

        call.offset = fstat(fd, &st) == 0 ? st.st_size : 0;
    } else {
        call.offset = lseek(fd, 0, SEEK_CUR);
    }
    return BETWEEN_HOOKS(call, offset >= 0 || flags != 0 ? REAL(pwritev64v2)(fd, iov, count, offset, flags)
                                                         : REAL(writev)(fd, iov, count));
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    struct iovec iov = {(void *)data, bytes};

    return interpose_write(fd, &iov, 1, -1, 0);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    return interpose_write(fd, iov, count, -1, 0);
}

/* A negative offset is the caller's mistake; libc answers it, and it must not become "own position". */
#define POSITIONED_WRITE(fd, iov, count, offset, flags) \
    ((offset) < 0 ? (errno = EINVAL, (ssize_t)-1) : interpose_write(fd, iov, count, offset, flags))

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    struct iovec iov = {(void *)data, bytes};

    return POSITIONED_WRITE(fd, &iov, 1, offset, 0);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    struct iovec iov = {(void *)data, bytes};

    return POSITIONED_WRITE(fd, &iov, 1, offset, 0);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    return POSITIONED_WRITE(fd, iov, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t offset)
{
    return POSITIONED_WRITE(fd, iov, count, offset, 0);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return interpose_write(fd, iov, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off64_t offset, int flags)
{
    return interpose_write(fd, iov, count, offset, flags);
}

static uint64_t offset_or_position(int fd, const off64_t *offset)
{
    return offset != NULL ? (uint64_t)*offset : (uint64_t)lseek(fd, 0, SEEK_CUR);
}

ssize_t copy_file_range(int source, off64_t *source_offset, int fd, off64_t *offset, size_t bytes, unsigned flags)
{
    struct call call = {.kind = CALL_COPY, .fd = fd, .entry = preload_fd(fd), .source_fd = source};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(copy_file_range)(source, source_offset, fd, offset, bytes, flags);
    }
    call.length = bytes;
    call.offset = offset_or_position(fd, offset);
    call.source_offset = offset_or_position(source, source_offset);
    call.synced = call.entry.facts & FD_SYNCED_WRITES;
    return BETWEEN_HOOKS(call, REAL(copy_file_range)(source, source_offset, fd, offset, bytes, flags));
}

static ssize_t interpose_sendfile(int fd, int source, off64_t *source_offset, size_t bytes)
{
    struct call call = {.kind = CALL_COPY, .fd = fd, .entry = preload_fd(fd), .source_fd = source};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(sendfile64)(fd, source, source_offset, bytes);
    }
    call.length = bytes;
    call.offset = offset_or_position(fd, NULL);
    call.source_offset = offset_or_position(source, source_offset);
    call.synced = call.entry.facts & FD_SYNCED_WRITES;
    return BETWEEN_HOOKS(call, REAL(sendfile64)(fd, source, source_offset, bytes));
}

ssize_t sendfile(int fd, int source, off_t *source_offset, size_t bytes)
{
    return interpose_sendfile(fd, source, source_offset, bytes);
}

ssize_t sendfile64(int fd, int source, off64_t *source_offset, size_t bytes)
{
    return interpose_sendfile(fd, source, source_offset, bytes);
}

/* Clones part of source_fd; the ioctl returns 0, so the hook is given the bytes. */
static int interpose_clone(int fd, unsigned long request, void *argument, struct call *call)
{
    struct stat st;

    if (fstat(call->source_fd, &st) == 0 && call->length == 0) {
        call->length = st.st_size - call->source_offset;
    }
    int error = hook_before(call);

    if (error != 0) {
        errno = error;
        return -1;
    }
    int result = REAL(ioctl)(fd, request, argument);

    if (result == 0) {
        hook_after(call, call->length);
    }
    return result;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;

    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (request == FICLONE || request == FICLONERANGE) {
        struct call call = {.kind = CALL_COPY, .fd = fd, .entry = preload_fd(fd)};

        if (call.entry.facts & FD_WATCHED) {
            if (request == FICLONE) {
                call.source_fd = (int)(intptr_t)argument;
            } else {
                const struct file_clone_range *range = argument;

                call.source_fd = range->src_fd;
                call.source_offset = range->src_offset;
                call.length = range->src_length;
                call.offset = range->dest_offset;
            }
            return interpose_clone(fd, request, argument, &call);
        }
    }
    return REAL(ioctl)(fd, request, argument);
}

/* ---- calls that change size and allocation -------------------------------- */

static int interpose_ftruncate(int fd, off64_t size)
{
    struct call call = {.kind = CALL_TRUNCATE, .fd = fd, .entry = preload_fd(fd), .offset = size};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(ftruncate64)(fd, size);
    }
    return BETWEEN_HOOKS(call, REAL(ftruncate64)(fd, size));
}

int ftruncate(int fd, off_t size)
{
    return interpose_ftruncate(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return interpose_ftruncate(fd, size);
}

/* By name: through a descriptor, so that the file is recognised as everywhere else. */
static int interpose_truncate(const char *path, off64_t size)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0) {
        return -1;
    }
    int result = interpose_ftruncate(fd, size);
    int saved = errno;

    preload_set_fd(fd, (struct fd_entry){0, 0});
    REAL(close)(fd);
    errno = saved;
    return result;
}

int truncate(const char *path, off_t size)
{
    return interpose_truncate(path, size);
}

int truncate64(const char *path, off64_t size)
{
    return interpose_truncate(path, size);
}

static int interpose_fallocate(int fd, int mode, off64_t offset, off64_t length)
{
    struct call call = {.kind = CALL_FALLOCATE, .fd = fd, .entry = preload_fd(fd), .mode = mode};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(fallocate64)(fd, mode, offset, length);
    }
    call.offset = offset;
    call.length = length;
    return BETWEEN_HOOKS(call, REAL(fallocate64)(fd, mode, offset, length));
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return interpose_fallocate(fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    return interpose_fallocate(fd, mode, offset, length);
}

/* Returns the error instead of setting errno, and so keeps errno as it was. */
static int interpose_posix_fallocate(int fd, off64_t offset, off64_t length)
{
    struct call call = {.kind = CALL_FALLOCATE, .fd = fd, .entry = preload_fd(fd)};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(posix_fallocate64)(fd, offset, length);
    }
    call.offset = offset;
    call.length = length;
    int error = hook_before(&call);

    if (error == 0) {
        error = REAL(posix_fallocate64)(fd, offset, length);
        if (error == 0) {
            hook_after(&call, 0);
        }
    }
    return error;
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    return interpose_posix_fallocate(fd, offset, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    return interpose_posix_fallocate(fd, offset, length);
}

/* ---- syncs ---------------------------------------------------------------- */

int fsync(int fd)
{
    struct call call = {.kind = CALL_SYNC, .fd = fd, .entry = preload_fd(fd)};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(fsync)(fd);
    }
    return BETWEEN_HOOKS(call, REAL(fsync)(fd));
}

int fdatasync(int fd)
{
    struct call call = {.kind = CALL_SYNC, .fd = fd, .entry = preload_fd(fd)};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(fdatasync)(fd);
    }
    return BETWEEN_HOOKS(call, REAL(fdatasync)(fd));
}

/* Any descriptor of the file system will do, so the watched files are taken to lie on it. */
int syncfs(int fd)
{
    struct call call = {.kind = CALL_SYNC, .fd = fd, .entry = preload_fd(fd), .everything = true};

    return BETWEEN_HOOKS(call, REAL(syncfs)(fd));
}

void sync(void)
{
    struct call call = {.kind = CALL_SYNC, .fd = -1, .everything = true};

    preload_ready();
    hook_before(&call);
    REAL(sync)();
    hook_after(&call, 0);
}

int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags)
{
    struct call call = {.kind = CALL_RANGE_SYNC, .fd = fd, .entry = preload_fd(fd)};

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(sync_file_range)(fd, offset, length, flags);
    }
    call.offset = offset;
    call.length = length;
    return BETWEEN_HOOKS(call, REAL(sync_file_range)(fd, offset, length, flags));
}

/* ---- names ---------------------------------------------------------------- */

int renameat2(int old_fd, const char *old, int new_fd, const char *new, unsigned flags)
{
    char old_path[PATH_MAX] = "", new_path[PATH_MAX] = "";
    struct call call = {.kind = CALL_RENAME, .mode = flags, .path = old_path, .new_path = new_path};

    preload_ready();
    if (!resolve_name(old_fd, old, old_path) || !resolve_name(new_fd, new, new_path) ||
        !(path_in_watched_folder(old_path) || path_in_watched_folder(new_path))) {
        return REAL(renameat2)(old_fd, old, new_fd, new, flags);
    }
    return BETWEEN_HOOKS(call, REAL(renameat2)(old_fd, old, new_fd, new, flags));
}

int rename(const char *old, const char *new)
{
    return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0);
}

int renameat(int old_fd, const char *old, int new_fd, const char *new)
{
    return renameat2(old_fd, old, new_fd, new, 0);
}

int linkat(int old_fd, const char *old, int new_fd, const char *new, int flags)
{
    char old_path[PATH_MAX] = "", new_path[PATH_MAX] = "";
    struct call call = {.kind = CALL_LINK, .mode = flags, .path = old_path, .new_path = new_path};
    struct stat st;

    preload_ready();
    if (!resolve_name(new_fd, new, new_path) || !path_in_watched_folder(new_path)) {
        return REAL(linkat)(old_fd, old, new_fd, new, flags);
    }
    /* The old name may be empty (AT_EMPTY_PATH) or a /proc link: the inode tells which file it is. */
    if (!resolve_name(old_fd, old, old_path)) {
        old_path[0] = '\0';
    }
    bool known = fstatat(old_fd, old, &st, (flags & AT_EMPTY_PATH) | (flags & AT_SYMLINK_FOLLOW ? 0 : AT_SYMLINK_NOFOLLOW)) == 0;

    if (known) {
        call.entry.handle = find_handle(&st);
    }
    return BETWEEN_HOOKS(call, REAL(linkat)(old_fd, old, new_fd, new, flags));
}

int link(const char *old, const char *new)
{
    return linkat(AT_FDCWD, old, AT_FDCWD, new, 0);
}

int unlinkat(int folder_fd, const char *name, int flags)
{
    char path[PATH_MAX] = "";
    struct call call = {.kind = CALL_UNLINK, .mode = flags, .path = path};

    preload_ready();
    if (!resolve_name(folder_fd, name, path) || !path_in_watched_folder(path)) {
        return REAL(unlinkat)(folder_fd, name, flags);
    }
    return BETWEEN_HOOKS(call, REAL(unlinkat)(folder_fd, name, flags));
}

int unlink(const char *name)
{
    return unlinkat(AT_FDCWD, name, 0);
}

/* ---- mappings ------------------------------------------------------------- */

static void *interpose_mmap(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    bool shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    void *mapping = REAL(mmap64)(address, length, protection, flags, fd, offset);

    if (mapping != MAP_FAILED && shared && (protection & PROT_WRITE) && !(flags & MAP_ANONYMOUS)) {
        struct call call = {.kind = CALL_MMAP, .fd = fd, .entry = preload_fd(fd), .offset = offset, .length = length};

        if (call.entry.facts & FD_WATCHED) {
            hook_after(&call, 0);
        }
    }
    return mapping;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return interpose_mmap(address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return interpose_mmap(address, length, protection, flags, fd, offset);
}

#endif
