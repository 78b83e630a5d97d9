/*
 * The journal of a pivot: two lines of JSON, each synced before the work goes on.
 */
#include "cmd/mirror/mirror.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockcore/memory.h"

static json_t *text_or_null(const char *text)
{
    return text ? json_text(text) : json_null();
}

static json_t *describe(const struct pivot_overlay *overlay)
{
    BLK_AUTOFREE char *path = realpath(overlay->filename, NULL);
    json_t *one = json_object();

    json_object_set_new(one, "file", json_text(path ? path : overlay->filename));
    json_object_set_new(one, "old-backing", text_or_null(overlay->old_name));
    json_object_set_new(one, "old-format", text_or_null(overlay->old_format));
    json_object_set_new(one, "new-backing", text_or_null(overlay->new_name));
    json_object_set_new(one, "new-format", text_or_null(overlay->new_format));
    return one;
}

static int sync_folder_of(const char *filename)
{
    BLK_AUTOFREE char *copy = blk_xstrdup(filename);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int ret = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return ret;
}

/* Appends a line and makes it durable, name included. */
static int append_line(const char *filename, const char *line, int flags, struct blk_error *err)
{
    int fd = open(filename, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | flags, 0644);
    if (fd < 0)
        return blk_fail(err, errno, "opening the witness '%s'", filename);

    size_t bytes = strlen(line);
    ssize_t written = bytes ? write(fd, line, bytes) : 0;
    int ret = written < 0 ? -errno : (size_t)written < bytes ? -ENOSPC : 0;
    if (ret == 0 && fsync(fd) < 0)
        ret = -errno;
    if (close(fd) < 0 && ret == 0)
        ret = -errno;
    if (ret == 0)
        ret = sync_folder_of(filename);
    return ret < 0 ? blk_fail(err, -ret, "writing the witness '%s'", filename) : 0;
}

int witness_begin(const struct pivot *pivot, struct blk_error *err)
{
    if (!pivot->witness)
        return 0;
    json_t *list = json_array();
    for (size_t i = 0; i < pivot->count; i++)
        json_array_append_new(list, describe(&pivot->overlays[i]));
    json_t *begin = json_pack("{s:s, s:o}", "state", "begin", "overlays", list);
    BLK_AUTOFREE char *text = json_dumps(begin, JSON_COMPACT);
    json_decref(begin);
    BLK_AUTOFREE char *line = blk_xasprintf("%s\n", text ? text : "");
    return append_line(pivot->witness, line, O_TRUNC, err);
}

int witness_done(const struct pivot *pivot, struct blk_error *err)
{
    return pivot->witness ? append_line(pivot->witness, "{\"state\":\"done\"}\n", 0, err) : 0;
}

int witness_undone(const struct pivot *pivot, struct blk_error *err)
{
    return pivot->witness ? append_line(pivot->witness, "", O_TRUNC, err) : 0;
}

/* ---- reading ---- */

static char *take_text(const json_t *object, const char *key)
{
    return blk_xstrdup(json_string_value(json_object_get(object, key)));
}

static int take_overlays(const json_t *list, struct pivot *pivot)
{
    pivot->overlays = blk_xcalloc(json_array_size(list), sizeof(*pivot->overlays));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *one = json_array_get(list, i);
        struct pivot_overlay *overlay = &pivot->overlays[pivot->count];
        char *file = take_text(one, "file");
        if (!file)
            return -EINVAL;
        overlay->filename = file;
        overlay->old_name = take_text(one, "old-backing");
        overlay->old_format = take_text(one, "old-format");
        overlay->new_name = take_text(one, "new-backing");
        overlay->new_format = take_text(one, "new-format");
        pivot->count++;
    }
    return 0;
}

static bool state_is(const json_t *line, const char *state)
{
    const char *text = json_string_value(json_object_get(line, "state"));
    return text && strcmp(text, state) == 0;
}

/* One line that was written whole: it ends with a newline. NULL for anything else. */
static json_t *read_line(FILE *file)
{
    BLK_AUTOFREE char *line = NULL;
    size_t capacity = 0;
    ssize_t length = getline(&line, &capacity, file);
    return length > 0 && line[length - 1] == '\n' ? json_loads(line, 0, NULL) : NULL;
}

int witness_read(const char *filename, struct pivot *pivot, bool *begun, bool *done,
                 struct blk_error *err)
{
    FILE *file = fopen(filename, "re");
    if (!file)
        return blk_fail(err, errno, "opening the witness '%s'", filename);
    json_t *first = read_line(file);
    json_t *second = read_line(file);
    int ret = ferror(file) ? blk_fail(err, EIO, "reading the witness '%s'", filename) : 0;
    fclose(file);

    *begun = first && state_is(first, "begin");
    *done = *begun && second && state_is(second, "done");
    if (ret == 0 && *begun && take_overlays(json_object_get(first, "overlays"), pivot) < 0)
        ret = blk_fail_why(err, EINVAL, "it is no witness of a pivot", "'%s'", filename);
    json_decref(first);
    json_decref(second);
    return ret;
}
