/* SPDX-License-Identifier: MIT */
/*
 * The result of a backup as JSON, for a catalogue: which backup it is, what it builds on, how it
 * was closed.
 */
#include "cmd/backup/backup.h"

static const char *mode_name(enum backup_mode mode)
{
    static const char *const names[] = {
        [BACKUP_FULL] = "full",
        [BACKUP_TOP] = "top",
        [BACKUP_BITMAP] = "bitmap",
    };
    return names[mode];
}

static json_t *id_text(const struct blk_id *id)
{
    char text[BLK_ID_TEXT_BYTES];
    blk_id_format(id, text);
    return json_string(text);
}

static json_t *close_steps(const struct blk_close_report *report)
{
    json_t *list = json_array();
    report_close_json(report, list);
    return list;
}

static json_t *describe_disk(const struct backup *backup, const struct backup_disk *disk)
{
    json_t *one = json_object();

    json_object_set_new(one, "source", json_text(disk->source_name));
    json_object_set_new(one, "target", json_text(disk->target_name));
    json_object_set_new(one, "mode", json_string(mode_name(disk->mode)));
    json_object_set_new(one, "id", id_text(&disk->id));
    if (blk_id_is_known(&disk->parent))
        json_object_set_new(one, "parent", id_text(&disk->parent));
    if (disk->backing_name)
        json_object_set_new(one, "base", json_text(disk->backing_name));
    json_object_set_new(one, "virtual-size", json_integer((json_int_t)disk->bytes));
    json_object_set_new(one, "bytes", json_integer((json_int_t)disk->bytes_copied));
    if (disk->digest[0])
        json_object_set_new(one, "digest", json_string(disk->digest));
    json_object_set_new(one, "verified", json_boolean(backup->options->verify));
    json_object_set_new(one, "target-complete", json_boolean(disk->target_complete));
    json_object_set_new(one, "usable", json_boolean(disk->target_complete && !disk->target_left));
    json_object_set_new(one, "target-close", close_steps(&disk->target_report));
    json_object_set_new(one, "source-close", close_steps(&disk->source_report));
    return one;
}

void backup_print_manifest(const struct backup *backup, json_t *result, int status, int exit_status)
{
    json_t *disks = json_array();
    json_t *steps = json_array();

    for (size_t i = 0; i < backup->count; i++) {
        json_array_append_new(disks, describe_disk(backup, &backup->disks[i]));
        report_close_json(&backup->disks[i].target_report, steps);
        report_close_json(&backup->disks[i].source_report, steps);
    }
    json_object_set_new(result, "close", steps);
    json_object_set_new(result, "status", json_integer(status));
    json_object_set_new(result, "usable",
                        json_boolean(status == EXIT_OK || status == EXIT_NOT_SWITCHED));
    json_object_set_new(result, "disks", disks);
    finish(exit_status, NULL, 0, result);
}
