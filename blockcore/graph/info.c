/* SPDX-License-Identifier: MIT */
/* Building and freeing the tree of values in which a driver describes its image. */
#include "blockcore/graph/info.h"

#include <stdlib.h>

#include "blockcore/base/assert.h"
#include "blockcore/base/memory.h"

static bool has_items(const struct blk_value *value)
{
    return value->type == BLK_VALUE_OBJECT || value->type == BLK_VALUE_LIST;
}

static struct blk_value *add_value(struct blk_value *to, const char *name, enum blk_value_type type)
{
    ASSERT(has_items(to) && (to->type == BLK_VALUE_OBJECT) == (name != NULL));

    struct blk_value *value = blk_xcalloc(1, sizeof(*value));
    value->type = type;
    value->name = name;
    if (to->of.last)
        to->of.last->next = value;
    else
        to->of.first = value;
    to->of.last = value;
    return value;
}

void blk_value_add_bool(struct blk_value *to, const char *name, bool value)
{
    add_value(to, name, BLK_VALUE_BOOL)->boolean = value;
}

void blk_value_add_number(struct blk_value *to, const char *name, uint64_t value)
{
    add_value(to, name, BLK_VALUE_NUMBER)->number = value;
}

void blk_value_add_text(struct blk_value *to, const char *name, const char *value)
{
    add_value(to, name, BLK_VALUE_TEXT)->text = blk_xstrdup(value);
}

struct blk_value *blk_value_add_list(struct blk_value *to, const char *name)
{
    return add_value(to, name, BLK_VALUE_LIST);
}

struct blk_value *blk_value_add_object(struct blk_value *to, const char *name)
{
    return add_value(to, name, BLK_VALUE_OBJECT);
}

/* Frees what the value holds, not itself. Trees are as deep as a driver's code builds them. */
static void clear(struct blk_value *value)
{
    if (value->type == BLK_VALUE_TEXT)
        free(value->text);
    if (!has_items(value))
        return;
    for (struct blk_value *item = value->of.first, *next; item; item = next) {
        next = item->next;
        clear(item);
        free(item);
    }
}

void blk_info_free(struct blk_info *info)
{
    clear(&info->specific);
    *info = (struct blk_info){ .specific_type = NULL };
}
