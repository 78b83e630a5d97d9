/* SPDX-License-Identifier: MIT */
/*
 * Rules at work: which of them an event activates, whether a request fails, and what became of
 * them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "drivers/blkdebug/rules.h"

static bool in_state(const struct blkdebug_rules *rules, const struct blkdebug_rule *rule)
{
    return rule->state == 0 || rule->state == rules->state;
}

static void deactivate_all(struct blkdebug_rules *rules)
{
    for (size_t i = 0; i < rules->count; i++)
        rules->list[i].active = false;
}

void blkdebug_rules_event(struct blkdebug_rules *rules, enum blk_event event)
{
    /* All rules of one event see the same state, whatever they set. */
    uint64_t new_state = rules->state;
    bool first = true;

    for (size_t i = 0; i < rules->count; i++) {
        struct blkdebug_rule *rule = &rules->list[i];
        if (rule->event != event || !in_state(rules, rule))
            continue;
        if (rule->action == BLKDEBUG_SET_STATE) {
            new_state = rule->new_state;
            continue;
        }
        if (rule->spent)
            continue;
        if (first)
            deactivate_all(rules);
        first = false;
        rule->active = true;
    }
    rules->state = new_state;
}

static bool applies(const struct blkdebug_rules *rules, const struct blkdebug_rule *rule,
                    enum blkdebug_iotype iotype, uint64_t offset, uint64_t bytes)
{
    if (rule->action != BLKDEBUG_INJECT_ERROR || rule->spent || !(rule->iotypes & 1u << iotype))
        return false;
    if (rule->event == BLK_EVENT_NONE ? !in_state(rules, rule) : !rule->active)
        return false;
    return rule->anywhere || (rule->offset >= offset && rule->offset - offset < bytes);
}

int blkdebug_rules_check(struct blkdebug_rules *rules, enum blkdebug_iotype iotype, uint64_t offset,
                         uint64_t bytes)
{
    for (size_t i = 0; i < rules->count; i++) {
        struct blkdebug_rule *rule = &rules->list[i];
        if (!applies(rules, rule, iotype, offset, bytes))
            continue;
        if (++rule->matched < rule->nth)
            continue;
        if (rule->code == 0)
            return 0;
        rule->spent = rule->once;
        rule->injected++;
        return -rule->code;
    }
    return 0;
}

static int write_stats(const struct blkdebug_rule *rule, struct blk_error *err)
{
    FILE *file = fopen(rule->stats_path, "we");
    bool failed = !file;

    if (file) {
        failed = fprintf(file, "requests matched: %" PRIu64 "\nerrors injected: %" PRIu64 "\n",
                         rule->matched, rule->injected) < 0;
        failed |= fclose(file) != 0;
    }
    return failed ? blk_fail(err, errno, "writing the statistics '%s'", rule->stats_path) : 0;
}

int blkdebug_rules_write_stats(const struct blkdebug_rules *rules, struct blk_error *err)
{
    int first = 0;
    for (size_t i = 0; i < rules->count; i++) {
        int ret = rules->list[i].stats_path ? write_stats(&rules->list[i], first ? NULL : err) : 0;
        first = first ? first : ret;
    }
    return first;
}
