#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Judges the dirty bitmaps of a qcow2 image that a crash or a fault left.

usage: check_bitmaps.py --image NAME --before IMAGE --after IMAGE [options] FOLDER

IMAGE before and after are the same image before the command and after a run to its end. Bitmaps are read here
from the file, by no program under test. Of each bitmap of the image in FOLDER must hold:

- it is there if it is in both others, and not if it is in neither;
- it is in use; or else it is usable: no granule is dirty that is clean in both others and whose data did not
  change, none is clean that is dirty in both, and, if it was enabled before, none is clean whose data differs
  from what it was before;
- after an end with status 0 (FAULT_STATUS, STATE_FINAL) it is what it is in "after".

Also, `qemu-img check` must not call the image corrupt.
"""

import argparse
import os
import struct
import subprocess
import sys
import tempfile

IN_USE, AUTO = 1, 2
EXTENSION = 0x23852875
OFFSET = 0x00FFFFFFFFFFFE00


class Bitmap:
    def __init__(self, flags, granularity_bits, dirty):
        self.flags = flags
        self.bits = granularity_bits
        self.dirty = dirty

    def __eq__(self, other):
        return (self.flags, self.bits, self.dirty) == (other.flags, other.bits, other.dirty)


class Image:
    """Size and bitmaps of a qcow2 image."""

    def __init__(self, path):
        with open(path, "rb") as self.file:
            head = self.read(0, 104)
            self.cluster = 1 << struct.unpack_from(">I", head, 20)[0]
            self.size, = struct.unpack_from(">Q", head, 24)
            version, = struct.unpack_from(">I", head, 4)
            self.bitmaps = {}
            if version == 3 and struct.unpack_from(">Q", head, 88)[0] & 1:
                self.read_directory(*self.find_extension(struct.unpack_from(">I", head, 100)[0]))

    def read(self, offset, length):
        self.file.seek(offset)
        data = self.file.read(length)
        return data + bytes(length - len(data))

    def find_extension(self, at):
        while True:
            kind, length = struct.unpack(">II", self.read(at, 8))
            if kind == EXTENSION:
                count, _, size, offset = struct.unpack(">IIQQ", self.read(at + 8, 24))
                return count, size, offset
            if kind == 0:
                return 0, 0, 0
            at += 8 + (length + 7) // 8 * 8

    def read_directory(self, count, length, offset):
        data, at = self.read(offset, length), 0
        for _ in range(count):
            table, entries, flags, _, bits, name, extra = struct.unpack_from(">QIIBBHI", data, at)
            start = at + 24 + extra
            self.bitmaps[data[start:start + name].decode()] = Bitmap(flags, bits, self.read_bits(table, entries, bits))
            at += (24 + extra + name + 7) // 8 * 8

    def read_bits(self, table, entries, bits):
        granules = (self.size + (1 << bits) - 1) >> bits
        dirty = set()
        for index, (entry,) in enumerate(struct.iter_unpack(">Q", self.read(table, entries * 8))):
            first = index * self.cluster * 8
            offset = entry & OFFSET
            if not offset:
                if entry & 1:
                    dirty.update(range(first, min(first + self.cluster * 8, granules)))
                continue
            for at, byte in enumerate(self.read(offset, self.cluster)):
                if byte:
                    dirty.update(bit for bit in range(first + at * 8, first + at * 8 + 8)
                                 if byte >> (bit & 7) & 1 and bit < granules)
        return dirty


def content(folder, name):
    """The guest's view as a raw file; the caller removes it."""
    handle, raw = tempfile.mkstemp(dir=folder)
    os.close(handle)
    done = subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", name, raw], cwd=folder,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        os.unlink(raw)
        raise OSError(f"content of {name}: {done.stdout.decode(errors='replace')}")
    return raw


def changed_sectors(old_raw, new_raw):
    """Sectors that both have and that differ."""
    changed, sector = [], 0
    with open(old_raw, "rb") as old, open(new_raw, "rb") as new:
        while True:
            a, b = old.read(1 << 20), new.read(1 << 20)
            length = min(len(a), len(b))
            if not length:
                return changed
            if a != b:
                changed += [sector + at // 512 for at in range(0, length, 512) if a[at:at + 512] != b[at:at + 512]]
            sector += 1 << 11


def judge(options, environment):
    before, after = Image(options.before), Image(options.after)
    now = Image(os.path.join(options.folder, options.image))
    done = environment.get("STATE_FINAL") == "1" or environment.get("FAULT_STATUS") == "0"
    check = subprocess.run(["qemu-img", "check", "-U", "-f", "qcow2", options.image], cwd=options.folder,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if check.returncode not in (0, 3):
        return f"qemu-img check: {check.stdout.decode(errors='replace')[:300]}"
    changed = []
    if options.old:
        raw = content(options.folder, options.image)
        changed = changed_sectors(options.old, raw)
        os.unlink(raw)
    for name in set(before.bitmaps) | set(after.bitmaps) | set(now.bitmaps):
        problem = judge_bitmap(options, name, before.bitmaps.get(name), after.bitmaps.get(name),
                               now.bitmaps.get(name), changed, done)
        if problem:
            return f"bitmap {name}: {problem}"
    errors = environment.get("FAULT_STDERR")
    if options.names and errors and environment.get("FAULT_STATUS") != "0" and f"'{options.names}'" not in errors:
        return f"not named: {errors}"
    return None


def judge_bitmap(options, name, before, after, now, changed, done):
    if not now:
        return "is gone" if before and after else None
    if not before and not after:
        return "nobody made it"
    if done:
        return None if now == after else "is not what a finished run leaves"
    if now.flags & IN_USE:
        return "is in use" if options.usable and before and not before.flags & IN_USE else None
    if before and before.flags & IN_USE:
        return "was in use, and is no more"
    sectors = 1 << (now.bits - 9)
    touched = {sector // sectors for sector in changed}
    old = before.dirty if before else after.dirty
    new = after.dirty if after else before.dirty
    if now.dirty - old - new - touched:
        return f"dirty without a reason: {sorted(now.dirty - old - new - touched)[:5]}"
    if (old & new) - now.dirty:
        return f"lost {sorted((old & new) - now.dirty)[:5]}"
    if before and before.flags & AUTO and touched - now.dirty:
        return f"valid and misses {sorted(touched - now.dirty)[:5]}"
    return None


def judge_folder(arguments, environment):
    """Returns what is wrong, or None. Arguments and environment as of the command."""
    parser = argparse.ArgumentParser(description="Judges bitmaps after a crash or a fault.")
    parser.add_argument("--image", required=True)
    parser.add_argument("--before", required=True)
    parser.add_argument("--after", required=True)
    parser.add_argument("--old", help="the guest's view before, raw")
    parser.add_argument("--names", metavar="BITMAP", help="what stderr must name after a failure")
    parser.add_argument("--usable", action="store_true", help="no bitmap that was usable may be in use")
    parser.add_argument("folder")
    options = parser.parse_args(arguments)
    if environment.get("FAULT_STATUS") == "0" and environment.get("FAULT_N", "0") != "0":
        return "status 0 although something failed"
    return judge(options, environment)


if __name__ == "__main__":
    sys.exit(judge_folder(sys.argv[1:], os.environ))
