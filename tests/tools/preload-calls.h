/* SPDX-License-Identifier: MIT */
/*
 * The interposers: every libc name under which a program may change a file,
 * its 64-bit and fortified spellings included. All spellings of a call meet in
 * one function, which finds out whether the file is watched, fills a struct
 * call and runs the real call between the hooks.
 *
 * Included by preload.h only.
 */
#ifndef TESTS_TOOLS_PRELOAD_CALLS_H
#define TESTS_TOOLS_PRELOAD_CALLS_H

#include "preload.h"

/* ---- open, close, dup ----------------------------------------------------- */

/* What hook_before says of an open of a watched file or of a new one beside it: 0 or an errno. */
static int open_fails(int folder_fd, const char *path, int flags)
{
    char resolved[PATH_MAX] = "";
    struct call call = { .kind = CALL_TRY_OPEN, .fd = -1, .mode = flags, .path = resolved };

    if (!resolve_name(folder_fd, path, resolved) || !path_in_watched_folder(resolved)) {
        return 0;
    }
    return hook_before(&call);
}

static int interpose_open(int folder_fd, const char *path, int flags, mode_t mode)
{
    struct stat st;
    bool existed = false;

    preload_ready();
    int error = open_fails(folder_fd, path, flags);

    if (error != 0) {
        errno = error;
        return -1;
    }
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
#define OPEN_MODE(flags) \
    ({ \
        mode_t mode_ = 0; \
        if (((flags)&O_CREAT) || ((flags)&O_TMPFILE) == O_TMPFILE) { \
            va_list arguments_; \
            va_start(arguments_, flags); \
            mode_ = va_arg(arguments_, mode_t); \
            va_end(arguments_); \
        } \
        mode_; \
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
    struct call call = { .kind = CALL_CLOSE, .fd = fd, .entry = preload_fd(fd) };

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(close)(fd);
    }
    /* Forgotten before the real close: the number may be reused at once. */
    preload_set_fd(fd, (struct fd_entry){ 0, 0 });
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
#define BETWEEN_HOOKS(call, real_call) \
    ({ \
        int64_t result_ = -1; \
        int error_ = hook_before(&(call)); \
        if (error_ == 0) { \
            result_ = (real_call); \
            if (result_ >= 0) { \
                int saved_ = errno; \
                hook_after(&(call), result_); \
                errno = saved_; \
            } \
        } else { \
            errno = error_; \
        } \
        result_; \
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
    struct call call = {
        .kind = CALL_WRITE, .fd = fd, .entry = preload_fd(fd), .iov = iov, .iov_count = count
    };

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

        call.offset = REAL(fstat)(fd, &st) == 0 ? st.st_size : 0;
    } else {
        call.offset = REAL(lseek)(fd, 0, SEEK_CUR);
    }
    return BETWEEN_HOOKS(call, offset >= 0 || flags != 0
                                   ? REAL(pwritev64v2)(fd, iov, count, offset, flags)
                                   : REAL(writev)(fd, iov, count));
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    struct iovec iov = { (void *)data, bytes };

    return interpose_write(fd, &iov, 1, -1, 0);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    return interpose_write(fd, iov, count, -1, 0);
}

/*
 * A negative offset is the caller's mistake; libc answers it, and it must not become "own
 * position".
 */
#define POSITIONED_WRITE(fd, iov, count, offset, flags) \
    ((offset) < 0 ? (errno = EINVAL, (ssize_t)-1) : interpose_write(fd, iov, count, offset, flags))

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    struct iovec iov = { (void *)data, bytes };

    return POSITIONED_WRITE(fd, &iov, 1, offset, 0);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    struct iovec iov = { (void *)data, bytes };

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

/* ---- calls that look at a file -------------------------------------------- */

/* offset -1: at the descriptor's own position, as read does. */
static ssize_t interpose_read(int fd, void *data, size_t bytes, off_t offset)
{
    struct call call = {
        .kind = CALL_READ, .fd = fd, .entry = preload_fd(fd), .offset = offset, .length = bytes
    };
    int error = call.entry.facts & FD_WATCHED ? hook_before(&call) : 0;

    if (error != 0) {
        errno = error;
        return -1;
    }
    if (call.cut && call.most < bytes) {
        bytes = call.most;
    }
    return offset >= 0 ? REAL(pread64)(fd, data, bytes, offset) : REAL(read)(fd, data, bytes);
}

ssize_t read(int fd, void *data, size_t bytes)
{
    return interpose_read(fd, data, bytes, -1);
}

ssize_t pread(int fd, void *data, size_t bytes, off_t offset)
{
    return interpose_read(fd, data, bytes, offset);
}

ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset)
{
    return interpose_read(fd, data, bytes, offset);
}

static off64_t interpose_lseek(int fd, off64_t offset, int whence)
{
    struct call call = { .kind = CALL_SEEK, .fd = fd, .entry = preload_fd(fd), .offset = offset };
    int error = call.entry.facts & FD_WATCHED ? hook_before(&call) : 0;

    if (error != 0) {
        errno = error;
        return -1;
    }
    return REAL(lseek64)(fd, offset, whence);
}

off_t lseek(int fd, off_t offset, int whence)
{
    return interpose_lseek(fd, offset, whence);
}

off64_t lseek64(int fd, off64_t offset, int whence)
{
    return interpose_lseek(fd, offset, whence);
}

static int interpose_fstat(int fd, struct stat64 *st)
{
    struct call call = { .kind = CALL_STAT, .fd = fd, .entry = preload_fd(fd) };
    int error = call.entry.facts & FD_WATCHED ? hook_before(&call) : 0;

    if (error != 0) {
        errno = error;
        return -1;
    }
    return REAL(fstat64)(fd, st);
}

/* One layout on 64-bit systems, which the tests ask for. */
int fstat(int fd, struct stat *st)
{
    return interpose_fstat(fd, (struct stat64 *)st);
}

int fstat64(int fd, struct stat64 *st)
{
    return interpose_fstat(fd, st);
}

static uint64_t offset_or_position(int fd, const off64_t *offset)
{
    return offset != NULL ? (uint64_t)*offset : (uint64_t)REAL(lseek)(fd, 0, SEEK_CUR);
}

ssize_t copy_file_range(int source, off64_t *source_offset, int fd, off64_t *offset, size_t bytes,
                        unsigned flags)
{
    struct call call = {
        .kind = CALL_COPY, .fd = fd, .entry = preload_fd(fd), .source_fd = source
    };

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(copy_file_range)(source, source_offset, fd, offset, bytes, flags);
    }
    call.length = bytes;
    call.offset = offset_or_position(fd, offset);
    call.source_offset = offset_or_position(source, source_offset);
    call.synced = call.entry.facts & FD_SYNCED_WRITES;
    return BETWEEN_HOOKS(call,
                         REAL(copy_file_range)(source, source_offset, fd, offset, bytes, flags));
}

static ssize_t interpose_sendfile(int fd, int source, off64_t *source_offset, size_t bytes)
{
    struct call call = {
        .kind = CALL_COPY, .fd = fd, .entry = preload_fd(fd), .source_fd = source
    };

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

    if (REAL(fstat)(call->source_fd, &st) == 0 && call->length == 0) {
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

/* Blocks past the end of any file: whether they could be shared. It changes nothing. */
static bool only_asks(const struct file_clone_range *range)
{
    return range->src_offset >= UINT64_C(1) << 62;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;

    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (request == FICLONE || (request == FICLONERANGE && !only_asks(argument))) {
        struct call call = { .kind = CALL_COPY, .fd = fd, .entry = preload_fd(fd) };

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
    struct call call = { .kind = CALL_TRUNCATE, .fd = fd, .entry = preload_fd(fd), .offset = size };

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

    preload_set_fd(fd, (struct fd_entry){ 0, 0 });
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
    struct call call = { .kind = CALL_FALLOCATE, .fd = fd, .entry = preload_fd(fd), .mode = mode };

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
    struct call call = { .kind = CALL_FALLOCATE, .fd = fd, .entry = preload_fd(fd) };

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
    struct call call = { .kind = CALL_SYNC, .fd = fd, .entry = preload_fd(fd) };

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(fsync)(fd);
    }
    return BETWEEN_HOOKS(call, REAL(fsync)(fd));
}

int fdatasync(int fd)
{
    struct call call = { .kind = CALL_SYNC, .fd = fd, .entry = preload_fd(fd) };

    if (!(call.entry.facts & FD_WATCHED)) {
        return REAL(fdatasync)(fd);
    }
    return BETWEEN_HOOKS(call, REAL(fdatasync)(fd));
}

/* Any descriptor of the file system will do, so the watched files are taken to lie on it. */
int syncfs(int fd)
{
    struct call call = { .kind = CALL_SYNC, .fd = fd, .entry = preload_fd(fd), .everything = true };

    return BETWEEN_HOOKS(call, REAL(syncfs)(fd));
}

void sync(void)
{
    struct call call = { .kind = CALL_SYNC, .fd = -1, .everything = true };

    preload_ready();
    hook_before(&call);
    REAL(sync)();
    hook_after(&call, 0);
}

int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags)
{
    struct call call = { .kind = CALL_RANGE_SYNC, .fd = fd, .entry = preload_fd(fd) };

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
    struct call call = {
        .kind = CALL_RENAME, .mode = flags, .path = old_path, .new_path = new_path
    };

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
    struct call call = { .kind = CALL_LINK, .mode = flags, .path = old_path, .new_path = new_path };
    struct stat st;

    preload_ready();
    if (!resolve_name(new_fd, new, new_path) || !path_in_watched_folder(new_path)) {
        return REAL(linkat)(old_fd, old, new_fd, new, flags);
    }
    /*
     * The old name may be empty (AT_EMPTY_PATH) or a /proc link: the inode tells which file it is.
     */
    if (!resolve_name(old_fd, old, old_path)) {
        old_path[0] = '\0';
    }
    bool known = fstatat(old_fd, old, &st,
                         (flags & AT_EMPTY_PATH) |
                             (flags & AT_SYMLINK_FOLLOW ? 0 : AT_SYMLINK_NOFOLLOW)) == 0;

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
    struct call call = { .kind = CALL_UNLINK, .mode = flags, .path = path };

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

static void *interpose_mmap(void *address, size_t length, int protection, int flags, int fd,
                            off64_t offset)
{
    bool shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    void *mapping = REAL(mmap64)(address, length, protection, flags, fd, offset);

    if (mapping != MAP_FAILED && shared && (protection & PROT_WRITE) && !(flags & MAP_ANONYMOUS)) {
        struct call call = {
            .kind = CALL_MMAP, .fd = fd, .entry = preload_fd(fd), .offset = offset, .length = length
        };

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
