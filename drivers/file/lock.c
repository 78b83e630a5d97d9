/* SPDX-License-Identifier: MIT */
/*
 * QEMU's image locks: one byte of the file a permission, locked by the open file description.
 *
 * Byte 100+p held means "I use p", byte 200+p held means "I do not let others use p". All are held
 * shared, so they never exclude each other by themselves: an opener takes its own first, then asks
 * whether an exclusive lock on each opposite byte would be refused. Two that come at the same time
 * may both give up; never do both go on.
 *
 * Two that read an image and wait to write it would wait for each other to the end. So whoever
 * waits like that holds UPGRADE_BYTE, which only this program knows. A second one gives up, and
 * others that may wait for the image do not open it before the first is through.
 */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "blockcore/base/cancel.h"
#include "blockcore/base/clock.h"
#include "blockcore/base/error.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
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
#define UPGRADE_BYTE 300

/* Bits of file_locks.held and of what file_lock_bits() returns. */
#define USES(p) (1u << (p))
#define FORBIDS(p) (1u << (PERMISSION_COUNT + (p)))

/* Between two tries while waiting, at first; doubled so often. */
#define RETRY_NS 1000000L
#define RETRY_DOUBLINGS 5

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

/* Where those who are in the way of `bit` have their lock. */
static off_t opposite_byte(unsigned bit)
{
    return byte_of((bit + PERMISSION_COUNT) % (2 * PERMISSION_COUNT));
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

/* `what` others do, "another process" when it is not known who. The line ends as QEMU's does. */
static int lock_failed(const char *name, bool writing, bool shared, enum permission p,
                       const char *what, struct blk_error *err)
{
    BLK_AUTOFREE char *why =
        blk_xasprintf("Failed to get %s\"%s\" lock: %s. Is another process using the image [%s]?",
                      shared ? "shared " : "", permission_names[p], what, name);
    blk_fail_why(err, EAGAIN, why, "Could not open '%s'", name);
    err->busy = writing ? BLK_BUSY_FOR_WRITING : BLK_BUSY_FOR_READING;
    return -EAGAIN;
}

static int lock_conflict(int fd, unsigned bit, bool writing, const char *name,
                         struct blk_error *err)
{
    if (!err) /* there will be another try: save the search */
        return -EAGAIN;
    enum permission p = bit % PERMISSION_COUNT;
    bool forbids = bit >= PERMISSION_COUNT;
    char holder[256];
    file_describe_holder(fd, opposite_byte(bit), holder, sizeof(holder));
    BLK_AUTOFREE char *what =
        blk_xasprintf("%s %s %s", holder, forbids ? "has it open and may" : "does not let others",
                      p == READ     ? "read it"
                      : p == RESIZE ? "resize it"
                                    : "write to it");
    return lock_failed(name, writing, forbids && !writing, p, what, err);
}

/* Whether anybody else stands against `wanted`. */
static int check_others(int fd, unsigned wanted, const char *name, struct blk_error *err)
{
    bool writing = wanted & USES(WRITE);

    for (unsigned bit = 0; bit < 2 * PERMISSION_COUNT; bit++) {
        if (!(wanted & 1u << bit))
            continue;
        struct flock lock;
        int ret = lock_byte(fd, F_OFD_GETLK, F_WRLCK, opposite_byte(bit), &lock);
        if (ret < 0)
            return blk_fail(err, -ret, "asking for locks on '%s'", name);
        if (lock.l_type != F_UNLCK)
            return lock_conflict(fd, bit, writing, name, err);
    }
    return 0;
}

/* The file system or kernel has no such locks. */
static bool no_such_locks(int ret)
{
    return ret == -EINVAL || ret == -ENOLCK || ret == -ENOSYS || ret == -EOPNOTSUPP;
}

/*
 * One try. On failure nothing of it remains. It asks before it takes: whoever waits is not in the
 * way of others by trying, nor of those who wait as well.
 */
static int try_once(int fd, unsigned wanted, unsigned missing, const char *name,
                    struct blk_error *err)
{
    int ret = check_others(fd, wanted, name, err);
    if (ret < 0)
        return ret;
    ret = set_bytes(fd, missing, F_RDLCK);
    if ((ret == -EAGAIN || ret == -EACCES) && err)
        ret = lock_failed(name, wanted & USES(WRITE), false, WRITE,
                          "another process holds it exclusively", err);
    else if (ret == -EACCES)
        ret = -EAGAIN;
    else if (ret < 0)
        ret = blk_fail(err, -ret, "locking '%s'", name);
    else
        ret = check_others(fd, wanted, name, err);
    if (ret < 0)
        set_bytes(fd, missing, F_UNLCK);
    return ret;
}

/* ---- from reading to writing ---- */

static bool another_upgrades(int fd)
{
    struct flock lock;
    return lock_byte(fd, F_OFD_GETLK, F_WRLCK, UPGRADE_BYTE, &lock) == 0 && lock.l_type != F_UNLCK;
}

static void end_upgrade(int fd)
{
    struct flock lock;
    lock_byte(fd, F_OFD_SETLK, F_UNLCK, UPGRADE_BYTE, &lock);
}

/* 0, or -EDEADLK: another process waits until we let it write. */
static int begin_upgrade(int fd, const char *name, struct blk_error *err)
{
    struct flock lock;
    bool other = another_upgrades(fd);
    if (!other) {
        lock_byte(fd, F_OFD_SETLK, F_RDLCK, UPGRADE_BYTE, &lock);
        other = another_upgrades(fd);
    }
    if (!other)
        return 0;
    end_upgrade(fd);
    if (!err)
        return -EDEADLK;
    char holder[256];
    file_describe_holder(fd, UPGRADE_BYTE, holder, sizeof(holder));
    BLK_AUTOFREE char *what = blk_xasprintf("%s waits to write to it as well", holder);
    lock_failed(name, true, false, WRITE, what, err);
    err->code = EDEADLK;
    return -EDEADLK;
}

/* ---- waiting ---- */

/*
 * Sleeps between two tries, not for long at first, and each time for a different while: two that
 * wait for each other get out of step.
 */
static void pause_before_retry(unsigned tries)
{
    long unit = tries < RETRY_DOUBLINGS ? RETRY_NS << tries : RETRY_NS << RETRY_DOUBLINGS;
    struct timespec pause = { .tv_nsec = unit + (long)(blk_now_ns() % (uint64_t)unit) };
    nanosleep(&pause, NULL);
}

/* Tries until nobody is in the way or the time is up. */
static int try_for(uint64_t seconds, int fd, unsigned wanted, unsigned missing, const char *name,
                   struct blk_error *err)
{
    uint64_t start = blk_now_ns();
    for (unsigned tries = 0;; tries++) {
        bool last = (blk_now_ns() - start) / 1000000000 >= seconds;
        bool yields = !last && wanted == missing && wanted & FORBIDS(WRITE);
        int ret = yields && another_upgrades(fd)
                      ? -EAGAIN
                      : try_once(fd, wanted, missing, name, last ? err : NULL);
        if (ret == -EAGAIN && last && err)
            err->busy_seconds = (unsigned long)seconds;
        if (ret != -EAGAIN || last)
            return ret;
        if (blk_cancelled())
            return blk_fail(err, ECANCELED, "waiting for the lock on '%s'", name);
        pause_before_retry(tries);
    }
}

int file_locks_take(struct file_locks *locks, int fd, unsigned wanted,
                    const struct file_lock_policy *policy, const char *name, struct blk_error *err)
{
    if (policy->mode == FILE_LOCKING_OFF)
        return 0;
    if (locks->fd >= 0)
        fd = locks->fd;

    unsigned missing = wanted & ~locks->held;
    bool upgrades = policy->wait_seconds && missing && missing != wanted;
    int ret = upgrades ? begin_upgrade(fd, name, err) : 0;
    if (ret == 0)
        ret = try_for(policy->wait_seconds, fd, wanted, missing, name, err);
    if (upgrades)
        end_upgrade(fd);
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
