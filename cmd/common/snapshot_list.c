#include "cmd/common/snapshot_list.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "blockcore/driver.h"
#include "blockcore/types.h"
#include "blockcore/units.h"
#include "cmd/common/json_print.h"

static void set_text(json_t *object, const char *key, const char *text)
{
    if (json_object_set_new(object, key, json_text(text)) < 0)
        abort();
}

static void set_number(json_t *object, const char *key, uint64_t value)
{
    if (json_object_set_new(object, key, json_integer((json_int_t)value)) < 0)
        abort();
}

static json_t *snapshot_object(const struct blk_snapshot *snapshot)
{
    json_t *object = json_object();

    set_text(object, "id", snapshot->id);
    set_text(object, "name", snapshot->name);
    set_number(object, "vm-state-size", snapshot->vm_state_bytes);
    set_number(object, "date-sec", snapshot->date_seconds);
    set_number(object, "date-nsec", snapshot->date_nanoseconds);
    set_number(object, "vm-clock-sec", snapshot->vm_clock_ns / 1000000000);
    set_number(object, "vm-clock-nsec", snapshot->vm_clock_ns % 1000000000);
    if (snapshot->icount != UINT64_MAX)
        set_number(object, "icount", snapshot->icount);
    return object;
}

int snapshot_list_get(struct blk_node *node, json_t **result, struct blk_error *err)
{
    struct blk_snapshot *list = NULL;
    size_t count = 0;

    *result = NULL;
    node = blk_skip_filters(node);
    if (!node->driver->snapshot_list)
        return 0;
    int ret = node->driver->snapshot_list(node, &list, &count, err);
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "listing the snapshots of '%s'", node->name);
    if (count) {
        *result = json_array();
        for (size_t i = 0; i < count; i++)
            json_array_append_new(*result, snapshot_object(&list[i]));
    }
    blk_snapshots_free(list, count);
    return 0;
}

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static uint64_t number_of(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static void print_snapshot(const json_t *snapshot)
{
    char size[32], date[64], clock[64], icount[32] = "";
    time_t seconds = (time_t)number_of(snapshot, "date-sec");
    uint64_t up = number_of(snapshot, "vm-clock-sec");
    struct tm local;

    blk_format_size(number_of(snapshot, "vm-state-size"), size);
    if (!localtime_r(&seconds, &local) ||
        !strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &local))
        snprintf(date, sizeof(date), "%" PRIu64, number_of(snapshot, "date-sec"));
    snprintf(clock, sizeof(clock), "%02" PRIu64 ":%02u:%02u.%03u", up / 3600,
             (unsigned)(up / 60 % 60), (unsigned)(up % 60),
             (unsigned)(number_of(snapshot, "vm-clock-nsec") / 1000000));
    if (json_object_get(snapshot, "icount"))
        snprintf(icount, sizeof(icount), "%" PRIu64, number_of(snapshot, "icount"));
    printf("%-9s %-16s %8s%20s%13s%11s\n", text_of(snapshot, "id"), text_of(snapshot, "name"), size,
           date, clock, icount);
}

void snapshot_list_print(const json_t *list)
{
    printf("Snapshot list:\n");
    printf("%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    for (size_t i = 0; i < json_array_size(list); i++)
        print_snapshot(json_array_get(list, i));
}
