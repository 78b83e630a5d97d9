/* SPDX-License-Identifier: MIT */
/*
 * The journal of a pivot: two lines of JSON, each synced before the work goes on. Only a line that
 * ends with a newline and can be parsed counts, so that one that was being written when the power
 * went is as if it were not there.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "cmd/common/directory.h"
#include "cmd/pivot/pivot.h"

#define BEGIN_PREFIX "{\"state\":\"begin\""
#define DONE_LINE "{\"state\":\"done\"}\n"
#define MAX_WITNESS_BYTES (64 << 20)

static int failed(const struct pivot *pivot, int code, const char *action, struct blk_error *err)
{
    return blk_fail(err, code, "%s the witness '%s'", action, pivot->witness);
}

static int refused(const struct pivot *pivot, const char *why, struct blk_error *err)
{
    return blk_fail_why(err, EINVAL, why, "the witness '%s'", pivot->witness);
}

/* ---- opening ---- */

static int check_witness_file(const struct pivot *pivot, struct stat *st, struct blk_error *err)
{
    if (fstat(pivot->witness_fd, st) < 0)
        return failed(pivot, errno, "opening", err);
    if (!S_ISREG(st->st_mode))
        return refused(pivot, "it is not a regular file", err);
    if (flock(pivot->witness_fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? refused(pivot, "another pivot is using it", err)
                                    : failed(pivot, errno, "locking", err);
    return 0;
}

int witness_open(struct pivot *pivot, struct blk_error *err)
{
    struct stat st;

    if (!pivot->witness)
        return 0;
    pivot->witness_fd = open(pivot->witness, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    pivot->witness_made = pivot->witness_fd >= 0;
    if (pivot->witness_fd < 0 && errno == EEXIST)
        pivot->witness_fd = open(pivot->witness, O_RDWR | O_CLOEXEC);
    if (pivot->witness_fd < 0)
        return failed(pivot, errno, "opening", err);
    int ret = check_witness_file(pivot, &st, err);
    if (ret < 0)
        return ret;
    if (st.st_size)
        return refused(pivot, "it is not empty; see 'blkimg pivot --recover'", err);
    return 0;
}

void witness_close(struct pivot *pivot)
{
    if (pivot->witness_fd < 0)
        return;
    if (pivot->witness_made && !pivot->witness_bytes)
        unlink(pivot->witness);
    close(pivot->witness_fd); /* nothing was written, or a failure has been reported */
    pivot->witness_fd = -1;
}

int witness_leave(struct pivot *pivot, struct blk_error *err)
{
    int fd = pivot->witness_fd;

    pivot->witness_fd = -1;
    return close(fd) < 0 ? failed(pivot, errno, "closing", err) : 0;
}

/* ---- writing ---- */

/* Makes the file end with that line at `offset`, durably. */
static int write_line(int fd, off_t offset, const char *line)
{
    size_t bytes = strlen(line), done = 0;

    if (ftruncate(fd, offset) < 0)
        return -errno;
    while (done < bytes) {
        ssize_t written = pwrite(fd, line + done, bytes - done, offset + (off_t)done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? -errno : -ENOSPC;
        done += (size_t)written;
    }
    return fsync(fd) < 0 ? -errno : 0;
}

/* Space for the "done" line, so that a full disk shows before anything is switched. */
static int set_aside(int fd, size_t bytes)
{
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)(bytes + strlen(DONE_LINE))) == 0)
        return 0;
    return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -errno;
}

static json_t *text_or_null(const char *text)
{
    return text ? json_text(text) : json_null();
}

/*
 * The overlay's file, whatever the current directory is. A symlink keeps its own name: the names of
 * backing files count from where it is, not from where it leads.
 */
static char *absolute_name(const struct pivot_overlay *overlay)
{
    const char *file = blk_bottom(overlay->root)->name;
    BLK_AUTOFREE char *directory_copy = blk_xstrdup(file);
    BLK_AUTOFREE char *base_copy = blk_xstrdup(file);
    BLK_AUTOFREE char *directory = realpath(dirname(directory_copy), NULL);

    if (!directory)
        return blk_xstrdup(file);
    return blk_xasprintf("%s/%s", strcmp(directory, "/") == 0 ? "" : directory,
                         basename(base_copy));
}

static json_t *witness_describe(const struct pivot_overlay *overlay)
{
    BLK_AUTOFREE char *path = absolute_name(overlay);
    json_t *one = json_object();

    json_object_set_new(one, "file", json_text(path));
    json_object_set_new(one, "old-backing", text_or_null(overlay->old_name));
    json_object_set_new(one, "old-format", text_or_null(overlay->old_format));
    json_object_set_new(one, "new-backing", text_or_null(overlay->new_name));
    json_object_set_new(one, "new-format", text_or_null(overlay->new_format));
    return one;
}

/* NULL when a name cannot be written as JSON. */
static char *begin_line(const struct pivot *pivot)
{
    json_t *list = json_array();

    for (size_t i = 0; i < pivot->count; i++)
        json_array_append_new(list, witness_describe(&pivot->overlays[i]));
    json_t *begin = json_object();
    json_object_set_new(begin, "state", json_text("begin"));
    json_object_set_new(begin, "overlays", list);
    BLK_AUTOFREE char *text = json_dumps(begin, JSON_COMPACT);
    json_decref(begin);
    return text ? blk_xasprintf("%s\n", text) : NULL;
}

int witness_begin(struct pivot *pivot, struct blk_error *err)
{
    if (!pivot->witness)
        return 0;
    BLK_AUTOFREE char *line = begin_line(pivot);
    if (!line)
        return blk_fail_why(err, EILSEQ, "the name of an image is not UTF-8",
                            "writing the witness '%s'", pivot->witness);

    int ret = set_aside(pivot->witness_fd, strlen(line));
    if (ret == 0)
        ret = write_line(pivot->witness_fd, 0, line);
    if (ret == 0)
        ret = sync_directory_of(pivot->witness, NULL);
    if (ret < 0) {
        failed(pivot, -ret, "writing", err);
        if (ftruncate(pivot->witness_fd, 0) < 0 || fsync(pivot->witness_fd) < 0)
            blk_left_behind(err, "it may say \"begin\"; no image was changed");
        return ret;
    }
    pivot->witness_bytes = (off_t)strlen(line);
    return 0;
}

/* The last word: after it the file is closed, which can fail too. */
static int write_last(struct pivot *pivot, off_t offset, const char *line)
{
    int ret = write_line(pivot->witness_fd, offset, line);
    int fd = pivot->witness_fd;

    pivot->witness_fd = -1;
    if (close(fd) < 0 && ret == 0)
        ret = -errno;
    return ret;
}

int witness_done(struct pivot *pivot, struct blk_error *err)
{
    if (!pivot->witness)
        return 0;
    int ret = write_last(pivot, pivot->witness_bytes, DONE_LINE);
    return ret < 0 ? failed(pivot, -ret, "finishing", err) : 0;
}

int witness_undone(struct pivot *pivot, struct blk_error *err)
{
    if (!pivot->witness)
        return 0;
    int ret = write_last(pivot, 0, "");
    return ret < 0 ? failed(pivot, -ret, "emptying", err) : 0;
}

/* ---- reading ---- */

static char *take_text(const json_t *object, const char *key)
{
    return blk_xstrdup(json_string_value(json_object_get(object, key)));
}

static int take_overlays(const json_t *list, struct pivot *pivot)
{
    size_t count = json_array_size(list);

    pivot->overlays = blk_xcalloc(count ? count : 1, sizeof(*pivot->overlays));
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_array_get(list, i);
        struct pivot_overlay *overlay = &pivot->overlays[pivot->count++];
        overlay->filename = take_text(one, "file");
        overlay->old_name = take_text(one, "old-backing");
        overlay->old_format = take_text(one, "old-format");
        overlay->new_name = take_text(one, "new-backing");
        overlay->new_format = take_text(one, "new-format");
        if (!overlay->filename || !overlay->old_name || !overlay->new_name)
            return -EINVAL;
    }
    return count ? 0 : -EINVAL;
}

static bool state_is(const json_t *line, const char *state)
{
    const char *text = json_string_value(json_object_get(line, "state"));
    return text && strcmp(text, state) == 0;
}

/*
 * What may be left of a "begin" line whose writing was cut off: its beginning, or zeroes in its
 * place.
 */
static bool may_be_torn(const char *text, size_t bytes)
{
    size_t prefix = bytes < strlen(BEGIN_PREFIX) ? bytes : strlen(BEGIN_PREFIX);
    static const char zeroes[sizeof(BEGIN_PREFIX)];
    return memcmp(text, BEGIN_PREFIX, prefix) == 0 || memcmp(text, zeroes, prefix) == 0;
}

static int witness_parse(struct pivot *pivot, const char *text, size_t bytes,
                         enum witness_state *state, struct blk_error *err)
{
    const char *end = memchr(text, '\n', bytes);
    size_t length = end ? (size_t)(end - text) : 0;
    json_t *begin = end ? json_loadb(text, length, 0, NULL) : NULL;

    *state = WITNESS_NOTHING;
    if (!begin)
        return may_be_torn(text, bytes) ? 0 : refused(pivot, "it is not a pivot witness", err);
    int ret = state_is(begin, "begin") ? take_overlays(json_object_get(begin, "overlays"), pivot)
                                       : -EINVAL;
    json_decref(begin);
    if (ret < 0)
        return refused(pivot, "it is not a pivot witness", err);

    pivot->witness_bytes = (off_t)length + 1;
    size_t rest = bytes - length - 1;
    *state = rest == strlen(DONE_LINE) && memcmp(end + 1, DONE_LINE, rest) == 0 ? WITNESS_DONE
                                                                                : WITNESS_BEGUN;
    return 0;
}

int witness_read(struct pivot *pivot, enum witness_state *state, struct blk_error *err)
{
    struct stat st;

    pivot->witness_fd = open(pivot->witness, O_RDWR | O_CLOEXEC);
    if (pivot->witness_fd < 0)
        return failed(pivot, errno, "opening", err);
    int ret = check_witness_file(pivot, &st, err);
    if (ret < 0)
        return ret;
    if (st.st_size > MAX_WITNESS_BYTES)
        return refused(pivot, "it is not a pivot witness", err);

    size_t bytes = (size_t)st.st_size, done = 0;
    BLK_AUTOFREE char *text = blk_xcalloc(1, bytes + 1);
    while (done < bytes) {
        ssize_t got = pread(pivot->witness_fd, text + done, bytes - done, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return failed(pivot, got < 0 ? errno : EIO, "reading", err);
        done += (size_t)got;
    }
    return witness_parse(pivot, text, bytes, state, err);
}
