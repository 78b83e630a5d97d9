/* SPDX-License-Identifier: MIT */
/*
 * --list-chain: what a chain of backups consists of, and whether it is whole: every parent exists
 * and is the one that its overlay was made on, and all files were closed cleanly.
 */
#include <inttypes.h>
#include <stdio.h>

#include "blockcore/jobs/checksum.h"
#include "blockcore/jobs/digest.h"
#include "cmd/backup/backup.h"

struct link {
    struct blk_node *node;
    struct blk_identity identity;
    struct blk_id below; /* of its backing file, if that has one */
    const char *fault;   /* what is wrong with it, or NULL */
    bool shows_ids;      /* the fault is that `below` is not its parent */
    char digest[BLK_DIGEST_HEX_BYTES];
};

static void find_link_fault(struct link *link, const struct blk_info *info)
{
    const struct blk_id *parent = &link->identity.parent;
    bool has_backing = blk_child(link->node, BLK_ROLE_BACKING);

    if (info->corrupt)
        link->fault = "it is marked as corrupt";
    else if (info->dirty)
        link->fault = "it was not closed cleanly";
    else if (blk_id_is_none(&link->identity.backup))
        link->fault = "it does not say which backup it is";
    else if (!blk_id_is_none(parent) && !has_backing)
        link->fault = "its parent is missing";
    else if (blk_id_is_known(parent) && !blk_id_equal(parent, &link->below))
        link->fault = "the file below it is not its parent";
    link->shows_ids = has_backing && blk_id_is_known(parent) && !blk_id_equal(parent, &link->below);
}

static int look_at_link(struct blk_node *node, const struct backup_options *options,
                        struct link *link, struct blk_error *err)
{
    BLK_AUTO_INFO struct blk_info info = { .corrupt = false };
    struct blk_node *backing = blk_child(node, BLK_ROLE_BACKING);
    struct blk_identity below = { .bitmap_count = 0 };

    *link = (struct link){ .node = node };
    int ret = blk_identity_of(node, &link->identity, err);
    if (ret == 0)
        ret = blk_get_info(node, &info, err);
    if (ret == 0 && backing)
        ret = blk_identity_of(blk_skip_filters(backing), &below, err);
    if (ret < 0)
        return ret;
    link->below = below.backup;
    find_link_fault(link, &info);

    if (options->verify) {
        const struct blk_checksum_params params = { .node = node, .workers = options->workers };
        uint8_t digest[BLK_DIGEST_BYTES];
        ret = blk_checksum(&params, digest, err);
        if (ret == 0)
            blk_digest_to_hex(digest, link->digest);
    }
    return ret;
}

static void print_link(const struct link *link)
{
    char id[BLK_ID_TEXT_BYTES], parent[BLK_ID_TEXT_BYTES];

    blk_id_format(&link->identity.backup, id);
    blk_id_format(&link->identity.parent, parent);
    print_escaped(stdout, link->node->name);
    printf(": %" PRIu64 " bytes, ", blk_size(link->node));
    if (blk_id_is_none(&link->identity.backup))
        printf("no backup id, ");
    else
        printf("backup %s, ", id);
    if (blk_id_is_none(&link->identity.parent))
        printf(blk_child(link->node, BLK_ROLE_BACKING) ? "on an image without an id" : "full");
    else if (blk_id_is_known(&link->identity.parent))
        printf("on %s", parent);
    else
        printf("on an unknown image");
    if (link->digest[0])
        printf(", digest %s", link->digest);
    printf(": %s\n", link->fault ? link->fault : "ok");
}

static void add_id(json_t *object, const char *key, const struct blk_id *id)
{
    char text[BLK_ID_TEXT_BYTES];

    if (!blk_id_is_known(id))
        return;
    blk_id_format(id, text);
    json_object_set_new(object, key, json_string(text));
}

static int report_fault(const struct link *link)
{
    char parent[BLK_ID_TEXT_BYTES], below[BLK_ID_TEXT_BYTES];

    if (!link->shows_ids)
        return report_failure("'%s': %s", link->node->name, link->fault);
    blk_id_format(&link->identity.parent, parent);
    blk_id_format(&link->below, below);
    return report_failure("'%s': %s: it was made on backup %s, and '%s' %s%s", link->node->name,
                          link->fault, parent,
                          blk_skip_filters(blk_child(link->node, BLK_ROLE_BACKING))->name,
                          blk_id_is_none(&link->below) ? "has no id" : "is backup ",
                          blk_id_is_none(&link->below) ? "" : below);
}

static json_t *as_json(const struct link *link)
{
    json_t *one = json_object();

    json_object_set_new(one, "filename", json_text(link->node->name));
    json_object_set_new(one, "virtual-size", json_integer((json_int_t)blk_size(link->node)));
    add_id(one, "id", &link->identity.backup);
    add_id(one, "parent", &link->identity.parent);
    if (link->shows_ids)
        add_id(one, "below", &link->below);
    if (link->digest[0])
        json_object_set_new(one, "digest", json_string(link->digest));
    json_object_set_new(one, "ok", json_boolean(!link->fault));
    if (link->fault)
        json_object_set_new(one, "fault", json_string(link->fault));
    return one;
}

static int walk(struct blk_node *root, const struct backup_options *options, json_t *list)
{
    int status = EXIT_OK;

    for (struct blk_node *node = root; node; node = blk_child(node, BLK_ROLE_BACKING)) {
        struct blk_error err = BLK_ERROR_INIT;
        struct link link;
        node = blk_skip_filters(node);
        if (look_at_link(node, options, &link, &err) < 0)
            return report_error(&err);
        if (node == blk_skip_filters(root) && blk_id_is_none(&link.identity.backup) &&
            blk_id_is_none(&link.identity.parent))
            return report_failure("'%s' is not a backup, or was changed since: it has no id",
                                  node->name);
        if (options->output == OUTPUT_JSON)
            json_array_append_new(list, as_json(&link));
        else
            print_link(&link);
        if (link.fault)
            status = report_fault(&link);
    }
    return status;
}

int backup_list_chain(const struct backup_options *options, const char *name)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct image_args args = options->source;
    struct blk_node *root;

    args.trust = true; /* what does not fit is listed */
    if (image_open(&args, name, 0, options->source_cache, &root, &err) < 0)
        return report_error(&err);
    json_t *list = json_array();
    int status = finish_answered(walk(root, options, list), &root, 1, NULL);
    if (options->output == OUTPUT_JSON)
        json_print(stdout, list);
    json_decref(list);
    return status;
}
