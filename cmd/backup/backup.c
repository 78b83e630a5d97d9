/* SPDX-License-Identifier: MIT */
/* `blkimg backup`: its options, and the phases that all disks pass through together. */
#include "cmd/backup/backup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/graph/names.h"

#define DEFAULT_WORKERS 4

static int backup_main(int argc, char **argv);

const struct command cmd_backup = {
    .name = "backup",
    .summary = "Make a full or incremental backup of a disk",
    .usage = "[--base... [-F]] [--verify] [--output] (source target | --disk...)\n"
             "--list-chain [--verify] [--output]",
    .run = backup_main,
    .needs_a_moment = true,
};

/* ---- phases ---- */

typedef int disk_phase(struct backup *backup, struct backup_disk *disk, struct blk_error *err);

static int phase(struct backup *backup, disk_phase *run, struct blk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < backup->count && ret == 0; i++)
        ret = run(backup, &backup->disks[i], err);
    return ret;
}

/*
 * Everything before the switch: after a failure here nothing has changed but that targets may have
 * come and gone.
 */
static int make_targets(struct backup *backup, struct blk_error *err, int *status)
{
    *status = EXIT_FAILED;
    int ret = phase(backup, backup_open_source, err);
    if (ret < 0)
        return ret;
    ret = phase(backup, backup_check_base, err);
    if (ret < 0)
        return ret;
    ret = phase(backup, backup_make_target, err);
    if (ret < 0)
        return ret;

    for (size_t i = 0; i < backup->count; i++)
        backup->progress_total += backup->disks[i].bytes;
    progress_start(&backup->progress, backup->options->progress);
    ret = phase(backup, backup_copy, err);
    progress_finish(&backup->progress, ret == 0);
    if (ret < 0)
        return ret;

    *status = EXIT_CLOSE_FAILED;
    ret = phase(backup, backup_close_target, err);
    if (ret < 0)
        return ret;

    *status = EXIT_FAILED;
    if (backup->options->verify)
        ret = phase(backup, backup_verify, err);
    if (ret < 0)
        return ret;

    *status = EXIT_CLOSE_FAILED;
    ret = phase(backup, backup_name_target, err);
    return ret < 0 ? ret : blk_published_keep(&backup->published, err);
}

/* All sources are closed, whatever fails. `exit_status`: of the process, which a signal may end. */
static int switch_sources(struct backup *backup, int *exit_status)
{
    int status = EXIT_OK;

    *exit_status = EXIT_OK;
    for (size_t i = 0; i < backup->count; i++) {
        struct backup_disk *disk = &backup->disks[i];
        struct blk_error err = BLK_ERROR_INIT;
        if (backup_switch_source(backup->options, disk, &err) == 0)
            continue;
        status = EXIT_NOT_SWITCHED;
        blk_left_behind(&err, "the target '%s' is complete and can be used%s", disk->target_name,
                        backup_changes_source(backup->options, disk)
                            ? "; the source's bitmaps were not switched: they mark too much, or "
                              "are in use"
                            : "");
        int one = report_error_as(status, &err);
        if (!exit_is_by_signal(*exit_status))
            *exit_status = one;
    }
    return status;
}

static void print_digests(const struct backup *backup)
{
    if (backup->options->output == OUTPUT_JSON)
        return;
    for (size_t i = 0; i < backup->count && backup->options->checksum; i++)
        printf("%s  %s\n", backup->disks[i].digest, backup->disks[i].target_name);
}

static int run_backup(struct backup *backup)
{
    struct blk_error err = BLK_ERROR_INIT;
    int status, exit_status;

    if (make_targets(backup, &err, &status) == 0) {
        status = switch_sources(backup, &exit_status);
        print_digests(backup);
    } else {
        exit_status = report_error_as(status, &err);
        backup_take_back(backup);
        for (size_t i = 0; i < backup->count; i++)
            backup_put_back(backup->options, &backup->disks[i]);
        for (size_t i = 0; i < backup->count; i++)
            backup_say_what_stands(&backup->disks[i]);
    }
    if (backup->options->output == OUTPUT_JSON)
        backup_print_manifest(backup, result_new(OUTPUT_JSON, &cmd_backup, NULL), status,
                              exit_status);
    return exit_status;
}

/* ---- options ---- */

struct texts {
    const char *mode, *sync, *broken, *on_cbw_error;
    struct cmd_list disks;
    struct cmd_size workers, rate, cbw_timeout;
    const char *chain; /* --list-chain */
};

/* The index of `text` in a list of names that ends with NULL, or -1 after having reported it. */
static int choose_word(const char *option, const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    BLK_AUTOFREE char *list = blk_xstrdup(names[0]);
    for (int i = 1; names[i]; i++) {
        char *longer = blk_xasprintf("%s, %s", list, names[i]);
        free(list);
        list = longer;
    }
    report_failure("--%s: '%s' is none of %s", option, text, list);
    return -1;
}

static int read_choices(const struct texts *texts, struct backup_options *options)
{
    static const char *const modes[] = { "full", "top", "bitmap", NULL };
    static const char *const syncs[] = { "on-success", "never", "always", NULL };
    static const char *const brokens[] = { "fail", "full", NULL };
    static const char *const on_errors[] = { "break-guest-write", "break-snapshot", NULL };
    const char *default_mode = options->bitmaps.count ? "bitmap" : "full";

    int mode = choose_word("mode", texts->mode ? texts->mode : default_mode, modes);
    int sync = choose_word("bitmap-sync", texts->sync, syncs);
    int broken = choose_word("on-broken-bitmap", texts->broken, brokens);
    int on_error = choose_word("on-cbw-error", texts->on_cbw_error, on_errors);
    if (mode < 0 || sync < 0 || broken < 0 || on_error < 0)
        return EXIT_FAILED;
    options->mode = (enum backup_mode)mode;
    options->sync = (enum backup_sync)sync;
    options->full_if_broken = broken == 1;
    options->on_cbw_error = on_error ? BLK_CBW_BREAK_SNAPSHOT : BLK_CBW_BREAK_GUEST_WRITE;
    return EXIT_OK;
}

static const char *backup_find_conflict(const struct backup_options *options)
{
    if (options->mode == BACKUP_BITMAP && !options->bitmaps.count)
        return "--mode=bitmap needs --bitmap";
    if (options->bases.count && options->mode == BACKUP_FULL)
        return "a full backup has no --base";
    if (options->bases.count && options->existing)
        return "--base and -n exclude each other";
    if (options->base_format && !options->bases.count)
        return "-F needs --base";
    if (options->existing && options->creation.count)
        return "-o is for a new target, and -n takes an existing one";
    if (options->existing && options->keep_failed)
        return "--keep-failed is for a new target, and -n takes an existing one";
    if (options->sync == SYNC_ALWAYS && !options->keep_failed)
        return "--bitmap-sync=always needs --keep-failed";
    if (options->workers < 1 || options->workers > 16)
        return "-m takes a number from 1 to 16";
    if (options->target.image_opts && !options->existing)
        return "--target-image-opts needs -n";
    if (options->guest_io && (options->compressed || options->verify || options->checksum ||
                              options->sync == SYNC_ALWAYS || options->output == OUTPUT_JSON))
        return "--guest-io excludes -c, --verify, --checksum, --bitmap-sync=always, --output=json";
    for (size_t i = 0; i < options->bitmaps.count; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(options->bitmaps.items[i], options->bitmaps.items[j]) == 0)
                return "the same --bitmap is given twice";
    return NULL;
}

/* Takes "SOURCE=TARGET" apart, at the last "=" that leaves both a name. */
static int add_disk(struct backup *backup, const char *text)
{
    const char *equals = strrchr(text, '=');
    if (!equals || equals == text || !equals[1])
        return report_failure("--disk: '%s' is not SOURCE=TARGET", text);
    struct backup_disk *disk = &backup->disks[backup->count++];
    disk->source_name = blk_xstrndup(text, (size_t)(equals - text));
    disk->target_name = equals + 1;
    return EXIT_OK;
}

/* No file can be the target of two disks. */
static int check_targets(const struct backup *backup)
{
    for (size_t i = 0; i < backup->count; i++)
        for (size_t j = 0; j < i; j++)
            if (blk_same_file(backup->disks[i].target_name, backup->disks[j].target_name))
                return report_failure("the target '%s' is given for two disks",
                                      backup->disks[i].target_name);
    return EXIT_OK;
}

static int add_disks(struct backup *backup, const struct cmd_operands *operands,
                     const struct cmd_list *disks)
{
    const struct backup_options *options = backup->options;
    int status = EXIT_OK;

    if (operands->count != 2 && !(operands->count == 0 && disks->count))
        return report_usage(&cmd_backup, "expects a source and a target, or --disk");
    backup->disks = blk_xcalloc(disks->count + 1, sizeof(*backup->disks));
    if (operands->count == 2) {
        struct backup_disk *disk = &backup->disks[backup->count++];
        disk->source_name = blk_xstrdup(operands->items[0]);
        disk->target_name = operands->items[1];
    }
    for (size_t i = 0; i < disks->count && status == EXIT_OK; i++)
        status = add_disk(backup, disks->items[i]);
    if (status != EXIT_OK)
        return status;

    if (options->guest_io && backup->count != 1)
        return report_usage(&cmd_backup, "--guest-io is for one disk");
    if (options->bases.count && options->bases.count != backup->count)
        return report_usage(&cmd_backup, "--base must be given once for each disk, or not at all");
    for (size_t i = 0; i < options->bases.count; i++)
        backup->disks[i].base = options->bases.items[i];
    return check_targets(backup);
}

/* Reads the command line. Returns CMD_RUN, or the exit status with which the command ends here. */
static int parse_options(int argc, char **argv, struct backup_options *options, struct texts *texts,
                         struct cmd_operands *operands)
{
    const struct cmd_option table[] = {
        IMAGE_OPTIONS(&options->source),
        { 0, "mode", CMD_STRING, &texts->mode, "full|top|bitmap",
          "copy all, this layer, or what bitmaps mark" },
        { 0, "bitmap", CMD_LIST, &options->bitmaps, "NAME", "back up what this bitmap marks" },
        { 0, "bitmap-sync", CMD_STRING, &texts->sync, "on-success|never|always",
          "when bitmaps start over" },
        { 0, "on-broken-bitmap", CMD_STRING, &texts->broken, "fail|full",
          "fail, or make a full backup and start it over" },
        { 0, "new-bitmap", CMD_STRING, &options->new_bitmap, "NAME",
          "add a bitmap that starts with this backup" },
        { 0, "base", CMD_LIST, &options->bases, "FILE",
          "make the target an overlay on this backup" },
        { 'F', "base-format", CMD_STRING, &options->base_format, "FMT", "format of the base" },
        { 0, "verify", CMD_FLAG, &options->verify, NULL, "read the target back and compare" },
        { 0, "checksum", CMD_FLAG, &options->checksum, NULL,
          "print a digest of the disk's content" },
        { 0, "keep-failed", CMD_FLAG, &options->keep_failed, NULL,
          "keep an incomplete target as TARGET.partial" },
        { 0, "disk", CMD_LIST, &texts->disks, "SOURCE=TARGET", "one of several disks" },
        { 0, "guest-io", CMD_STRING, &options->guest_io, "FILE",
          "io commands to run on the source during the backup" },
        { 0, "on-cbw-error", CMD_STRING, &texts->on_cbw_error, "break-guest-write|break-snapshot",
          "what a failed save breaks" },
        { 0, "cbw-timeout", CMD_UINT, &texts->cbw_timeout, "SECONDS",
          "how long a guest write may wait for a save" },
        { 0, "list-chain", CMD_STRING, &texts->chain, "FILE",
          "print and check the backups that this one builds on" },
        { 'O', "target-format", CMD_STRING, &options->target.format, "FMT",
          "format of the target (qcow2)" },
        { 'o', "options", CMD_LIST, &options->creation, "OPTIONS",
          "options for creating the target" },
        FORCE_OPTION(&options->target),
        { 'c', "compress", CMD_FLAG, &options->compressed, NULL, "write compressed clusters" },
        IN_PLACE_OPTION(&options->target),
        { 'n', "no-create", CMD_FLAG, &options->existing, NULL, "write into an existing target" },
        { 't', "target-cache", CMD_STRING, &options->target_cache, "CACHE",
          "cache mode of the target" },
        { 'T', "source-cache", CMD_STRING, &options->source_cache, "CACHE",
          "cache mode of the source" },
        { 'm', "parallel", CMD_UINT, &texts->workers, "N", "worker threads (4)" },
        { 'r', "rate-limit", CMD_SIZE, &texts->rate, "BYTES",
          "limit the copy to this many bytes per second" },
        { 'p', "progress", CMD_FLAG, &options->progress, NULL, "show the progress" },
        { 'q', "quiet", CMD_FLAG, &options->quiet, NULL, "print nothing but errors" },
        { 0, "target-image-opts", CMD_FLAG, &options->target.image_opts, NULL,
          "with -n, the target is given as driver=...,option=value" },
        RESULT_OPTION(&options->output),
        CMD_OPTIONS_END,
    };

    return cmd_parse(&cmd_backup, table, argc, argv, operands);
}

/* Fills in what follows from the texts, and checks what goes together. Returns an exit status. */
static int check_options(const struct texts *texts, struct backup_options *options)
{
    if (read_choices(texts, options) != EXIT_OK)
        return EXIT_FAILED;
    if (texts->workers.given)
        options->workers = texts->workers.value > 16 ? 0 : (unsigned)texts->workers.value;
    options->bytes_per_second = texts->rate.value;
    options->cbw_timeout_seconds = texts->cbw_timeout.value;
    options->target.lock_wait = options->source.lock_wait;
    options->target.trust = options->source.trust;
    if (!options->target.format && !options->target.image_opts)
        options->target.format = "qcow2";
    options->progress = options->progress && !options->quiet && options->output == OUTPUT_HUMAN;
    const char *conflict = backup_find_conflict(options);
    return conflict ? report_usage(&cmd_backup, "%s", conflict) : EXIT_OK;
}

static int backup_main(int argc, char **argv)
{
    struct backup_options options = { .workers = DEFAULT_WORKERS };
    struct texts texts = {
        .sync = "on-success",
        .broken = "fail",
        .on_cbw_error = "break-guest-write",
    };
    struct cmd_operands operands;

    int status = parse_options(argc, argv, &options, &texts, &operands);
    if (status != CMD_RUN)
        return status;
    status = check_options(&texts, &options);
    if (status != EXIT_OK)
        return status;
    if (texts.chain && (operands.count || texts.disks.count))
        return report_usage(&cmd_backup, "--list-chain takes no source and target");
    if (texts.chain)
        return backup_list_chain(&options, texts.chain);

    struct backup backup = { .options = &options };
    status = add_disks(&backup, &operands, &texts.disks);
    if (status == EXIT_OK)
        status = run_backup(&backup);
    for (size_t i = 0; i < backup.count; i++)
        backup_disk_free(&backup.disks[i]);
    free(backup.disks);
    return status;
}
