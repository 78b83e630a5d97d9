/* SPDX-License-Identifier: MIT */
/*
 * What a file that replaces another inherits from it: owner, mode, access control lists, extended
 * attributes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockcore/base/sys.h"
#include "drivers/file/file.h"

#define MAX_ATTRIBUTE_BYTES 65536 /* the kernel's limit of a value and of the list of names */

/* Tied to the old content: the kernel makes new ones. */
static bool is_about_content(const char *name)
{
    return strcmp(name, "security.ima") == 0 || strcmp(name, "security.evm") == 0 ||
           strcmp(name, "security.capability") == 0;
}

static int copy_attribute(int old_fd, int new_fd, const char *name, char *value, char *present)
{
    ssize_t bytes = blk_sys->fgetxattr(old_fd, name, value, MAX_ATTRIBUTE_BYTES);
    if (bytes < 0)
        return errno == ENODATA ? 0 : -errno;
    /* What it has by itself (a security label) may be nothing that we are allowed to set. */
    ssize_t has = blk_sys->fgetxattr(new_fd, name, present, MAX_ATTRIBUTE_BYTES);
    if (has == bytes && memcmp(value, present, (size_t)bytes) == 0)
        return 0;
    return blk_sys->fsetxattr(new_fd, name, value, (size_t)bytes, 0) < 0 ? -errno : 0;
}

static int copy_listed(int old_fd, int new_fd, char *names, char *value, char *present)
{
    ssize_t bytes = blk_sys->flistxattr(old_fd, names, MAX_ATTRIBUTE_BYTES);
    if (bytes < 0)
        return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -errno;
    for (const char *name = names; name < names + bytes; name += strlen(name) + 1) {
        int ret = is_about_content(name) ? 0 : copy_attribute(old_fd, new_fd, name, value, present);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Access control lists are among them (system.posix_acl_access). */
static int copy_extended_attributes(int old_fd, int new_fd)
{
    char *room = malloc(3 * MAX_ATTRIBUTE_BYTES);
    if (!room)
        return -ENOMEM;
    int ret = copy_listed(old_fd, new_fd, room, room + MAX_ATTRIBUTE_BYTES,
                          room + 2 * MAX_ATTRIBUTE_BYTES);
    free(room);
    return ret;
}

int file_copy_attributes(int old_fd, int new_fd)
{
    struct stat old, now;
    if (blk_sys->fstat(old_fd, &old) < 0 || blk_sys->fstat(new_fd, &now) < 0)
        return -errno;
    if ((old.st_uid != now.st_uid || old.st_gid != now.st_gid) &&
        blk_sys->fchown(new_fd, old.st_uid, old.st_gid) < 0)
        return -errno;
    int ret = copy_extended_attributes(old_fd, new_fd);
    /* Last: a change of owner takes bits of the mode away. */
    if (ret == 0 && blk_sys->fchmod(new_fd, old.st_mode & 07777) < 0)
        ret = -errno;
    return ret;
}
