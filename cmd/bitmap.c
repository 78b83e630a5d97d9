/* SPDX-License-Identifier: MIT */
/*
 * blkimg bitmap: changes the persistent dirty bitmaps of an image, or lists them.
 *
 * All actions happen in memory, in the order given; the close then stores the result by one switch
 * of the image's header. So either all of them are in the image afterwards or none, and the exit
 * status says which.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/base/array.h"
#include "blockcore/base/bytes.h"
#include "blockcore/bitmap/bitmaps.h"
#include "blockcore/bitmap/identity.h"
#include "cmd/common/common.h"

/* ---- actions ---- */

struct bitmap_request {
    struct blk_node *root;
    struct blk_node *source; /* -b: where --merge finds its bitmaps; else the root */
    const char *name;
    uint64_t granularity; /* 0: the default */
    const char *argument; /* of the action at hand */
};

/* QEMU's default: the cluster size, but 4 KiB at least and 64 KiB at most. */
static int default_granularity(struct blk_node *node, uint64_t *granularity, struct blk_error *err)
{
    uint64_t cluster_bytes;
    int ret = blk_cluster_bytes(node, &cluster_bytes, err);
    *granularity = cluster_bytes ? u64_max(4 * KIB, u64_min(cluster_bytes, 64 * KIB)) : 64 * KIB;
    return ret;
}

/*
 * The bitmap does not mark all that changed since its last backup: no incremental backup may build
 * on that one.
 */
static void break_chain(struct blk_node *node, const char *name)
{
    struct blk_identity identity;

    if (blk_identity_of(node, &identity, NULL) == 0 && blk_identity_forget(&identity, name))
        blk_identity_set(node, &identity);
}

static int do_add(struct bitmap_request *request, struct blk_error *err)
{
    struct blk_node *node = request->root;
    struct blk_dirty_bitmap *bitmap;
    uint64_t granularity = request->granularity;

    int ret = blk_bitmaps_can_add(node, err);
    if (ret < 0)
        return ret;
    if (!granularity)
        ret = default_granularity(node, &granularity, err);
    if (ret < 0)
        return ret;
    if (!is_power_of_two(granularity))
        return blk_fail_why(err, EINVAL, "must be a power of two, 512 or more",
                            "granularity %" PRIu64, granularity);
    ret = blk_dirty_bitmap_new(request->name, blk_size(node),
                               (unsigned)__builtin_ctzll(granularity), &bitmap, err);
    if (ret < 0)
        return ret;
    bitmap->persistent = true;
    ret = blk_bitmaps_add(node, bitmap, err);
    if (ret < 0)
        blk_dirty_bitmap_free(bitmap);
    else
        break_chain(node, request->name);
    return ret;
}

/* An inconsistent bitmap can be removed, and nothing else. */
static int do_remove(struct bitmap_request *request, struct blk_error *err)
{
    struct blk_dirty_bitmap *bitmap = blk_bitmaps_find(request->root, request->name);
    if (!bitmap)
        return blk_bitmaps_not_found(request->root, request->name, err);
    blk_bitmaps_remove(request->root, bitmap);
    break_chain(request->root, request->name);
    return 0;
}

static int usable(struct bitmap_request *request, struct blk_dirty_bitmap **bitmap,
                  struct blk_error *err)
{
    return blk_bitmaps_get_usable(request->root, request->name, bitmap, err);
}

static int do_clear(struct bitmap_request *request, struct blk_error *err)
{
    struct blk_dirty_bitmap *bitmap;
    int ret = usable(request, &bitmap, err);
    if (ret == 0) {
        blk_dirty_bitmap_clear_all(bitmap);
        break_chain(request->root, request->name);
    }
    return ret;
}

static int set_enabled(struct bitmap_request *request, bool enabled, struct blk_error *err)
{
    struct blk_dirty_bitmap *bitmap;
    int ret = usable(request, &bitmap, err);
    if (ret == 0 && bitmap->enabled != enabled) {
        bitmap->enabled = enabled;
        request->root->bitmaps->changed = true;
        if (!enabled)
            break_chain(request->root, request->name);
    }
    return ret;
}

static int do_enable(struct bitmap_request *request, struct blk_error *err)
{
    return set_enabled(request, true, err);
}

static int do_disable(struct bitmap_request *request, struct blk_error *err)
{
    return set_enabled(request, false, err);
}

static int do_merge(struct bitmap_request *request, struct blk_error *err)
{
    struct blk_dirty_bitmap *to, *from;
    int ret = usable(request, &to, err);
    if (ret < 0)
        return ret;
    ret = blk_bitmaps_get_usable(request->source, request->argument, &from, err);
    if (ret < 0)
        return ret;
    if (from->size != to->size)
        return blk_fail_why(err, EINVAL, "the two images differ in size",
                            "merging bitmap '%s' into '%s'", from->name, to->name);
    blk_dirty_bitmap_merge(to, from);
    return 0;
}

/* The list is at the same time what the options are called. */
static const struct action {
    const char *name;
    int (*run)(struct bitmap_request *request, struct blk_error *err);
} actions[] = {
    { "add", do_add },       { "remove", do_remove },   { "clear", do_clear },
    { "enable", do_enable }, { "disable", do_disable }, { "merge", do_merge },
};

struct step {
    const struct action *action;
    const char *argument;
};

struct steps {
    struct step list[64];
    size_t count;
};

static int note_action(void *opaque, const struct cmd_option *option, const char *text)
{
    struct steps *steps = opaque;

    if (steps->count == ARRAY_SIZE(steps->list))
        return report_failure("bitmap: too many actions");
    for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
        if (strcmp(actions[i].name, option->name) == 0)
            steps->list[steps->count++] = (struct step){ &actions[i], text };
    return EXIT_OK;
}

static bool has_action(const struct steps *steps, const char *name)
{
    for (size_t i = 0; i < steps->count; i++)
        if (strcmp(steps->list[i].action->name, name) == 0)
            return true;
    return false;
}

static int run_steps(struct bitmap_request *request, const struct steps *steps)
{
    for (size_t i = 0; i < steps->count; i++) {
        struct blk_error err = BLK_ERROR_INIT;
        request->argument = steps->list[i].argument;
        if (steps->list[i].action->run(request, &err) < 0) {
            blk_context(&err, "bitmap --%s", steps->list[i].action->name);
            return report_error(&err);
        }
    }
    return EXIT_OK;
}

/* ---- the list ---- */

static json_t *flags_of(const struct blk_dirty_bitmap *bitmap)
{
    json_t *flags = json_array();
    if (bitmap->inconsistent)
        json_array_append_new(flags, json_string("in-use"));
    if (bitmap->enabled)
        json_array_append_new(flags, json_string("auto"));
    return flags;
}

/* The backup that the bitmap counts from as text, or NULL. */
static const char *since_text(const struct blk_identity *identity, const char *bitmap,
                              char text[BLK_ID_TEXT_BYTES])
{
    const struct blk_id *since = blk_identity_since(identity, bitmap);

    if (!since || !blk_id_is_known(since))
        return NULL;
    blk_id_format(since, text);
    return text;
}

static void list_json(const struct blk_node *node, const struct blk_identity *identity)
{
    char text[BLK_ID_TEXT_BYTES];
    json_t *list = json_array();

    for (struct blk_dirty_bitmap *b = node->bitmaps ? node->bitmaps->first : NULL; b; b = b->next) {
        json_t *one = json_object();
        json_object_set_new(one, "name", json_text(b->name));
        json_object_set_new(one, "granularity", json_integer((json_int_t)1 << b->granularity_bits));
        json_object_set_new(one, "flags", flags_of(b));
        if (since_text(identity, b->name, text))
            json_object_set_new(one, "since", json_string(text));
        if (blk_dirty_bitmap_has_bits(b))
            json_object_set_new(one, "dirty-bytes",
                                json_integer((json_int_t)blk_dirty_bitmap_count(b)));
        json_array_append_new(list, one);
    }
    json_print(stdout, list);
    json_decref(list);
}

static void list_human(const struct blk_node *node, const struct blk_identity *identity)
{
    char text[BLK_ID_TEXT_BYTES];

    for (struct blk_dirty_bitmap *b = node->bitmaps ? node->bitmaps->first : NULL; b; b = b->next) {
        char size[32];
        print_escaped(stdout, b->name);
        blk_format_size(UINT64_C(1) << b->granularity_bits, size);
        printf(": granularity %s, %s", size, b->enabled ? "enabled" : "disabled");
        if (b->inconsistent)
            printf(", in use: it may have missed writes, and can only be removed");
        else if (b->unusable)
            printf(", with properties that this version does not know");
        else
            printf(", %" PRIu64 " bytes dirty", blk_dirty_bitmap_count(b));
        if (since_text(identity, b->name, text))
            printf(", counts from backup %s", text);
        putchar('\n');
    }
}

static int list_bitmaps(const struct image_args *image, const char *name, enum output_format output)
{
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;

    if (image_open(image, name, BLK_NO_BACKING, NULL, &root, &err) < 0)
        return report_error(&err);
    struct blk_node *node = blk_skip_filters(root);
    struct blk_identity identity;
    int status = EXIT_OK;
    /* An identity of a newer form is no reason to list nothing. */
    if (blk_identity_of(node, &identity, NULL) < 0)
        identity = (struct blk_identity){ .bitmap_count = 0 };
    if (blk_bitmaps_load(node, &err) < 0)
        status = report_error(&err);
    else if (output == OUTPUT_JSON)
        list_json(node, &identity);
    else
        list_human(node, &identity);
    return finish(status, &root, 1, NULL);
}

/* ---- the command ---- */

static int bitmap_main(int argc, char **argv);

const struct command cmd_bitmap = {
    .name = "bitmap",
    .summary = "Change or list the dirty bitmaps of an image",
    .usage = "[-f] [-U] [--output] "
             "(--add | --remove | --clear | --enable | --disable | --merge)... filename bitmap\n"
             "--list [-f] [-U] [--output] filename",
    .run = bitmap_main,
};

static json_t *bitmap_describe(enum output_format output, const char *filename, const char *bitmap,
                               const struct steps *steps)
{
    json_t *result = result_new(output, &cmd_bitmap, filename);
    if (!result)
        return NULL;
    json_t *names = json_array();
    for (size_t i = 0; i < steps->count; i++)
        json_array_append_new(names, json_string(steps->list[i].action->name));
    result_set_text(result, "bitmap", bitmap);
    json_object_set_new(result, "actions", names);
    return result;
}

/*
 * Runs the actions. If one fails, nothing was written yet: the graph is dropped and the image is
 * what it was.
 */
static int change_bitmaps(struct bitmap_request *request, const struct steps *steps,
                          const char *filename, struct blk_node *source_root,
                          enum output_format output)
{
    struct blk_node *roots[] = { source_root, request->root };

    request->root = blk_skip_filters(request->root);
    request->source = source_root ? blk_skip_filters(source_root) : request->root;
    json_t *result = bitmap_describe(output, filename, request->name, steps);
    int status = run_steps(request, steps);
    if (status == EXIT_OK) {
        report_close_note("bitmap '%s' of '%s' may be wrong", request->name, filename);
        return finish(status, roots, 2, result);
    }
    blk_drop(roots[0]);
    blk_drop(roots[1]);
    return finish(status, NULL, 0, result);
}

static int bitmap_main(int argc, char **argv)
{
    struct image_args image = IMAGE_ARGS_INIT, source = IMAGE_ARGS_INIT;
    const char *source_file = NULL;
    enum output_format output = OUTPUT_HUMAN;
    struct cmd_size granularity = { .given = false };
    bool list = false;
    struct steps steps = { .count = 0 };
    struct cmd_call note = { note_action, &steps };
    const struct cmd_option options[] = {
        IMAGE_OPTIONS(&image),
        { 0, "add", CMD_MARK, &note, NULL, "add a bitmap, enabled" },
        { 0, "remove", CMD_MARK, &note, NULL, "remove the bitmap" },
        { 0, "clear", CMD_MARK, &note, NULL, "mark everything clean" },
        { 0, "enable", CMD_MARK, &note, NULL, "record writes from now on" },
        { 0, "disable", CMD_MARK, &note, NULL, "stop recording writes" },
        { 0, "merge", CMD_CALL, &note, "NAME", "merge another bitmap into this one" },
        { 'b', "source-file", CMD_STRING, &source_file, "FILE",
          "image that holds the bitmap to merge" },
        { 'F', "source-format", CMD_STRING, &source.format, "FMT", "its format" },
        { 'g', "granularity", CMD_SIZE, &granularity, "SIZE", "granularity of a new bitmap" },
        { 0, "list", CMD_FLAG, &list, NULL, "list all bitmaps; takes only an image" },
        RESULT_OPTION(&output),
        CMD_OPTIONS_END,
    };
    struct cmd_operands operands;

    int status = cmd_parse(&cmd_bitmap, options, argc, argv, &operands);
    if (status != CMD_RUN)
        return status;
    if (list && (steps.count || operands.count != 1))
        return report_usage(&cmd_bitmap, "--list expects one image and no action");
    if (list)
        return list_bitmaps(&image, operands.items[0], output);
    if (operands.count != 2)
        return report_usage(&cmd_bitmap, "expects an image and a bitmap");
    if (!steps.count)
        return report_usage(&cmd_bitmap, "expects at least one of --add, --remove, --clear, "
                                         "--enable, --disable, --merge");
    if (granularity.given && !has_action(&steps, "add"))
        return report_usage(&cmd_bitmap, "-g needs --add");
    if (source_file && !has_action(&steps, "merge"))
        return report_usage(&cmd_bitmap, "-b needs --merge");
    if (source.format && !source_file)
        return report_usage(&cmd_bitmap, "-F needs -b");

    struct blk_error err = BLK_ERROR_INIT;
    struct bitmap_request request = { .name = operands.items[1], .granularity = granularity.value };
    struct blk_node *source_root = NULL;
    source.lock_wait = image.lock_wait;
    if (image_open(&image, operands.items[0], BLK_WRITABLE | BLK_NO_BACKING, NULL, &request.root,
                   &err) < 0)
        return report_error(&err);
    if (source_file &&
        image_open(&source, source_file, BLK_NO_BACKING, NULL, &source_root, &err) < 0) {
        if (err.busy)
            err.busy = BLK_BUSY_FOR_WRITING; /* -U is for --list only */
        blk_drop(request.root);
        return report_error(&err);
    }
    return change_bitmaps(&request, &steps, operands.items[0], source_root, output);
}
