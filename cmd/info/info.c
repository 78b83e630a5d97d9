/* SPDX-License-Identifier: MIT */
/*
 * blkimg info: what an image is. Each layer becomes a JSON object, which is printed as it is or as
 * text.
 *
 * Nothing is read but headers and small tables, so that it is quick and works within narrow memory
 * limits. An image that is in use can be described, too: it is opened without asking for locks.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/graph/names.h"
#include "cmd/common/common.h"
#include "cmd/common/program.h"
#include "cmd/common/snapshot_list.h"
#include "cmd/info/backup.h"
#include "cmd/info/graph.h"

/* ---- gathering ---- */

/*
 * An object's member; running out of memory here ends the program, as with all small allocations.
 */
static void set_info_member(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) < 0)
        blk_out_of_memory();
}

static void set_info_number(json_t *object, const char *key, uint64_t value)
{
    set_info_member(object, key, json_integer((json_int_t)value));
}

/* The list may be long: the object only has a place for it. */
static int add_snapshots(json_t *object, struct blk_node *node, struct snapshot_list *snapshots,
                         struct blk_error *err)
{
    int ret = snapshot_list_get(node, snapshots, err);
    if (ret == 0 && snapshots->count)
        set_info_member(object, "snapshots", json_null());
    return ret;
}

static int add_format_info(json_t *object, struct blk_node *node, struct blk_error *err)
{
    BLK_AUTO_INFO struct blk_info info = { .cluster_bytes = 0 };

    int ret = blk_get_info(node, &info, err);
    if (ret < 0)
        return ret;
    if (info.cluster_bytes)
        set_info_number(object, "cluster-size", info.cluster_bytes);
    if (info.encrypted)
        set_info_member(object, "encrypted", json_true());
    set_info_member(object, "dirty-flag", json_boolean(info.dirty));
    if (info.specific_type) {
        json_t *specific = json_object();
        set_info_member(specific, "type", json_text(info.specific_type));
        set_info_member(specific, "data", json_of_value(&info.specific));
        set_info_member(object, "format-specific", specific);
    }
    return 0;
}

static int add_backing(json_t *object, struct blk_node *node)
{
    if (!node->backing_name)
        return 0;
    BLK_AUTOFREE char *full = blk_resolve_backing_name(blk_bottom(node)->name, node->backing_name);
    set_info_member(object, "backing-filename", json_text(node->backing_name));
    set_info_member(object, "full-backing-filename", json_text(full));
    if (node->backing_format)
        set_info_member(object, "backing-filename-format", json_text(node->backing_format));
    return 0;
}

/* With QEMU's names. What has no limit is left out. */
static void add_limits(json_t *object, const struct blk_node *node)
{
    const struct blk_limits *limits = &node->limits;
    json_t *result = json_object();

    set_info_number(result, "request-alignment", limits->request_alignment);
    if (limits->zero_alignment)
        set_info_number(result, "write-zeroes-alignment", limits->zero_alignment);
    if (limits->max_transfer)
        set_info_number(result, "max-transfer", limits->max_transfer);
    set_info_number(result, "min-mem-alignment", limits->memory_alignment);
    set_info_number(result, "opt-mem-alignment", limits->memory_alignment);
    set_info_member(object, "limits", result);
}

struct layer {
    json_t *object;
    struct snapshot_list snapshots;
    dev_t device; /* of its file, to notice a chain that leads back to itself */
    ino_t inode;
};

/* Describes one open layer. */
static int describe_layer(struct blk_node *node, bool in_use, struct layer *layer,
                          struct blk_error *err)
{
    uint64_t allocated;
    json_t *result = json_object();
    if (!result)
        blk_out_of_memory();

    set_info_member(result, "filename", json_text(node->name));
    set_info_member(result, "format", json_text(blk_format_name(node)));
    set_info_number(result, "virtual-size", round_up(blk_size(node), BLK_SECTOR_BYTES));
    if (in_use)
        set_info_member(result, "in-use", json_true());

    int ret = blk_allocated_bytes(node, &allocated, err);
    if (ret == 0)
        set_info_number(result, "actual-size", allocated);
    if (ret == 0 || ret == -ENOTSUP)
        ret = add_format_info(result, node, err);
    if (ret == 0)
        ret = add_backing(result, node);
    if (ret == 0)
        info_add_backup(result, node);
    if (ret == 0)
        ret = add_snapshots(result, node, &layer->snapshots, err);
    if (ret < 0) {
        json_decref(result);
        return blk_fail_if_unset(err, -ret, "examining '%s'", node->name);
    }
    layer->object = result;
    return 0;
}

/* ---- the chain ---- */

struct chain {
    struct layer *layers;
    size_t count;
    bool limits; /* --limits */
};

/* Opens one layer without its backing file, if need be past somebody else's lock. */
static int open_layer(const struct image_args *args, const char *name, bool *in_use,
                      struct blk_node **node, struct blk_error *err)
{
    const unsigned flags = BLK_NO_BACKING | BLK_NO_IO;
    struct image_args sharing = *args;

    *in_use = false;
    int ret = image_open(args, name, flags, NULL, node, err);
    /* Scripts that call qemu-img find out by this failure whether the image is in use. */
    if (ret != -EAGAIN || args->force_share || program_called_as() == PROGRAM_QEMU_IMG)
        return ret;
    blk_error_clear(err);
    sharing.force_share = true;
    *in_use = true;
    return image_open(&sharing, name, flags, NULL, node, err);
}

/* Notes the file of a layer; -ELOOP if an earlier layer is the same file. */
static int note_file(const struct chain *chain, struct blk_node *node, struct layer *layer,
                     struct blk_error *err)
{
    struct stat st = { 0 };

    if (stat(blk_bottom(node)->name, &st) < 0)
        st.st_ino = 0;
    for (size_t i = 0; st.st_ino && i < chain->count; i++) {
        if (chain->layers[i].device == st.st_dev && chain->layers[i].inode == st.st_ino)
            return blk_fail_why(err, ELOOP, "the backing chain leads back to itself", "'%s'",
                                node->name);
    }
    layer->device = st.st_dev;
    layer->inode = st.st_ino;
    return 0;
}

static void free_layer(struct layer *layer)
{
    json_decref(layer->object);
    snapshot_list_free(&layer->snapshots);
}

/*
 * Adds the layer `name` to the chain and closes it. *next and *next_format are its backing file
 * (malloc()ed) or NULL. Returns an exit status.
 */
static int add_layer(struct chain *chain, const struct image_args *args, const char *name,
                     char **next, char **next_format)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *node;
    bool in_use;
    struct layer layer = { .object = NULL };

    if (open_layer(args, name, &in_use, &node, &err) < 0)
        return report_error(&err);
    if (note_file(chain, node, &layer, &err) < 0 ||
        describe_layer(node, in_use, &layer, &err) < 0) {
        free_layer(&layer);
        return finish(report_error(&err), &node, 1, NULL);
    }
    if (chain->limits)
        add_limits(layer.object, node);
    chain->layers = blk_xgrow(chain->layers, chain->count, sizeof(*chain->layers));
    chain->layers[chain->count++] = layer;
    if (node->backing_name) {
        *next = blk_resolve_backing_name(blk_bottom(node)->name, node->backing_name);
        *next_format = blk_xstrdup(node->backing_format);
    }
    return finish(EXIT_OK, &node, 1, NULL);
}

/* Describes `name` and, if wanted, all layers below it. Returns an exit status. */
static int gather(struct chain *chain, const struct image_args *args, const char *name, bool whole)
{
    struct image_args layer_args = *args;
    char *current = NULL, *format = NULL;
    int status;

    for (;;) {
        char *next = NULL, *next_format = NULL;
        status = add_layer(chain, &layer_args, current ? current : name, &next, &next_format);
        free(current);
        free(format);
        current = next;
        format = next_format;
        if (status || !whole || !current)
            break;
        layer_args.image_opts = false;
        layer_args.format = format;
    }
    free(current);
    free(format);
    return status;
}

/* ---- text ---- */

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static uint64_t number_of(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static void print_size_lines(const json_t *layer)
{
    char size[32];

    blk_format_size(number_of(layer, "virtual-size"), size);
    printf("virtual size: %s (%" PRIu64 " bytes)\n", size, number_of(layer, "virtual-size"));
    if (json_object_get(layer, "actual-size"))
        blk_format_size(number_of(layer, "actual-size"), size);
    printf("disk size: %s\n", json_object_get(layer, "actual-size") ? size : "unavailable");
}

static void print_backing(const json_t *layer)
{
    const char *name = text_of(layer, "backing-filename");
    const char *full = text_of(layer, "full-backing-filename");

    if (!name)
        return;
    printf("backing file: %s", name);
    if (strcmp(name, full) != 0)
        printf(" (actual path: %s)", full);
    putchar('\n');
    if (text_of(layer, "backing-filename-format"))
        printf("backing file format: %s\n", text_of(layer, "backing-filename-format"));
}

static bool has_flag(const json_t *bitmap, const char *flag)
{
    const json_t *flags = json_object_get(bitmap, "flags");
    for (size_t i = 0; i < json_array_size(flags); i++)
        if (strcmp(json_string_value(json_array_get(flags, i)), flag) == 0)
            return true;
    return false;
}

/*
 * What will be refused; and a bitmap that is in use although nobody uses the image, which has
 * missed writes.
 */
static void print_warnings(const json_t *layer)
{
    const json_t *data = json_object_get(json_object_get(layer, "format-specific"), "data");
    const json_t *bitmaps = json_object_get(data, "bitmaps");

    info_print_backup_warning(layer);
    if (json_object_get(layer, "in-use"))
        return;
    for (size_t i = 0; i < json_array_size(bitmaps); i++) {
        const json_t *bitmap = json_array_get(bitmaps, i);
        if (!has_flag(bitmap, "in-use"))
            continue;
        printf("warning: bitmap '");
        print_escaped(stdout, text_of(bitmap, "name"));
        printf("' is inconsistent (it was in use when the image was last written) and cannot be "
               "used; 'blkimg bitmap --remove %s ",
               text_of(layer, "filename"));
        print_escaped(stdout, text_of(bitmap, "name"));
        puts("' removes it");
    }
}

static void print_layer(const json_t *layer, const struct snapshot_list *snapshots)
{
    printf("image: %s\nfile format: %s\n", text_of(layer, "filename"), text_of(layer, "format"));
    print_size_lines(layer);
    if (json_object_get(layer, "in-use"))
        printf("in use: yes (another process has it open for writing)\n");
    if (json_object_get(layer, "encrypted"))
        printf("encrypted: yes\n");
    if (json_object_get(layer, "cluster-size"))
        printf("cluster_size: %" PRIu64 "\n", number_of(layer, "cluster-size"));
    if (json_is_true(json_object_get(layer, "dirty-flag")))
        printf("cleanly shut down: no\n");
    print_backing(layer);
    info_print_backup(layer);

    if (snapshots->count)
        snapshot_list_print(snapshots);
    const json_t *specific = json_object_get(layer, "format-specific");
    if (specific) {
        printf("Format specific information:\n");
        json_print_members(stdout, json_object_get(specific, "data"), 1);
    }
    const json_t *limits = json_object_get(layer, "limits");
    if (limits) {
        printf("Block limits:\n");
        json_print_members(stdout, limits, 1);
    }
    print_warnings(layer);
}

static void print_layer_json(const struct layer *layer, unsigned level)
{
    const struct json_stream snapshots = {
        .key = "snapshots",
        .count = layer->snapshots.count,
        .item = snapshot_list_item,
        .opaque = &layer->snapshots,
    };
    json_print_streaming(stdout, layer->object, level, &snapshots);
}

static void print_chain_json(const struct chain *chain)
{
    putchar('[');
    for (size_t i = 0; i < chain->count; i++) {
        printf("%s\n    ", i ? "," : "");
        print_layer_json(&chain->layers[i], 1);
    }
    printf("\n]\n");
}

static void print_chain(const struct chain *chain, enum output_format format, bool whole)
{
    if (format == OUTPUT_JSON && whole) {
        print_chain_json(chain);
    } else if (format == OUTPUT_JSON) {
        print_layer_json(&chain->layers[0], 0);
        putchar('\n');
    } else {
        for (size_t i = 0; i < chain->count; i++) {
            if (i)
                putchar('\n');
            print_layer(chain->layers[i].object, &chain->layers[i].snapshots);
        }
    }
}

/* ---- the command ---- */

static int info_main(int argc, char **argv);

const struct command cmd_info = {
    .name = "info",
    .summary = "Show information about an image",
    .usage = "filename",
    .run = info_main,
};

static int info_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT;
    enum output_format format = OUTPUT_HUMAN;
    const char *graph = NULL;
    enum graph_form graph_form;
    bool whole = false;
    struct chain chain = { .layers = NULL };
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&image),
        { 0, "graph", CMD_STRING, &graph, "text|dot", "show all nodes, as text or for Graphviz" },
        { 0, "backing-chain", CMD_FLAG, &whole, NULL, "describe all layers, top to base" },
        { 0, "limits", CMD_FLAG, &chain.limits, NULL, "show the alignments of requests, too" },
        OUTPUT_OPTION(&format),
        CMD_OPTIONS_END,
    };
    const char *filename;

    int status = cmd_parse_image(&cmd_info, options, argc, argv, &filename);
    if (status != CMD_RUN)
        return status;

    status = graph_form_parse(graph, &graph_form);
    if (status)
        return status;
    if (graph && (whole || format == OUTPUT_JSON))
        return report_usage(&cmd_info, "--graph has a form of its own, and shows the whole chain");
    if (graph)
        return print_graph(&image, filename, graph_form);

    status = gather(&chain, &image, filename, whole);
    if (status == EXIT_OK)
        print_chain(&chain, format, whole);
    for (size_t i = 0; i < chain.count; i++)
        free_layer(&chain.layers[i]);
    free(chain.layers);
    return status;
}
