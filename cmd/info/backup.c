/* SPDX-License-Identifier: MIT */
/* What info says of backups: ids, and whether the chain fits. */
#include "cmd/info/backup.h"

#include <stdio.h>
#include <stdlib.h>

#include "blockcore/base/memory.h"
#include "blockcore/bitmap/identity.h"
#include "blockcore/graph/names.h"
#include "cmd/common/common.h"

static void set_backup_member(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) < 0)
        abort();
}

static void set_id(json_t *object, const char *key, const struct blk_id *id)
{
    char text[BLK_ID_TEXT_BYTES];

    if (!blk_id_is_known(id))
        return;
    blk_id_format(id, text);
    set_backup_member(object, key, json_string(text));
}

static const char *backup_text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* ---- gathering ---- */

static void add_since(json_t *layer, const struct blk_identity *identity)
{
    json_t *data = json_object_get(json_object_get(layer, "format-specific"), "data");
    json_t *bitmaps = json_object_get(data, "bitmaps");

    for (size_t i = 0; i < json_array_size(bitmaps); i++) {
        json_t *bitmap = json_array_get(bitmaps, i);
        const struct blk_id *since = blk_identity_since(identity, backup_text_of(bitmap, "name"));
        if (since)
            set_id(bitmap, "since", since);
    }
}

/* The id of what `node` has as its backing file. Returns whether it could be looked at. */
static bool look_below(struct blk_node *node, struct blk_identity *below)
{
    const struct image_args args = { .format = node->backing_format, .force_share = true };
    BLK_AUTOFREE char *name = blk_resolve_backing_name(blk_bottom(node)->name, node->backing_name);
    struct blk_error unreadable = BLK_ERROR_INIT;
    struct blk_node *root;

    if (image_open(&args, name, BLK_NO_BACKING | BLK_NO_IO, NULL, &root, &unreadable) < 0)
        return false;
    int ret = blk_identity_of(blk_skip_filters(root), below, &unreadable);
    blk_drop(root); /* only a header was read */
    return ret == 0;
}

void info_add_backup(json_t *layer, struct blk_node *node)
{
    struct blk_error unreadable = BLK_ERROR_INIT;
    struct blk_identity identity, below;

    node = blk_skip_filters(node);
    if (blk_identity_of(node, &identity, &unreadable) < 0) {
        set_backup_member(layer, "backup", json_pack("{s:b}", "readable", 0));
        return;
    }
    add_since(layer, &identity);
    if (blk_id_is_none(&identity.backup) && blk_id_is_none(&identity.parent))
        return;

    json_t *backup = json_object();
    set_id(backup, "id", &identity.backup);
    set_id(backup, "parent", &identity.parent);
    if (!blk_id_is_none(&identity.parent) && !node->backing_name) {
        set_backup_member(backup, "partial", json_true());
    } else if (blk_id_is_known(&identity.parent) && look_below(node, &below)) {
        bool fits = blk_id_equal(&identity.parent, &below.backup);
        set_backup_member(backup, "chain-fits", json_boolean(fits));
        set_id(backup, "below", &below.backup);
    }
    set_backup_member(layer, "backup", backup);
}

/* ---- text ---- */

void info_print_backup(const json_t *layer)
{
    const json_t *backup = json_object_get(layer, "backup");

    if (json_is_false(json_object_get(backup, "readable")))
        printf("backup id: in a form that this version does not know\n");
    if (backup_text_of(backup, "id"))
        printf("backup id: %s\n", backup_text_of(backup, "id"));
    if (backup_text_of(backup, "parent"))
        printf("made on backup: %s\n", backup_text_of(backup, "parent"));
    if (json_is_true(json_object_get(backup, "partial")))
        printf("partial: yes (it holds only what differs from its base, and has no backing "
               "file)\n");
    if (json_object_get(backup, "chain-fits"))
        printf("chain fits: %s\n",
               json_is_true(json_object_get(backup, "chain-fits")) ? "yes" : "no");
}

void info_print_backup_warning(const json_t *layer)
{
    const json_t *backup = json_object_get(layer, "backup");
    const char *below = backup_text_of(backup, "below");

    if (json_is_true(json_object_get(backup, "partial")))
        printf("warning: this is only part of a disk, and is not read without --trust; 'blkimg "
               "rebase -u -b BASE -F FMT %s' gives it its base\n",
               backup_text_of(layer, "filename"));
    if (!json_is_false(json_object_get(backup, "chain-fits")))
        return;
    printf("warning: the chain does not fit, and is not read without --trust: the image was made "
           "on backup %s, and its backing file ",
           backup_text_of(backup, "parent"));
    if (below)
        printf("is backup %s\n", below);
    else
        printf("has no id (it has changed since, or is another image)\n");
}
