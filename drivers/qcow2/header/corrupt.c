/* SPDX-License-Identifier: MIT */
/*
 * A table turned out to be invalid.
 *
 * An image whose tables contradict each other cannot be written without making it worse. The first
 * such finding sets the corrupt bit, so that nobody else writes to it before a check, and poisons
 * the image for this run. Reading stays possible where the tables allow it.
 */
#include "drivers/qcow2/header/corrupt.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "drivers/qcow2/header/switch.h"
#include "drivers/qcow2/state.h"

int qcow2_corrupt(struct blk_node *node, struct blk_error *err, const char *why, ...)
{
    struct qcow2_state *s = qcow2_state(node);
    char text[512] = "Image is corrupt: ";
    size_t length = strlen(text);
    va_list args;
    va_start(args, why);
    vsnprintf(text + length, sizeof(text) - length, why, args);
    va_end(args);

    atomic_store(&s->saw_damage, true);
    if (blk_is_writable(node) && !(node->flags & BLK_IN_CHECK) && qcow2_poison(s, EIO)) {
        atomic_store(&s->found_corrupt, true);
        qcow2_header_mark_corrupt(node);
    }
    return blk_fail_why(err, EIO, text, "using the qcow2 image '%s'", node->name);
}
