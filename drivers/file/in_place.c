/* SPDX-License-Identifier: MIT */
/*
 * Files that somebody holds by more than their name: a target has to keep its inode there, and is
 * overwritten in place. Whoever gave us /dev/fd/N reads his descriptor afterwards, not the name; a
 * loop device shows the file that it was set up with.
 *
 * What else may be held open nobody can know: --in-place is for that.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>

#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "drivers/file/file.h"

/* The first line of a file, without its newline. */
static bool read_first_line(const char *path, char *line, size_t bytes)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool got = fgets(line, (int)bytes, file);
    fclose(file); /* of /sys, only read */
    if (got)
        line[strcspn(line, "\n")] = '\0';
    return got;
}

/* What the device itself says, to those who may ask. */
static bool shows_by_device(const char *device, const struct stat *st)
{
    BLK_AUTOFREE char *path = blk_xasprintf("/dev/%s", device);
    struct loop_info64 info;
    int fd = blk_sys->openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0)
        return false;
    bool shows = blk_sys->ioctl(fd, LOOP_GET_STATUS64, &info) == 0 &&
                 info.lo_device == st->st_dev && info.lo_inode == st->st_ino;
    file_close(&fd);
    return shows;
}

/* The kernel's name may be one of another mount namespace: then the device is asked. */
static bool shows(const char *device, const struct stat *st)
{
    BLK_AUTOFREE char *path = blk_xasprintf("/sys/block/%s/loop/backing_file", device);
    struct stat behind;
    char name[4096];

    if (!read_first_line(path, name, sizeof(name)))
        return false;
    if (blk_sys->fstatat(AT_FDCWD, name, &behind, 0) < 0)
        return shows_by_device(device, st);
    return behind.st_dev == st->st_dev && behind.st_ino == st->st_ino;
}

enum found { NO_LOOP_DEVICES, NONE_SHOWS, ONE_SHOWS };

/* Asks about each loop device that the directory lists. */
static enum found look_for_device(const char *directory, const struct stat *st,
                                  bool (*is_shown)(const char *device, const struct stat *st))
{
    DIR *devices = opendir(directory);
    enum found found = NO_LOOP_DEVICES;

    while (devices && found != ONE_SHOWS) {
        const struct dirent *entry = readdir(devices);
        if (!entry)
            break;
        if (strncmp(entry->d_name, "loop", 4) == 0 && isdigit((unsigned char)entry->d_name[4]))
            found = is_shown(entry->d_name, st) ? ONE_SHOWS : NONE_SHOWS;
    }
    if (devices)
        closedir(devices);
    return found;
}

/* A container may have devices and no /sys. */
bool file_is_behind_loop_device(const struct stat *st)
{
    enum found found = look_for_device("/sys/block", st, shows);
    if (found == NO_LOOP_DEVICES)
        found = look_for_device("/dev", st, shows_by_device);
    return found == ONE_SHOWS;
}
