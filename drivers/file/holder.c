/* SPDX-License-Identifier: MIT */
/*
 * Locks of open file descriptions have no process number: the kernel reports -1. But
 * /proc/PID/fdinfo/FD lists the locks of each descriptor, so the holder is found by looking
 * through all that we may see. This reads no image, and runs only when an open has failed.
 */
#include "drivers/file/holder.h"

#include <ctype.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether "lock:" lines of the fdinfo file at `path` cover `byte`. */
static bool holds_byte(const char *path, off_t byte)
{
    FILE *info = fopen(path, "re");
    if (!info)
        return false;

    char line[256];
    bool found = false;
    while (!found && fgets(line, sizeof(line), info)) {
        long long first, last;
        char end[32];
        /* lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 100 101 (or EOF) */
        if (sscanf(line, "lock: %*s OFDLCK %*s %*s %*s %*s %lld %31s", &first, end) != 2)
            continue;
        last = isdigit((unsigned char)end[0]) ? atoll(end) : byte;
        found = first <= byte && byte <= last;
    }
    fclose(info);
    return found;
}

/* Whether process `pid` holds the byte of `file` by a descriptor other than our `own_fd`. */
static bool process_holds(long pid, const struct stat *file, off_t byte, int own_fd)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%ld/fd", pid);
    DIR *directory = opendir(path);
    if (!directory)
        return false;

    bool found = false;
    struct dirent *entry;
    while (!found && (entry = readdir(directory))) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        struct stat st;
        int fd = atoi(entry->d_name);
        if (pid == getpid() && fd == own_fd)
            continue;
        if (fstatat(dirfd(directory), entry->d_name, &st, 0) < 0 || st.st_ino != file->st_ino ||
            st.st_dev != file->st_dev)
            continue;
        snprintf(path, sizeof(path), "/proc/%ld/fdinfo/%d", pid, fd);
        found = holds_byte(path, byte);
    }
    closedir(directory);
    return found;
}

/* The command's name, without what could garble a terminal. */
static void read_command(long pid, char *out, size_t out_bytes)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%ld/comm", pid);
    snprintf(out, out_bytes, "?");
    FILE *comm = fopen(path, "re");
    if (!comm)
        return;
    if (fgets(out, (int)out_bytes, comm))
        out[strcspn(out, "\n")] = '\0';
    fclose(comm);
    for (char *c = out; *c; c++)
        if (!isprint((unsigned char)*c))
            *c = '?';
}

void file_describe_holder(int fd, off_t byte, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "another process");
    struct stat file;
    DIR *proc = opendir("/proc");
    if (!proc || fstat(fd, &file) < 0) {
        if (proc)
            closedir(proc);
        return;
    }

    struct dirent *entry;
    while ((entry = readdir(proc))) {
        long pid = strtol(entry->d_name, NULL, 10);
        if (pid <= 0 || !process_holds(pid, &file, byte, fd))
            continue;
        if (pid == getpid()) {
            snprintf(out, out_bytes, "this command itself");
        } else {
            char command[64];
            read_command(pid, command, sizeof(command));
            snprintf(out, out_bytes, "process %ld (%s)", pid, command);
        }
        break;
    }
    closedir(proc);
}
