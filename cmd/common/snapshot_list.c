/* SPDX-License-Identifier: MIT */
/* The list of internal snapshots, as text and as JSON. */
#include "cmd/common/snapshot_list.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/units.h"
#include "blockcore/graph/feature.h"
#include "blockcore/graph/ops.h"
#include "cmd/common/json_print.h"

static void set_snapshot_text(json_t *object, const char *key, const char *text)
{
    if (json_object_set_new(object, key, json_text(text)) < 0)
        blk_out_of_memory();
}

static void set_snapshot_number(json_t *object, const char *key, uint64_t value)
{
    if (json_object_set_new(object, key, json_integer((json_int_t)value)) < 0)
        blk_out_of_memory();
}

json_t *snapshot_list_item(const void *opaque, size_t index)
{
    const struct snapshot_list *list = opaque;
    const struct blk_snapshot *snapshot = &list->items[index];
    json_t *object = json_object();

    set_snapshot_text(object, "id", snapshot->id);
    set_snapshot_text(object, "name", snapshot->name);
    set_snapshot_number(object, "vm-state-size", snapshot->vm_state_bytes);
    set_snapshot_number(object, "date-sec", snapshot->date_seconds);
    set_snapshot_number(object, "date-nsec", snapshot->date_nanoseconds);
    set_snapshot_number(object, "vm-clock-sec", snapshot->vm_clock_ns / 1000000000);
    set_snapshot_number(object, "vm-clock-nsec", snapshot->vm_clock_ns % 1000000000);
    if (snapshot->icount != UINT64_MAX)
        set_snapshot_number(object, "icount", snapshot->icount);
    return object;
}

int snapshot_list_get(struct blk_node *node, struct snapshot_list *list, struct blk_error *err)
{
    *list = (struct snapshot_list){ .items = NULL };
    node = blk_skip_filters(node);
    return blk_supports(node, BLK_SNAPSHOTS)
               ? blk_snapshot_list(node, &list->items, &list->count, err)
               : 0;
}

void snapshot_list_free(struct snapshot_list *list)
{
    blk_snapshots_free(list->items, list->count);
    *list = (struct snapshot_list){ .items = NULL };
}

static void print_snapshot(const struct blk_snapshot *snapshot)
{
    char size[32], date[64], clock[64], icount[32] = "";
    time_t seconds = (time_t)snapshot->date_seconds;
    uint64_t up = snapshot->vm_clock_ns / 1000000000;
    struct tm local;

    blk_format_size(snapshot->vm_state_bytes, size);
    if (!localtime_r(&seconds, &local) ||
        !strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &local))
        snprintf(date, sizeof(date), "%" PRIu64, snapshot->date_seconds);
    snprintf(clock, sizeof(clock), "%02" PRIu64 ":%02u:%02u.%03u", up / 3600,
             (unsigned)(up / 60 % 60), (unsigned)(up % 60),
             (unsigned)(snapshot->vm_clock_ns % 1000000000 / 1000000));
    if (snapshot->icount != UINT64_MAX)
        snprintf(icount, sizeof(icount), "%" PRIu64, snapshot->icount);
    printf("%-9s %-16s %8s%20s%13s%11s\n", snapshot->id, snapshot->name, size, date, clock, icount);
}

void snapshot_list_print(const struct snapshot_list *list)
{
    printf("Snapshot list:\n");
    printf("%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    for (size_t i = 0; i < list->count; i++)
        print_snapshot(&list->items[i]);
}
