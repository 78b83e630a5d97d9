/* SPDX-License-Identifier: MIT */
/* The drivers of files and of block devices: the life of a node, and its data requests. */
#include <errno.h>
#include <string.h>

#include "blockcore/base/sys.h"
#include "blockcore/graph/create.h"
#include "blockcore/graph/options.h"
#include "drivers/drivers.h"
#include "drivers/file/file.h"

/* ---- life ---- */

static int file_parse_filename(const char *filename, struct blk_options *options,
                               struct blk_error *err)
{
    (void)err;
    blk_options_set(options, "filename", strchr(filename, ':') + 1);
    return 0;
}

static int file_open(struct blk_node *node, struct blk_options *options, struct blk_error *err)
{
    struct file_settings settings;
    int ret = file_read_settings(options, &settings, err);
    if (ret < 0)
        return ret;

    struct file_opened opened;
    int fd = file_open_locked(settings.filename, node->flags, node->cache, &settings.lock_policy,
                              &opened, err);
    if (fd < 0)
        return fd;
    ret = file_init(node, fd, &opened, &settings, err);
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

static int file_make_node(struct blk_create *create, struct blk_node **node, struct blk_error *err)
{
    return file_create(create, &blk_driver_file, node, err);
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
    blk_rwlock_destroy(&s->growth);
    return ret;
}

/* ---- data ---- */

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
    return held == bytes
               ? 0
               : file_read_aligned(node, offset + held, bytes - held, (uint8_t *)buf + held, err);
}

static int file_pwrite(struct blk_node *node, uint64_t offset, uint64_t bytes, const void *buf,
                       unsigned flags, struct blk_error *err)
{
    const struct file_state *s = node->state;
    (void)flags;
    if (!s->target)
        return file_write_medium(node, offset, bytes, buf);

    int ret = file_overwrite(node, err);
    if (ret < 0)
        return ret;
    uint64_t held = file_held_write(node, offset, bytes, buf);
    return held == bytes
               ? 0
               : file_write_aligned(node, offset + held, bytes - held, (const uint8_t *)buf + held);
}

/* ---- durability ---- */

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

static const struct blk_creation_ops file_creation_ops = {
    .options = file_create_options,
    .make_node = file_make_node,
};

/* Both drivers do the same with the descriptor that they open. */
#define FILE_DRIVER(driver_name, open_function) \
    { \
        .name = driver_name,                             \
        .kind = BLK_PROTOCOL,                            \
        .state_bytes = sizeof(struct file_state),        \
        .growable = true,                                \
        .fixed_places = true,                            \
        .prefix = driver_name,                           \
        .parse_filename = file_parse_filename,           \
        .open = open_function,                           \
        .publish = file_publish,                         \
        .release = file_release,                         \
        .allocated_bytes = file_allocated_bytes,         \
        .data = {                                        \
            .pread = file_pread,                         \
            .pwrite = file_pwrite,                       \
            .write_zeroes = file_write_zeroes,           \
            .discard = file_discard,                     \
            .block_status = file_block_status,           \
            .copy_range = file_copy_range,               \
            .can_share = file_can_share,                 \
            .truncate = file_truncate,                   \
            .flush_to_disk = file_flush,                 \
            .sync_foreign = file_sync_foreign,           \
        },                                               \
        .creation = &file_creation_ops,                  \
        .reopen = &file_reopen_ops, \
    }

const struct blk_driver blk_driver_file = FILE_DRIVER("file", file_open);
const struct blk_driver blk_driver_host_device = FILE_DRIVER("host_device", device_open);
