/* SPDX-License-Identifier: MIT */
/* The inputs of convert: images that are read as one. */
#include <errno.h>
#include <stdlib.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/io.h"
#include "cmd/convert/convert.h"

static int open_source(const struct convert_options *options, const char *name,
                       struct blk_node **root, struct blk_error *err)
{
    int ret = image_open(&options->source, name, 0, options->source_cache, root, err);
    if (ret < 0)
        return ret;
    if (options->snapshot)
        return image_load_snapshot(*root, options->snapshot, err);
    return 0;
}

int convert_open_sources(const struct convert_options *options, struct convert_sources *sources,
                         struct blk_error *err)
{
    size_t count = options->input_count;
    sources->roots = blk_xcalloc(count + 1, sizeof(struct blk_node *));
    sources->starts = blk_xcalloc(count + 1, sizeof(uint64_t));

    for (size_t i = 0; i < count; i++) {
        int ret = open_source(options, options->inputs[i], &sources->roots[i], err);
        sources->count = i + 1;
        if (ret < 0)
            return ret;
        uint64_t bytes = round_up(blk_size(sources->roots[i]), BLK_SECTOR_BYTES);
        if (bytes > BLK_MAX_BYTES - sources->starts[i])
            return blk_fail_why(err, EFBIG, "together they are too large", "joining the inputs");
        sources->starts[i + 1] = sources->starts[i] + bytes;
    }
    return 0;
}

int convert_read(const struct convert_sources *sources, uint64_t offset, uint64_t bytes, void *buf,
                 struct blk_error *err)
{
    uint8_t *to = buf;
    int ret = 0;

    for (size_t i = 0; i < sources->count && bytes && ret == 0; i++) {
        uint64_t start = sources->starts[i], end = sources->starts[i + 1];
        if (offset >= end)
            continue;
        uint64_t piece = u64_min(bytes, end - offset);
        ret = blk_pread_padded(sources->roots[i], offset - start, piece, to, err);
        to += piece;
        offset += piece;
        bytes -= piece;
    }
    return ret;
}

int convert_finish(struct convert_sources *sources, struct blk_node *target, int status,
                   json_t *result)
{
    if (sources->roots)
        sources->roots[sources->count] = target;
    status = finish(status, sources->roots, sources->roots ? sources->count + 1 : 0, result);
    free(sources->roots);
    free(sources->starts);
    return status;
}
