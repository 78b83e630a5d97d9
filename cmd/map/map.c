/* SPDX-License-Identifier: MIT */
/*
 * blkimg map: which layer of the chain decides each range, and where its bytes are; or what is
 * dirty in one of the image's bitmaps.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/graph/status.h"
#include "cmd/common/common.h"
#include "cmd/map/picture.h"

struct entry {
    uint64_t start, length;
    unsigned depth;
    unsigned flags; /* enum blk_extent_flags */
    uint64_t offset;
    const char *file; /* where the bytes are; with OFFSET_VALID */
};

#define SHOWN_FLAGS (BLK_EXT_DATA | BLK_EXT_ZERO | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID)

/*
 * The state at `offset`: of the first layer that has data there or knows that it reads as zeroes.
 * The size of an image is shown in whole sectors; what the last one lacks reads as zeroes.
 */
static int find_entry(struct blk_node *root, uint64_t offset, uint64_t bytes, struct entry *entry,
                      struct blk_error *err)
{
    struct blk_extent extent = { .bytes = bytes };
    unsigned depth = 0;

    if (offset >= blk_size(root)) {
        *entry = (struct entry){
            .start = offset,
            .length = bytes,
            .flags = BLK_EXT_ZERO | BLK_EXT_ALLOCATED | BLK_EXT_OFFSET_VALID,
            .offset = offset,
            .file = blk_bottom(root)->name,
        };
        return 0;
    }
    for (struct blk_node *node = blk_skip_filters(root);;) {
        int ret = blk_block_status(node, offset, extent.bytes, BLK_WANT_ZERO, &extent, err);
        if (ret < 0)
            return ret;
        if (extent.flags & (BLK_EXT_ZERO | BLK_EXT_DATA))
            break;
        node = blk_child(node, BLK_ROLE_BACKING);
        if (!node)
            break;
        node = blk_skip_filters(node);
        depth++;
    }

    *entry = (struct entry){
        .start = offset,
        .length = extent.bytes,
        .depth = depth,
        .flags = extent.flags & SHOWN_FLAGS,
    };
    if (entry->flags & BLK_EXT_OFFSET_VALID) {
        entry->offset = extent.host_offset;
        entry->file = extent.host ? extent.host->name : "";
    }
    return 0;
}

static bool continues_entry(const struct entry *entry, const struct entry *next)
{
    if (entry->flags != next->flags || entry->depth != next->depth)
        return false;
    if (!(entry->flags & BLK_EXT_OFFSET_VALID))
        return true;
    return entry->offset + entry->length == next->offset && strcmp(entry->file, next->file) == 0;
}

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

static int print_entry_human(const struct blk_node *root, const struct entry *entry)
{
    unsigned kind = entry->flags & (BLK_EXT_DATA | BLK_EXT_ZERO);

    if (kind & BLK_EXT_DATA && !(entry->flags & BLK_EXT_OFFSET_VALID))
        return report_failure("mapping '%s': at offset %" PRIu64 " it has compressed, encrypted or "
                              "external data, which only --output=json can show",
                              root->name, entry->start);
    if (kind == BLK_EXT_DATA)
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", entry->start, entry->length,
               entry->offset, entry->file);
    return EXIT_OK;
}

static char *put_text(char *at, const char *text)
{
    size_t bytes = strlen(text);
    memcpy(at, text, bytes);
    return at + bytes;
}

static char *put_number(char *at, uint64_t number)
{
    char digits[20];
    size_t first = sizeof(digits);

    do {
        digits[--first] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    memcpy(at, digits + first, sizeof(digits) - first);
    return at + sizeof(digits) - first;
}

/* A fragmented image has millions of these, and printf() would take most of the time. */
static void print_entry_json(const struct entry *entry, bool last)
{
    char line[256];
    char *at = put_text(line, "{ \"start\": ");

    at = put_number(at, entry->start);
    at = put_number(put_text(at, ", \"length\": "), entry->length);
    at = put_number(put_text(at, ", \"depth\": "), entry->depth);
    at = put_text(put_text(at, ", \"present\": "), truth(entry->flags & BLK_EXT_ALLOCATED));
    at = put_text(put_text(at, ", \"zero\": "), truth(entry->flags & BLK_EXT_ZERO));
    at = put_text(put_text(at, ", \"data\": "), truth(entry->flags & BLK_EXT_DATA));
    if (entry->flags & BLK_EXT_OFFSET_VALID)
        at = put_number(put_text(at, ", \"offset\": "), entry->offset);
    at = put_text(at, last ? "}]\n" : "},\n");
    fwrite(line, 1, (size_t)(at - line), stdout);
}

static int print_entry(const struct blk_node *root, enum output_format format,
                       const struct entry *entry, bool last)
{
    if (format == OUTPUT_HUMAN)
        return print_entry_human(root, entry);
    print_entry_json(entry, last);
    return EXIT_OK;
}

static int map(struct blk_node *root, uint64_t start, uint64_t end, enum output_format format)
{
    struct entry current = { .start = start };
    struct blk_error err = BLK_ERROR_INIT;

    if (format == OUTPUT_JSON)
        putchar('[');
    else
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");

    for (uint64_t offset = start; offset < end;) {
        struct entry next;
        if (blk_cancelled()) {
            blk_fail(&err, ECANCELED, "mapping '%s'", root->name);
            return report_error(&err);
        }
        if (find_entry(root, offset, end - offset, &next, &err) < 0)
            return report_error(&err);
        offset += next.length;
        if (current.length && continues_entry(&current, &next)) {
            current.length += next.length;
            continue;
        }
        if (current.length) {
            int status = print_entry(root, format, &current, false);
            if (status)
                return status;
        }
        current = next;
    }
    return print_entry(root, format, &current, true);
}

/* ---- the dirty extents of a bitmap ---- */

static int map_bitmap(struct blk_node *root, const char *name, uint64_t start, uint64_t end,
                      enum output_format format)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_dirty_bitmap *bitmap;
    uint64_t offset = start, at, bytes;
    bool any = false;

    if (blk_bitmaps_get_usable(blk_skip_filters(root), name, &bitmap, &err) < 0)
        return report_error(&err);
    if (format == OUTPUT_HUMAN)
        printf("%-16s%s\n", "Offset", "Length");
    else
        putchar('[');
    while (blk_dirty_bitmap_next(bitmap, offset, end, &at, &bytes)) {
        if (format == OUTPUT_HUMAN)
            printf("%#-16" PRIx64 "%#" PRIx64 "\n", at, bytes);
        else
            printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"dirty\": true}",
                   any ? ",\n" : "", at, bytes);
        any = true;
        offset = at + bytes;
    }
    if (format == OUTPUT_JSON)
        puts("]");
    return EXIT_OK;
}

/* ---- the picture ---- */

static int draw_picture(struct blk_node *root, const char *name, uint64_t start, uint64_t end)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_dirty_bitmap *bitmap = NULL;

    if (name && blk_bitmaps_get_usable(blk_skip_filters(root), name, &bitmap, &err) < 0)
        return report_error(&err);
    return map_picture(root, bitmap, start, end, &err) < 0 ? report_error(&err) : EXIT_OK;
}

/* How the result is shown. */
struct form {
    enum output_format format;
    bool picture;
};

static int read_form(void *opaque, const struct cmd_option *option, const char *text)
{
    struct form *form = opaque;
    (void)option;
    form->picture = strcmp(text, "picture") == 0;
    return form->picture ? EXIT_OK : output_format_parse(text, &form->format);
}

static int map_main(int argc, char **argv);

const struct command cmd_map = {
    .name = "map",
    .summary = "Show where the data of an image is stored",
    .usage = "filename",
    .run = map_main,
};

static int map_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    struct form form = { .format = OUTPUT_HUMAN };
    struct cmd_call output = { read_form, &form };
    struct cmd_size start = { 0 }, max_length = { 0 };
    const char *bitmap = NULL;
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&image),
        { 's', "start-offset", CMD_SIZE, &start, "OFFSET", "offset to start at (0)" },
        { 'l', "max-length", CMD_SIZE, &max_length, "SIZE", "length to look at (up to the end)" },
        { 0, "bitmap", CMD_STRING, &bitmap, "NAME", "show the dirty ranges of this bitmap" },
        { 0, "output", CMD_CALL, &output, "human|json|picture", "the form of the output" },
        CMD_OPTIONS_END,
    };
    const char *filename;

    int status = cmd_parse_image(&cmd_map, options, argc, argv, &filename);
    if (status != CMD_RUN)
        return status;

    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;
    unsigned flags = bitmap && !form.picture ? BLK_NO_BACKING : 0;
    if (image_open(&image, filename, flags, NULL, &root, &err) < 0)
        return report_error(&err);

    uint64_t end = round_up(blk_size(root), BLK_SECTOR_BYTES);
    if (max_length.given)
        end = u64_min(end, start.value + max_length.value);
    if (form.picture)
        status = draw_picture(root, bitmap, start.value, end);
    else
        status = bitmap ? map_bitmap(root, bitmap, start.value, end, form.format)
                        : map(root, start.value, end, form.format);
    return finish(status, &root, 1, NULL);
}
