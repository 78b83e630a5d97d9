/* SPDX-License-Identifier: MIT */
/* The states of a target, from making its file to keeping its name or taking it back. */
#include "blockcore/base/assert.h"
#include "drivers/file/file.h"

#define BIT(life) (1u << FILE_TARGET_##life)

/* The states that may follow each one; file.h has the diagram. */
static const unsigned may_become[] = {
    [FILE_TARGET_MAKING] = BIT(UNNAMED) | BIT(TEMPORARY) | BIT(UNTOUCHED),
    [FILE_TARGET_UNNAMED] = BIT(TEMPORARY) | BIT(GIVEN),
    [FILE_TARGET_TEMPORARY] = BIT(GIVEN) | BIT(GIVEN_OLD_KEPT),
    [FILE_TARGET_UNTOUCHED] = BIT(ERASED),
    [FILE_TARGET_ERASED] = BIT(GIVEN),
    [FILE_TARGET_GIVEN] = BIT(KEPT) | BIT(TAKEN_BACK),
    [FILE_TARGET_GIVEN_OLD_KEPT] = BIT(KEPT) | BIT(TAKEN_BACK),
    [FILE_TARGET_KEPT] = 0,
    [FILE_TARGET_TAKEN_BACK] = 0,
};

void file_target_become(struct file_target *t, enum file_target_life life)
{
    ASSERT(may_become[atomic_load(&t->life)] & 1u << life);
    atomic_store(&t->life, life);
}

bool file_target_is(const struct file_target *t, enum file_target_life life)
{
    return atomic_load(&t->life) == life;
}
