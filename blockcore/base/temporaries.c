/* SPDX-License-Identifier: MIT */
/* A fixed table, for it is read when there is no memory left. */
#include "blockcore/base/temporaries.h"

#include <fcntl.h>
#include <stddef.h>
#include <unistd.h>

#include "blockcore/base/lock.h"

/*
 * An image has two files at most, a backup as many times that as it has disks. What does not fit
 * here keeps its temporary name.
 */
#define MAX_TEMPORARIES 256

static struct blk_mutex mutex = BLK_MUTEX_INIT; /* guards what follows */
static struct {
    int directory_fd;
    const char *name; /* NULL: free */
} temporaries[MAX_TEMPORARIES];

void blk_temporary_note(int directory_fd, const char *name)
{
    LOCK_SCOPE(&mutex);
    size_t i = 0;
    while (i < MAX_TEMPORARIES && temporaries[i].name)
        i++;
    if (i < MAX_TEMPORARIES) {
        temporaries[i].directory_fd = directory_fd;
        temporaries[i].name = name;
    }
}

void blk_temporary_forget(const char *name)
{
    LOCK_SCOPE(&mutex);
    for (size_t i = 0; name && i < MAX_TEMPORARIES; i++)
        if (temporaries[i].name == name)
            temporaries[i].name = NULL;
}

void blk_temporaries_remove(void)
{
    LOCK_SCOPE(&mutex);
    for (size_t i = 0; i < MAX_TEMPORARIES; i++)
        if (temporaries[i].name)
            (void)unlinkat(temporaries[i].directory_fd, temporaries[i].name, 0);
}
