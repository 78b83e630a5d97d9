/* SPDX-License-Identifier: MIT */
/*
 * LD_PRELOAD object that makes one allocation fail, to show that a command ends cleanly when it
 * runs out of memory.
 *
 * Environment, as for fault-preload.c:
 *   FAULT_N           fail the N-th allocation, from 1; 0 or unset: none
 *   FAULT_ONCE        1: only this one; otherwise all later ones fail too
 *   FAULT_COUNT_FILE  gets one line of LINE_BYTES bytes for each allocation
 *
 * An allocation is a call of the malloc family, also from within libc and other libraries, or an
 * anonymous mmap of the program. What the loader allocates before this object does not count.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LINE_BYTES = 96 };

/* libc's own, which need no lookup: dlsym itself allocates. */
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);

static uint64_t wanted_number;
static bool fault_once;
static int count_fd = -1;
static bool ready;
static _Atomic(uint64_t) count;

static void append_number(char *line, uint64_t number)
{
    char digits[24];
    size_t at = sizeof(digits);

    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    memcpy(line, digits + at, sizeof(digits) - at);
}

/* Counts an allocation. Whether it fails. */
static bool fails(const char *what, uint64_t bytes)
{
    if (!ready)
        return false;
    uint64_t number = atomic_fetch_add(&count, 1) + 1;
    if (count_fd >= 0) {
        char line[LINE_BYTES];
        memset(line, ' ', LINE_BYTES - 1);
        line[LINE_BYTES - 1] = '\n';
        memcpy(line, what, strlen(what));
        append_number(line + 16, bytes);
        if (write(count_fd, line, LINE_BYTES) != LINE_BYTES)
            _exit(99);
    }
    if (!wanted_number || number < wanted_number || (fault_once && number != wanted_number))
        return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t bytes)
{
    return fails("malloc", bytes) ? NULL : __libc_malloc(bytes);
}

void *calloc(size_t items, size_t bytes)
{
    return fails("calloc", items * bytes) ? NULL : __libc_calloc(items, bytes);
}

void *realloc(void *old, size_t bytes)
{
    return fails("realloc", bytes) ? NULL : __libc_realloc(old, bytes);
}

void *memalign(size_t alignment, size_t bytes)
{
    return fails("memalign", bytes) ? NULL : __libc_memalign(alignment, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    return fails("aligned_alloc", bytes) ? NULL : __libc_memalign(alignment, bytes);
}

int posix_memalign(void **result, size_t alignment, size_t bytes)
{
    void *memory = fails("posix_memalign", bytes) ? NULL : __libc_memalign(alignment, bytes);

    if (!memory)
        return ENOMEM;
    *result = memory;
    return 0;
}

void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    static void *(*real)(void *, size_t, int, int, int, off_t);

    if (!real)
        real = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    if (flags & MAP_ANONYMOUS && fails("mmap", bytes))
        return MAP_FAILED;
    return real(address, bytes, protection, flags, fd, offset);
}

__attribute__((constructor)) static void start(void)
{
    const char *number = getenv("FAULT_N"), *once = getenv("FAULT_ONCE");
    const char *count_file = getenv("FAULT_COUNT_FILE");

    wanted_number = number ? strtoull(number, NULL, 10) : 0;
    fault_once = once && strcmp(once, "1") == 0;
    if (count_file)
        count_fd = open(count_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    ready = true;
}
