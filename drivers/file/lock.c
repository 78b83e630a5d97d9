/*
 * QEMU's image locks: one byte of the file a permission, locked by the open file
 * description.
 *
 * Byte 100+p held means "I use p", byte 200+p held means "I do not let others use p". All are held
 * shared, so they never exclude each other by themselves: an opener takes its own first, then asks
 * whether an exclusive lock on each opposite byte would be refused. Two that come at the same time
 * may both give up; never do both go on.
 */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "blockcore/cancel.h"
#include "blockcore/clock.h"
#include "blockcore/error.h"
#include "blockcore/sys.h"
#include "drivers/file/file.h"
#include "drivers/file/holder.h"

enum permission { READ, WRITE, WRITE_UNCHANGED, RESIZE, PERMISSION_COUNT };

static const char *const permission_names[PERMISSION_COUNT] = {
    [READ] = "consistent read",
    [WRITE] = "write",
    [WRITE_UNCHANGED] = "write unchanged",
    [RESIZE] = "resize",
};

#define USED_BYTE 100
#define FORBIDDEN_BYTE 200

/* Bits of file_locks.held and of what file_lock_bits() returns. */
#define USES(p) (1u << (p))
#define FORBIDS(p) (1u << (PERMISSION_COUNT + (p)))

#define RETRY_NS 50000000 /* between two tries while waiting */

unsigned file_lock_bits(unsigned flags)
{
    if (flags & BLK_FORCE_SHARE)
        return USES(READ);
    unsigned bits = USES(READ) | FORBIDS(WRITE) | FORBIDS(RESIZE);
    if (flags & BLK_WRITABLE)
        bits |= USES(WRITE) | USES(RESIZE);
    return bits;
}

/* fcntl(2) for one byte: 0 or -errno. */
static int lock_byte(int fd, int command, short type, off_t byte, struct flock *lock)
{
    int ret;
    do {
        *lock = (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
        ret = blk_sys->fcntl_lock(fd, command, lock);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

static off_t byte_of(unsigned bit)
{
    return bit < PERMISSION_COUNT ? USED_BYTE + (off_t)bit
                                  : FORBIDDEN_BYTE + (off_t)(bit - PERMISSION_COUNT);
}

static int set_bytes(int fd, unsigned bits, short type)
{
    struct flock lock;
    int first = 0;
    for (unsigned bit = 0; bit < 2 * PERMISSION_COUNT; bit++) {
        int ret = bits & 1u << bit ? lock_byte(fd, F_OFD_SETLK, type, byte_of(bit), &lock) : 0;
        if (ret < 0 && !first)
            first = ret;
    }
    return first;
}

static int conflict(int fd, enum permission p, bool forbids, off_t byte, bool writing,
                    const char *name, struct blk_error *err)
{
    if (!err) /* there will be another try: save the search */
        return -EAGAIN;
    char holder[256];
    file_describe_holder(fd, byte, holder, sizeof(holder));
    char why[512];
    snprintf(why, sizeof(why), "Failed to get %s\"%s\" lock: %s %s %s",
             forbids && !writing ? "shared " : "", permission_names[p], holder,
             forbids ? "has it open and may" : "does not let others",
             p == READ ? "read it" : p == RESIZE ? "resize it" : "write to it");
    return blk_fail_why(err, EAGAIN, why, "locking '%s'", name);
}

/* Whether anybody else stands against `wanted`. */
static int check_others(int fd, unsigned wanted, const char *name, struct blk_error *err)
{
    bool writing = wanted & USES(WRITE);

    for (unsigned bit = 0; bit < 2 * PERMISSION_COUNT; bit++) {
        if (!(wanted & 1u << bit))
            continue;
        struct flock lock;
        unsigned opposite = (bit + PERMISSION_COUNT) % (2 * PERMISSION_COUNT);
        off_t byte = byte_of(opposite);
        int ret = lock_byte(fd, F_OFD_GETLK, F_WRLCK, byte, &lock);
        if (ret < 0)
            return blk_fail(err, -ret, "asking for locks on '%s'", name);
        if (lock.l_type != F_UNLCK)
            return conflict(fd, bit % PERMISSION_COUNT, bit >= PERMISSION_COUNT, byte, writing,
                            name, err);
    }
    return 0;
}

/* The file system or kernel has no such locks. */
static bool no_such_locks(int ret)
{
    return ret == -EINVAL || ret == -ENOLCK || ret == -ENOSYS || ret == -EOPNOTSUPP;
}

/* One try. On failure nothing of it remains. */
static int try_once(int fd, unsigned wanted, unsigned missing, const char *name,
                    struct blk_error *err)
{
    int ret = set_bytes(fd, missing, F_RDLCK);
    if (ret == -EAGAIN || ret == -EACCES)
        ret = blk_fail_why(err, EAGAIN,
                           "Failed to get \"write\" lock: someone holds it exclusively",
                           "locking '%s'", name);
    else if (ret < 0)
        ret = blk_fail(err, -ret, "locking '%s'", name);
    else
        ret = check_others(fd, wanted, name, err);
    if (ret < 0)
        set_bytes(fd, missing, F_UNLCK);
    return ret;
}

static double seconds_now(void)
{
    return (double)blk_now_ns() / 1e9;
}

/*
 * Sleeps between two tries, each time for a different while: two that wait for each other get out
 * of step.
 */
static void pause_before_retry(void)
{
    struct timespec pause = { .tv_nsec = RETRY_NS + (long)(blk_now_ns() % RETRY_NS) };
    nanosleep(&pause, NULL);
}

int file_locks_take(struct file_locks *locks, int fd, unsigned wanted,
                    const struct file_lock_policy *policy, const char *name, struct blk_error *err)
{
    if (policy->mode == FILE_LOCKING_OFF)
        return 0;
    if (locks->fd >= 0)
        fd = locks->fd;

    unsigned missing = wanted & ~locks->held;
    double end = seconds_now() + (double)policy->wait_seconds;
    int ret;
    for (;;) {
        bool last = !policy->wait_seconds || seconds_now() >= end;
        ret = try_once(fd, wanted, missing, name, last ? err : NULL);
        if (ret != -EAGAIN || last)
            break;
        if (blk_cancelled())
            return blk_fail(err, ECANCELED, "waiting for the lock on '%s'", name);
        pause_before_retry();
    }

    if (no_such_locks(ret) && policy->mode == FILE_LOCKING_AUTO) {
        blk_error_clear(err);
        return 0;
    }
    if (ret < 0)
        return blk_fail_if_unset(err, -ret, "locking '%s'", name);
    locks->fd = fd;
    locks->held |= wanted;
    return 0;
}

void file_locks_keep(struct file_locks *locks, unsigned keep)
{
    if (locks->fd < 0)
        return;
    /* Giving back a lock cannot fail on a descriptor that holds it. */
    set_bytes(locks->fd, locks->held & ~keep, F_UNLCK);
    locks->held &= keep;
}
