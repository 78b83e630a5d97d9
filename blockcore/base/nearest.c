/* SPDX-License-Identifier: MIT */
/* The nearest name is the one with the fewest typing mistakes, a swap of neighbours being one. */
#include "blockcore/base/nearest.h"

#define NAME_MAX_LENGTH 32

static unsigned smaller(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/*
 * How many characters must be added, removed, changed or swapped with their neighbour to get from a
 * to b.
 */
static unsigned edit_distance(const char *a, const char *b)
{
    size_t rows = strlen(a), columns = strlen(b);
    unsigned d[NAME_MAX_LENGTH + 1][NAME_MAX_LENGTH + 1];

    if (rows > NAME_MAX_LENGTH || columns > NAME_MAX_LENGTH)
        return NAME_MAX_LENGTH;
    for (size_t i = 0; i <= rows; i++)
        d[i][0] = (unsigned)i;
    for (size_t j = 0; j <= columns; j++)
        d[0][j] = (unsigned)j;
    for (size_t i = 1; i <= rows; i++) {
        for (size_t j = 1; j <= columns; j++) {
            unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = smaller(best, smaller(d[i - 1][j], d[i][j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = smaller(best, d[i - 2][j - 2] + 1);
            d[i][j] = best;
        }
    }
    return d[rows][columns];
}

void blk_nearest_try(struct blk_nearest *nearest, const char *name)
{
    unsigned distance = edit_distance(nearest->word, name);
    if (distance >= nearest->distance)
        return;
    nearest->distance = distance;
    nearest->name = name;
}
