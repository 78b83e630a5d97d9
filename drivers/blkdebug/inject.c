/*
 * Rules at work: which of them an event activates, and whether a request fails.
 */
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

int blkdebug_rules_check(struct blkdebug_rules *rules, enum blkdebug_iotype iotype,
                         uint64_t offset, uint64_t bytes)
{
    bool counted = false;

    for (size_t i = 0; i < rules->count; i++) {
        struct blkdebug_rule *rule = &rules->list[i];
        if (!applies(rules, rule, iotype, offset, bytes))
            continue;
        rules->matched += !counted;
        counted = true;
        if (++rule->matched < rule->nth)
            continue;
        if (rule->code == 0)
            return 0;
        rule->spent = rule->once;
        rules->injected++;
        return -rule->code;
    }
    return 0;
}
