/* SPDX-License-Identifier: MIT */
/*
 * A cell stands for a range. It shows data if there is any, and of the layers that have some there
 * the one nearest to the top; else zeroes that a layer decides; else nothing. So a little data in a
 * large image stays visible.
 */
#include "cmd/map/picture.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/cancel.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/status.h"
#include "cmd/common/report.h"

#define LABEL_COLUMNS 16
#define OTHER_LINES 6 /* heading, key, prompt */

enum cell_kind { CELL_NOTHING, CELL_ZERO, CELL_DATA };

struct cell {
    enum cell_kind kind;
    unsigned depth; /* of data */
    bool dirty;
};

struct picture {
    uint64_t start, end;
    uint64_t cell_bytes;
    size_t columns, count;
    struct cell *cells;
    uint64_t bytes[CELL_DATA + 1]; /* of each kind, exactly */
    bool colour;
};

/* ---- the terminal ---- */

#define LEAST_COLUMNS 20
#define LEAST_LINES 8

static unsigned from_environment(const char *name, unsigned least, unsigned otherwise)
{
    const char *text = getenv(name);
    unsigned long value = text ? strtoul(text, NULL, 10) : 0;
    return value >= least && value <= 10000 ? (unsigned)value : otherwise;
}

static void find_shape(struct picture *picture)
{
    struct winsize size = { .ws_col = 80, .ws_row = 24 };
    bool terminal = isatty(STDOUT_FILENO);
    const char *kind = getenv("TERM");

    if (terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && (!size.ws_col || !size.ws_row))
        size = (struct winsize){ .ws_col = 80, .ws_row = 24 };
    unsigned width = from_environment("COLUMNS", LEAST_COLUMNS,
                                      size.ws_col > LEAST_COLUMNS ? size.ws_col : LEAST_COLUMNS);
    unsigned height = from_environment("LINES", LEAST_LINES,
                                       size.ws_row > LEAST_LINES ? size.ws_row : LEAST_LINES);
    picture->colour = terminal && kind && strcmp(kind, "dumb") != 0 && !getenv("NO_COLOR");
    picture->columns = width - LABEL_COLUMNS > 128 ? 128 : width - LABEL_COLUMNS;
    /* A row of blocks and one of marks for each line. */
    size_t most = picture->columns * ((height - OTHER_LINES) / 2);

    picture->cell_bytes = BLK_SECTOR_BYTES;
    while (div_round_up(picture->end - picture->start, picture->cell_bytes) > most)
        picture->cell_bytes *= 2;
    picture->count = div_round_up(picture->end - picture->start, picture->cell_bytes);
}

/* ---- filling ---- */

static void add(struct picture *picture, uint64_t offset, uint64_t bytes, enum cell_kind kind,
                unsigned depth)
{
    uint64_t first = (offset - picture->start) / picture->cell_bytes;
    uint64_t last = (offset + bytes - 1 - picture->start) / picture->cell_bytes;

    picture->bytes[kind] += bytes;
    for (uint64_t i = first; i <= last; i++) {
        struct cell *cell = &picture->cells[i];
        if (kind == CELL_DATA && (cell->kind != CELL_DATA || depth < cell->depth))
            cell->depth = depth;
        if (kind > cell->kind)
            cell->kind = kind;
    }
}

static int fill(struct picture *picture, struct blk_node *root, struct blk_error *err)
{
    struct blk_extent extent;

    for (uint64_t at = picture->start; at < picture->end; at += extent.bytes) {
        if (blk_cancelled())
            return blk_fail_why(err, ECANCELED, "stopped by a signal", "mapping '%s'", root->name);
        int ret = blk_block_status_above(blk_layers(root, NULL), at, picture->end - at,
                                         BLK_WANT_ZERO, &extent, err);
        if (ret < 0)
            return ret;
        bool zero = extent.flags & BLK_EXT_ZERO || !(extent.flags & BLK_EXT_DATA);
        enum cell_kind decided = extent.flags & BLK_EXT_ALLOCATED ? CELL_ZERO : CELL_NOTHING;
        add(picture, at, extent.bytes, zero ? decided : CELL_DATA, extent.depth);
    }
    return 0;
}

static void fill_dirty(struct picture *picture, const struct blk_dirty_bitmap *dirty)
{
    uint64_t at = picture->start, start, bytes;

    while (blk_dirty_bitmap_next(dirty, at, picture->end, &start, &bytes)) {
        uint64_t first = (start - picture->start) / picture->cell_bytes;
        uint64_t last = (start + bytes - 1 - picture->start) / picture->cell_bytes;
        for (uint64_t i = first; i <= last; i++)
            picture->cells[i].dirty = true;
        at = start + bytes;
    }
}

/* ---- drawing ---- */

static char symbol(const struct cell *cell)
{
    if (cell->kind == CELL_NOTHING)
        return '.';
    if (cell->kind == CELL_ZERO)
        return '-';
    return cell->depth == 0 ? '#' : cell->depth > 9 ? '+' : (char)('0' + cell->depth);
}

static const char *colour_of(const struct cell *cell)
{
    static const char *const data[] = { "\033[32m", "\033[36m", "\033[34m", "\033[35m" };
    if (cell->kind == CELL_NOTHING)
        return "\033[2m";
    return cell->kind == CELL_ZERO ? "\033[33m" : data[cell->depth > 3 ? 3 : cell->depth];
}

static void draw_row(const struct picture *picture, size_t first)
{
    size_t end = u64_min(first + picture->columns, picture->count);
    size_t marked = first; /* end of the last mark */
    const char *colour = "";

    printf("%#-*" PRIx64, LABEL_COLUMNS, picture->start + first * picture->cell_bytes);
    for (size_t i = first; i < end; i++) {
        const char *own = colour_of(&picture->cells[i]);
        if (picture->colour && strcmp(own, colour) != 0)
            printf("\033[0m%s", own);
        colour = own;
        putchar(symbol(&picture->cells[i]));
        if (picture->cells[i].dirty)
            marked = i + 1;
    }
    puts(picture->colour ? "\033[0m" : "");
    if (marked == first)
        return;
    printf("%*s%s", LABEL_COLUMNS, "", picture->colour ? "\033[31m" : "");
    for (size_t i = first; i < marked; i++)
        putchar(picture->cells[i].dirty ? '^' : ' ');
    puts(picture->colour ? "\033[0m" : "");
}

static void draw(const struct picture *picture, const struct blk_node *root,
                 const struct blk_dirty_bitmap *dirty)
{
    char size[32], cell[32], data[32], zero[32], nothing[32];

    blk_format_size(picture->end - picture->start, size);
    blk_format_size(picture->cell_bytes, cell);
    blk_format_size(picture->bytes[CELL_DATA], data);
    blk_format_size(picture->bytes[CELL_ZERO], zero);
    blk_format_size(picture->bytes[CELL_NOTHING], nothing);
    print_escaped(stdout, root->name);
    printf(": %s, %s a block: data %s, zeroes %s, nothing %s\n", size, cell, data, zero, nothing);
    for (size_t i = 0; i < picture->count; i += picture->columns)
        draw_row(picture, i);
    printf("# data, 1 to 9 (+: deeper) data in a backing file at that depth, - zeroes, . nothing");
    puts(dirty ? ", ^ dirty" : "");
}

int map_picture(struct blk_node *root, const struct blk_dirty_bitmap *dirty, uint64_t start,
                uint64_t end, struct blk_error *err)
{
    struct picture picture = { .start = start, .end = u64_max(start, end) };

    find_shape(&picture);
    picture.cells = blk_xcalloc(picture.count + 1, sizeof(*picture.cells));
    int ret = fill(&picture, root, err);
    if (ret == 0) {
        if (dirty)
            fill_dirty(&picture, dirty);
        draw(&picture, root, dirty);
    }
    free(picture.cells);
    return ret;
}
