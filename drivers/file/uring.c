/* SPDX-License-Identifier: MIT */
/*
 * aio=io_uring: reads and writes go through a submission ring instead of pread(2) and pwrite(2).
 *
 * Drivers are synchronous and threads make the parallelism, so each thread has a ring of its own,
 * made when it first needs one, with one request in it at a time. What is measured with it is the
 * kernel's path for io_uring, not fewer system calls.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "config.h"
#include "drivers/file/file.h"

#ifdef HAVE_LIBURING
#include <liburing.h>

#define RING_ENTRIES 2

static pthread_key_t ring_key;
static pthread_once_t ring_once = PTHREAD_ONCE_INIT;

static void free_ring(void *opaque)
{
    struct io_uring *ring = opaque;
    io_uring_queue_exit(ring);
    free(ring);
}

static void make_key(void)
{
    if (pthread_key_create(&ring_key, free_ring) != 0)
        abort(); /* a process has room for 1,024 of them */
}

/* This thread's ring; NULL with errno set when the kernel gives none. */
static struct io_uring *own_ring(void)
{
    pthread_once(&ring_once, make_key);
    struct io_uring *ring = pthread_getspecific(ring_key);
    if (ring)
        return ring;
    ring = blk_xcalloc(1, sizeof(*ring));
    int ret = io_uring_queue_init(RING_ENTRIES, ring, 0);
    if (ret == 0) {
        ret = -pthread_setspecific(ring_key, ring);
        if (ret < 0)
            io_uring_queue_exit(ring);
    }
    if (ret < 0) {
        free(ring);
        errno = -ret;
        return NULL;
    }
    return ring;
}

/* Hands in the prepared request and waits for its end; as a system call: -1 and errno. */
static ssize_t run(struct io_uring *ring)
{
    struct io_uring_cqe *cqe;
    int ret;

    do
        ret = io_uring_submit(ring);
    while (ret == -EINTR || ret == -EAGAIN);
    if (ret >= 0) {
        /* The kernel uses the buffer from now on, so nothing but its answer ends the wait. */
        do
            ret = io_uring_wait_cqe(ring, &cqe);
        while (ret == -EINTR || ret == -EAGAIN);
    }
    if (ret < 0) {
        /* The request may still be in the ring: the next one must not find it there. */
        pthread_setspecific(ring_key, NULL);
        free_ring(ring);
        errno = -ret;
        return -1;
    }
    ret = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    if (ret >= 0)
        return ret;
    errno = -ret;
    return -1;
}

/* The length field of a request has 32 bits, and a transfer at most INT_MAX. */
static unsigned clamp(size_t bytes)
{
    return (unsigned)u64_min(bytes, GIB);
}

ssize_t file_uring_pread(int fd, void *buf, size_t bytes, off_t offset)
{
    struct io_uring *ring = own_ring();
    if (!ring)
        return -1;
    io_uring_prep_read(io_uring_get_sqe(ring), fd, buf, clamp(bytes), (uint64_t)offset);
    return run(ring);
}

ssize_t file_uring_pwrite(int fd, const void *buf, size_t bytes, off_t offset)
{
    struct io_uring *ring = own_ring();
    if (!ring)
        return -1;
    io_uring_prep_write(io_uring_get_sqe(ring), fd, buf, clamp(bytes), (uint64_t)offset);
    return run(ring);
}

int file_uring_check(struct blk_error *err)
{
    return own_ring() ? 0 : blk_fail(err, errno, "option aio=io_uring");
}

#else

ssize_t file_uring_pread(int fd, void *buf, size_t bytes, off_t offset)
{
    (void)fd, (void)buf, (void)bytes, (void)offset;
    errno = ENOSYS;
    return -1;
}

ssize_t file_uring_pwrite(int fd, const void *buf, size_t bytes, off_t offset)
{
    (void)fd, (void)buf, (void)bytes, (void)offset;
    errno = ENOSYS;
    return -1;
}

int file_uring_check(struct blk_error *err)
{
    return blk_fail_why(err, ENOTSUP, "this program was built without liburing",
                        "option aio=io_uring");
}

#endif
