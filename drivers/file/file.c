/*
 * The life of a file node, and its data requests.
 *
 * Every image call goes through blk_sys, is repeated when a signal interrupts it, and continued
 * when it does less than asked. A read past the end gives zeroes; a write past the end grows the
 * node.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/open_files.h"
#include "blockcore/graph/options.h"
#include "drivers/drivers.h"
#include "drivers/file/file.h"

/* How often an open is repeated because the name led elsewhere as soon as its file was locked. */
#define MAX_OPEN_TRIES 20

/* ---- options ---- */

static int parse_filename(const char *filename, struct blk_options *options, struct blk_error *err)
{
    (void)err;
    blk_options_set(options, "filename", strchr(filename, ':') + 1);
    return 0;
}

static int read_locking(const char *text, enum file_locking *mode, struct blk_error *err)
{
    static const char *const names[] = {
        [FILE_LOCKING_AUTO] = "auto",
        [FILE_LOCKING_ON] = "on",
        [FILE_LOCKING_OFF] = "off",
    };
    for (size_t i = 0; text && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) == 0) {
            *mode = (enum file_locking)i;
            return 0;
        }
    }
    return text ? blk_fail_why(err, EINVAL, "it can be auto, on or off", "option locking=%s", text)
                : 0;
}

/*
 * QEMU's ways of doing asynchronous I/O. There is no native one: scripts that name it get threads.
 */
static int read_aio(const char *text, bool *uring, struct blk_error *err)
{
    *uring = text && strcmp(text, "io_uring") == 0;
    if (*uring)
        return file_uring_check(err);
    if (!text || strcmp(text, "threads") == 0 || strcmp(text, "native") == 0)
        return 0;
    return blk_fail_why(err, EINVAL, "it can be threads, native or io_uring", "option aio=%s",
                        text);
}

int file_read_settings(struct blk_options *options, struct file_settings *settings,
                       struct blk_error *err)
{
    *settings = (struct file_settings){ .filename = blk_options_get(options, "filename") };
    if (!settings->filename)
        return blk_fail_why(err, EINVAL, "the option 'filename' is missing",
                            "Could not open a file");

    int ret = read_locking(blk_options_get(options, "locking"), &settings->lock_policy.mode, err);
    if (ret == 0)
        ret = blk_options_get_uint(options, "lock-wait", &settings->lock_policy.wait_seconds, err);
    if (ret == 0)
        ret = read_aio(blk_options_get(options, "aio"), &settings->uring, err);
    bool drop_cache; /* only matters for live migration */
    if (ret == 0)
        ret = blk_options_get_bool(options, "drop-cache", &drop_cache, err);
    return ret;
}

/* ---- opening ---- */

int file_open_mode(unsigned flags, struct blk_cache_mode cache)
{
    return (flags & BLK_WRITABLE ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY |
           (cache.direct ? O_DIRECT : 0);
}

/* Refuses what is neither a regular file nor a block device. */
static int check_type(const char *path, mode_t mode, struct blk_error *err)
{
    if (S_ISREG(mode) || S_ISBLK(mode))
        return 0;
    if (S_ISDIR(mode))
        return blk_fail_why(err, EISDIR, "it is a directory, not a file or block device",
                            "Could not open '%s'", path);
    return blk_fail_why(err, EINVAL,
                        S_ISFIFO(mode)   ? "it is a pipe, not a file or block device"
                        : S_ISSOCK(mode) ? "it is a socket, not a file or block device"
                                         : "it is a character device, not a file or block device",
                        "Could not open '%s'", path);
}

static int open_failed(const char *path, unsigned flags, struct blk_cache_mode cache, int code,
                       struct blk_error *err)
{
    if (code == EINVAL && cache.direct)
        return blk_fail_why(err, code, "its file system cannot bypass the page cache (O_DIRECT)",
                            "Could not open '%s'", path);
    return blk_fail(err, code, "Could not open '%s'%s", path,
                    flags & BLK_WRITABLE && (code == EACCES || code == EROFS || code == EPERM)
                        ? " for writing" : "");
}

/* Looks before it opens: opening a pipe may block, opening a character device may do anything. */
static int open_path(const char *path, unsigned flags, struct blk_cache_mode cache,
                     struct stat *st, struct blk_error *err)
{
    if (blk_sys->fstatat(AT_FDCWD, path, st, 0) < 0) {
        int code = errno;
        int taken = code == ENOENT ? blk_open_files_check_name(path, err) : 0;
        return taken < 0 ? taken : blk_fail(err, code, "Could not open '%s'", path);
    }
    int ret = check_type(path, st->st_mode, err);
    if (ret < 0)
        return ret;

    int fd;
    do
        fd = blk_sys->openat(AT_FDCWD, path, file_open_mode(flags, cache) | O_NONBLOCK, 0);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return open_failed(path, flags, cache, errno, err);

    /* What was opened may be another file than the one looked at. */
    ret = blk_sys->fstat(fd, st) < 0 ? blk_fail(err, errno, "Could not open '%s'", path)
                                     : check_type(path, st->st_mode, err);
    if (ret == 0) {
        int status = blk_sys->fcntl_int(fd, F_GETFL, 0);
        if (status < 0 || blk_sys->fcntl_int(fd, F_SETFL, status & ~O_NONBLOCK) < 0)
            ret = blk_fail(err, errno, "Could not open '%s'", path);
    }
    if (ret < 0)
        blk_sys->close(fd);
    return ret < 0 ? ret : fd;
}

/*
 * Whoever held the lock while we waited may have grown, cut or replaced the file: what was seen of
 * it before means nothing. Describes it anew, as nobody can change it any more.
 */
static int look_again(int fd, const char *path, struct stat *st, struct blk_error *err)
{
    if (blk_sys->fstat(fd, st) < 0)
        return blk_fail(err, errno, "Could not open '%s'", path);
    return check_type(path, st->st_mode, err);
}

/* Whether `path` leads to the file that `st` describes. */
static bool leads_to(const char *path, const struct stat *st)
{
    struct stat now;
    return blk_sys->fstatat(AT_FDCWD, path, &now, 0) == 0 && now.st_dev == st->st_dev &&
           now.st_ino == st->st_ino;
}

int file_open_locked(const char *path, unsigned flags, struct blk_cache_mode cache,
                     const struct file_lock_policy *policy, struct file_locks *locks,
                     struct stat *st, struct blk_error *err)
{
    for (int tries = 0; tries < MAX_OPEN_TRIES; tries++) {
        *locks = (struct file_locks)FILE_LOCKS_NONE;
        int fd = open_path(path, flags, cache, st, err);
        if (fd < 0)
            return fd;
        int ret = blk_open_files_check(NULL, st, flags & BLK_WRITABLE, path, err);
        if (ret == 0)
            ret = file_locks_take(locks, fd, file_lock_bits(flags), policy, path, err);
        if (ret == 0)
            ret = look_again(fd, path, st, err);
        if (ret == 0 && leads_to(path, st))
            return fd;
        blk_sys->close(fd);
        if (ret < 0)
            return ret;
    }
    return blk_fail_why(err, EAGAIN, "the file of that name keeps changing",
                        "Could not open '%s'", path);
}

int file_init(struct blk_node *node, int fd, const struct stat *st, const struct file_locks *locks,
              const struct file_settings *settings, struct blk_error *err)
{
    struct file_state *s = node->state;
    uint64_t size;
    int ret = file_medium_size(fd, st, &size);
    if (ret < 0)
        return blk_fail(err, -ret, "finding out the size of '%s'", node->name);
    if (size > BLK_MAX_BYTES)
        return blk_fail_why(err, EFBIG, "it is too large", "Could not open '%s'", node->name);
    ret = file_find_limits(fd, st, node->cache.direct, &node->limits);
    if (ret < 0)
        return blk_fail(err, -ret, "finding out the alignment of '%s'", node->name);

    /* So that the name means this file wherever it is given again. */
    if (blk_has_protocol(node->name)) {
        BLK_AUTOFREE char *name = blk_xasprintf("./%s", node->name);
        blk_node_rename(node, name);
    }
    s->fd = s->first_fd = fd;
    s->locks = *locks;
    s->lock_policy = settings->lock_policy;
    s->uring = settings->uring;
    s->device = S_ISBLK(st->st_mode);
    s->sector_bytes = s->device ? file_device_sector(fd) : 0;
    pthread_rwlock_init(&s->growth, NULL);
    blk_node_set_size(node, size);
    blk_open_files_add(node, st);
    return 0;
}

static int file_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct file_settings settings;
    int ret = file_read_settings(options, &settings, err);
    if (ret < 0)
        return ret;

    struct file_locks locks;
    struct stat st;
    int fd = file_open_locked(settings.filename, node->flags, node->cache, &settings.lock_policy,
                              &locks, &st, err);
    if (fd < 0)
        return fd;
    ret = file_init(node, fd, &st, &locks, &settings, err);
    if (ret < 0)
        blk_sys->close(fd);
    return ret;
}

/* QEMU's name for the driver of block devices: it takes nothing else. */
static int device_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    const char *filename = blk_options_peek(options, "filename");
    struct stat st;
    if (filename && blk_sys->fstatat(AT_FDCWD, filename, &st, 0) == 0 && S_ISREG(st.st_mode))
        return blk_fail_why(err, EINVAL, "it is a regular file, not a block device",
                            "Could not open '%s' as host_device", filename);
    return file_open(node, options, err);
}

/* ---- closing ---- */

int file_close(int *fd)
{
    if (*fd < 0)
        return 0;
    int ret = blk_sys->close(*fd) < 0 ? -errno : 0;
    *fd = -1;
    return ret;
}

int file_close_copy(int fd)
{
    int copy = blk_sys->fcntl_int(fd, F_DUPFD_CLOEXEC, 0);
    return copy < 0 ? -errno : file_close(&copy);
}

static int file_release(struct blk_node *node, struct blk_error *err)
{
    struct file_state *s = node->state;
    int ret = file_target_free(node, err);

    /* The locks go with the descriptor that holds them. */
    int first = s->first_fd == s->fd ? 0 : file_close(&s->first_fd);
    int last = file_close(&s->fd);
    if (ret == 0 && s->close_error)
        ret = blk_fail(err, s->close_error, "closing '%s'", node->name);
    else if (ret == 0 && (first < 0 || last < 0))
        ret = blk_fail(err, last < 0 ? -last : -first, "closing '%s'", node->name);
    pthread_rwlock_destroy(&s->growth);
    return ret;
}

/* ---- data ---- */

/* One read, repeated when interrupted: the bytes read, 0 where there are none, or -errno. */
static int64_t read_some(const struct file_state *s, uint64_t offset, uint64_t bytes, void *buf)
{
    ssize_t (*transfer)(int, void *, size_t, off_t) = s->uring ? file_uring_pread : blk_sys->pread;
    ssize_t done;
    do
        done = transfer(s->fd, buf, u64_min(bytes, SSIZE_MAX), (off_t)offset);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : done;
}

/* The file's size as it is now. */
static int size_now(const struct blk_node *node, uint64_t *size, struct blk_error *err)
{
    const struct file_state *s = node->state;
    struct stat st;
    int ret = blk_sys->fstat(s->fd, &st) < 0 ? -errno : file_medium_size(s->fd, &st, size);
    return ret < 0 ? blk_fail(err, -ret, "finding out the size of '%s'", node->name) : 0;
}

/* Fails when what a node goes by, up to `end`, is more than the file of `size` bytes has. */
static int check_size(const struct blk_node *node, uint64_t end, uint64_t size,
                      struct blk_error *err)
{
    if (size >= u64_min(end, blk_size(node)))
        return 0;
    return blk_fail_why(err, EIO, "it shrank while it was open",
                        "reading '%s', which ends at offset %" PRIu64, node->name, size);
}

int file_check_end(const struct blk_node *node, uint64_t end, struct blk_error *err)
{
    uint64_t size;
    int ret = size_now(node, &size, err);
    return ret < 0 ? ret : check_size(node, end, size, err);
}

/*
 * What follows a read at `offset` of which `done` of `bytes` bytes came, less than a whole unit:
 * 0 when the rest has been filled with zeroes, 1 when it has to be tried once more, -errno.
 */
static int end_read(const struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                    uint64_t done, struct blk_error *err)
{
    uint64_t size;
    int ret = size_now(node, &size, err);
    if (ret < 0)
        return ret;
    if (offset + done < size)
        return 1;
    memset((uint8_t *)buf + done, 0, bytes - done);
    return check_size(node, offset + bytes, size, err);
}

int file_read(const struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
              struct blk_error *err)
{
    uint8_t *to = buf;
    bool again = false;
    while (bytes) {
        int64_t done = read_some(node->state, offset, bytes, to);
        if (done < 0)
            return (int)done;
        /* With O_DIRECT only whole units can be asked for. */
        uint64_t whole = (uint64_t)done == bytes
                             ? bytes
                             : round_down((uint64_t)done, node->limits.request_alignment);
        if (!whole) {
            int ret = end_read(node, offset, bytes, to, (uint64_t)done, err);
            if (ret <= 0)
                return ret;
            /* The file may just have grown, but only once is there nothing before its end. */
            if (again)
                return blk_fail_why(err, EIO, "nothing was read although the file goes on",
                                    "reading '%s' at offset %" PRIu64, node->name, offset);
        }
        again = !whole;
        to += whole;
        offset += whole;
        bytes -= whole;
    }
    return 0;
}

int file_write(const struct file_state *s, uint64_t offset, uint64_t bytes, const void *buf)
{
    ssize_t (*transfer)(int, const void *, size_t, off_t) =
        s->uring ? file_uring_pwrite : blk_sys->pwrite;
    const uint8_t *from = buf;
    while (bytes) {
        ssize_t done = transfer(s->fd, from, u64_min(bytes, SSIZE_MAX), (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO;
        from += done;
        offset += (uint64_t)done;
        bytes -= (uint64_t)done;
    }
    return 0;
}

/* Reads into a buffer of any alignment. */
static int read_aligned(const struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                        struct blk_error *err)
{
    if ((uintptr_t)buf % node->limits.memory_alignment == 0)
        return file_read(node, offset, bytes, buf, err);

    void *bounce = blk_buffer_alloc(bytes);
    if (!bounce)
        return -ENOMEM;
    int ret = file_read(node, offset, bytes, bounce, err);
    if (ret == 0)
        memcpy(buf, bounce, bytes);
    free(bounce);
    return ret;
}

static int file_pread(struct blk_node *node, uint64_t offset, uint64_t bytes, void *buf,
                      struct blk_error *err)
{
    struct file_state *s = node->state;
    if (!s->target)
        return file_read(node, offset, bytes, buf, err);

    if (file_shows_old(s) && !s->device) {
        memset(buf, 0, bytes);
        return 0;
    }
    /* Behind what is kept back the buffer may lose its alignment. */
    uint64_t held = file_held_read(s, offset, bytes, buf);
    return held == bytes ? 0
                         : read_aligned(node, offset + held, bytes - held, (uint8_t *)buf + held,
                                        err);
}

/* Writes to the medium, and keeps node->size behind what is there. */
static int write_medium(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf)
{
    struct file_state *s = node->state;
    bool grows = !s->device && offset + bytes > blk_size(node);

    if (grows)
        pthread_rwlock_rdlock(&s->growth);
    int ret = file_write(s, offset, bytes, buf);
    if (grows) {
        if (ret == 0)
            blk_node_grow_size(node, offset + bytes);
        pthread_rwlock_unlock(&s->growth);
    }
    file_changed(s);
    return ret;
}

int file_write_aligned(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf)
{
    if (buf && (uintptr_t)buf % node->limits.memory_alignment == 0)
        return write_medium(node, offset, bytes, buf);

    void *bounce = blk_buffer_alloc(bytes);
    if (!bounce)
        return -ENOMEM;
    if (buf)
        memcpy(bounce, buf, bytes);
    else
        memset(bounce, 0, bytes);
    int ret = write_medium(node, offset, bytes, bounce);
    free(bounce);
    return ret;
}

static int file_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                       unsigned flags, struct blk_error *err)
{
    const struct file_state *s = node->state;
    (void)flags;
    if (!s->target)
        return write_medium(node, offset, bytes, buf);

    int ret = file_overwrite(node, err);
    if (ret < 0)
        return ret;
    uint64_t held = file_held_write(node, offset, bytes, buf);
    return held == bytes ? 0
                         : file_write_aligned(node, offset + held, bytes - held,
                                              (const uint8_t *)buf + held);
}

/* ---- durability ---- */

/* Raises *synced to `changes`: another thread may have got further meanwhile. */
static void note_synced(struct file_state *s, uint64_t changes)
{
    uint_fast64_t known = atomic_load(&s->synced);
    while (known < changes && !atomic_compare_exchange_weak(&s->synced, &known, changes))
        ;
}

int file_sync(struct file_state *s)
{
    /* Counted before the sync: what completes meanwhile may or may not be in it. */
    uint64_t changes = atomic_load_explicit(&s->changes, memory_order_acquire);
    if (changes == atomic_load(&s->synced))
        return 0;

    int ret;
    do
        ret = blk_sys->fdatasync(s->fd) < 0 ? -errno : 0;
    while (ret == -EINTR);
    if (ret == 0)
        note_synced(s, changes);
    return ret;
}

static int file_flush(struct blk_node *node, struct blk_error *err)
{
    (void)err;
    return file_sync(node->state);
}

/* ---- shape ---- */

static int file_allocated_bytes(struct blk_node *node, uint64_t *bytes, struct blk_error *err)
{
    const struct file_state *s = node->state;
    struct stat st;
    if (blk_sys->fstat(s->fd, &st) < 0)
        return blk_fail(err, errno, "reading the allocated size of '%s'", node->name);
    *bytes = (uint64_t)st.st_blocks * 512; /* the unit of stat(2), whatever the file system's */
    return 0;
}

#define FILE_DRIVER(driver_name, open_function)      \
    {                                                \
        .name = driver_name,                         \
        .kind = BLK_PROTOCOL,                        \
        .state_bytes = sizeof(struct file_state),    \
        .growable = true,                            \
        .prefix = driver_name,                       \
        .parse_filename = parse_filename,            \
        .open = open_function,                       \
        .create_options = file_create_options,       \
        .create = file_create,                       \
        .publish = file_publish,                     \
        .release = file_release,                     \
        .reopen_prepare = file_reopen_prepare,       \
        .reopen_commit = file_reopen_commit,         \
        .reopen_abort = file_reopen_abort,           \
        .pread = file_pread,                         \
        .pwrite = file_pwrite,                       \
        .write_zeroes = file_write_zeroes,           \
        .discard = file_discard,                     \
        .block_status = file_block_status,           \
        .copy_range = file_copy_range,               \
        .flush_to_disk = file_flush,                 \
        .sync_foreign = file_sync_foreign,           \
        .truncate = file_truncate,                   \
        .allocated_bytes = file_allocated_bytes,     \
    }

const struct blk_driver blk_driver_file = FILE_DRIVER("file", file_open);
const struct blk_driver blk_driver_host_device = FILE_DRIVER("host_device", device_open);
