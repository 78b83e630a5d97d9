/* SPDX-License-Identifier: MIT */
/* Probing: the drivers' scores, and what none of them reads (foreign.c). */
#include "blockcore/graph/probe.h"

#include <errno.h>
#include <stdio.h>

#include "blockcore/graph/foreign.h"
#include "blockcore/graph/io.h"

/* The best match for what begins with `head`, and its score. */
static const struct blk_driver *probe_bytes(const uint8_t *head, size_t bytes, int *best_score)
{
    const struct blk_driver *best = NULL;

    for (size_t i = 0; blk_drivers[i]; i++) {
        const struct blk_driver *driver = blk_drivers[i];
        int score = driver->probe ? driver->probe(head, bytes) : 0;
        if (score > *best_score) {
            best = driver;
            *best_score = score;
        }
    }
    return best;
}

const char *blk_probe_name(const uint8_t *head, size_t bytes)
{
    int score = 0;
    const struct blk_driver *driver = probe_bytes(head, bytes, &score);
    const struct blk_foreign *foreign =
        score <= BLK_PROBE_ANY ? blk_foreign_by_head(head, bytes) : NULL;
    return foreign ? foreign->name : driver->name;
}

/*
 * Refuses `file`, which begins with `head`, if it is of a format that no driver reads. 0 when it is
 * not; -EMEDIUMTYPE when it is; -errno when its end cannot be read.
 */
static int refuse_foreign(struct blk_node *file, const uint8_t *head, size_t bytes,
                          struct blk_error *err)
{
    uint8_t tail[BLK_FOREIGN_BYTES];
    uint64_t size = blk_size(file);
    const struct blk_foreign *format = blk_foreign_by_head(head, bytes);

    if (!format && size >= sizeof(tail)) {
        int ret = blk_child_pread(file, size - sizeof(tail), sizeof(tail), tail, err);
        if (ret < 0) {
            blk_context(err, "probing the format of '%s' (-f raw skips that)", file->name);
            return ret;
        }
        format = blk_foreign_by_tail(tail, sizeof(tail));
    }
    if (!format)
        return 0;
    char why[200];
    snprintf(why, sizeof(why),
             "its format is %s (%s), which is not supported; give the format raw "
             "(-f raw) to use its bytes as they are",
             format->name, format->what);
    return blk_fail_why(err, EMEDIUMTYPE, why, "Could not open '%s'", file->name);
}

int blk_probe_file(struct blk_node *file, const struct blk_driver **driver, struct blk_error *err)
{
    uint8_t head[BLK_PROBE_BYTES] = { 0 };
    uint64_t size = blk_size(file);
    size_t bytes = size < sizeof(head) ? (size_t)size : sizeof(head);

    int ret = blk_child_pread(file, 0, bytes, head, err);
    if (ret < 0)
        return ret;
    int score = 0;
    *driver = probe_bytes(head, bytes, &score);
    return score <= BLK_PROBE_ANY ? refuse_foreign(file, head, bytes, err) : 0;
}
