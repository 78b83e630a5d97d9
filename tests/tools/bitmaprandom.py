#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random sequences on qcow2 images with dirty bitmaps, checked against a reference kept here.

    bitmaprandom.py [--sequences N] [--seed S] [--only INDEX] [--jobs N] BLKIMG

Each sequence makes an image of random shape (size, cluster size, backing file) with a few bitmaps of granularity 512
to 2M, then changes it in some sessions, each with one program: guest writes of all kinds by "blkimg io" or
qemu-io, changes of bitmaps by "blkimg bitmap" or "qemu-img bitmap", resizes, snapshots applied. The
reference is a set of granules for each bitmap. After every session blkimg must report exactly these; at the end
qemu-nbd must too, and qemu-img must find the image sound. The last line is "N sequences (seed S)".

Everything about sequence I follows from "S.I"; --only I runs it alone.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

KIB, MIB = 1 << 10, 1 << 20


class Failure(Exception):
    pass


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                          stdin=subprocess.DEVNULL, timeout=100)
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode != 0 or err.strip() and "blkimg" in command[0]:
        raise Failure(f"{' '.join(command)[:2000]}\nstatus {done.returncode}\n{out[-1000:]}{err[-1000:]}")
    return out


class Bitmap:
    """The reference: the numbers of the dirty granules."""

    def __init__(self, granularity, enabled=True):
        self.granularity = granularity
        self.enabled = enabled
        self.dirty = set()

    def mark(self, offset, length):
        if length:
            self.dirty.update(range(offset // self.granularity, (offset + length - 1) // self.granularity + 1))

    def extents(self, size):
        """The dirty runs in bytes, the last cut at the end of the disk."""
        runs = []
        for granule in sorted(self.dirty):
            start, end = granule * self.granularity, min((granule + 1) * self.granularity, size)
            if runs and runs[-1][1] == start:
                runs[-1][1] = end
            else:
                runs.append([start, end])
        return [(start, end - start) for start, end in runs]

    def cut(self, size):
        granules = -(-size // self.granularity)
        self.dirty = {granule for granule in self.dirty if granule < granules}

    def merge(self, other, size):
        for start, length in other.extents(size):
            self.mark(start, length)


class Sequence:
    def __init__(self, blkimg, seed, folder):
        self.rng = random.Random(seed)
        self.blkimg = blkimg
        self.folder = folder
        self.bitmaps = {}
        self.log = []
        self.size = 0
        self.cluster = 1 << self.rng.choice((9, 10, 12, 14, 16, 16, 16, 18, 21))

    def run(self, *command):
        self.log.append(" ".join(command))
        return run(self.folder, *command)

    def pick_size(self):
        most = self.rng.choice((100 * KIB, MIB, 8 * MIB, 40 * MIB))
        return self.rng.randrange(1, max(most, 2 * self.cluster) // 512) * 512

    def create(self):
        self.size = self.pick_size()
        options = ["-o", f"cluster_size={self.cluster}"]
        if self.cluster >= 16 * KIB and self.rng.random() < 0.2:
            options[-1] += ",extended_l2=on"
        if self.rng.random() < 0.3:
            self.run("qemu-img", "create", "-q", "-f", "raw", "base", str(self.size // 512 * 512))
            options += ["-b", "base", "-F", "raw"]
        creator = self.rng.choice((("qemu-img",), (self.blkimg,)))
        self.run(*creator, "create", "-q", "-f", "qcow2", *options, "image", str(self.size))
        for number in range(self.rng.randrange(1, 4)):
            self.add(f"b{number}")

    def bitmap_tool(self):
        return self.rng.choice(("qemu-img", self.blkimg))

    def add(self, name):
        granularity = 512 << self.rng.randrange(13)
        enabled = self.rng.random() < 0.8
        extra = [] if enabled else ["--disable"]
        self.run(self.bitmap_tool(), "bitmap", "--add", *extra, "-g", str(granularity), "image", name)
        self.bitmaps[name] = Bitmap(granularity, enabled)

    # ---- what a session may be ----

    def pick_range(self):
        rng = self.rng
        length = rng.choice((1, 511, 512, 4096, self.cluster, 3 * self.cluster, 200 * KIB))
        length = min(rng.randrange(1, length + 1), self.size)
        offset = rng.randrange(self.size - length + 1)
        if rng.random() < 0.5:
            unit = rng.choice((512, self.cluster))
            offset -= offset % unit
        return offset, length

    def write(self):
        rng = self.rng
        commands = []
        tool = rng.choice((["qemu-io", "-f", "qcow2"], [self.blkimg, "io", "-f", "qcow2"]))
        for _ in range(rng.randrange(1, 20)):
            offset, length = self.pick_range()
            kind = rng.choice(("write -P 7", "write -P 9", "aio_write -P 3", "write -z", "write -z -u", "discard"))
            if tool[0] == "qemu-io" or rng.random() < 0.5:
                # Requests that QEMU widens, it also marks as widened.
                offset, length = offset // 512 * 512, -(-length // 512) * 512
            commands += ["-c", f"{kind} {offset} {length}"]
            if tool[0] == "qemu-io":
                # With writes in flight beside zeroes and discards, qemu-io 7.2 damages images all by itself.
                commands += ["-c", "aio_flush"]
            for bitmap in self.bitmaps.values():
                if bitmap.enabled:
                    bitmap.mark(offset, length)
        out = self.run(*tool, *commands, "image")
        if "failed" in out or "error" in out:
            raise Failure(out)

    def read_only(self):
        self.run(self.blkimg, "io", "-r", "-c", f"read 0 {self.size}", "image")

    def change_bitmap(self):
        rng = self.rng
        name = rng.choice(list(self.bitmaps))
        bitmap = self.bitmaps[name]
        action = rng.choice(("clear", "enable", "disable", "merge", "add", "remove"))
        if action == "add":
            if len(self.bitmaps) < 6:
                self.add(f"n{len(self.log)}")
            return
        if action == "remove":
            if len(self.bitmaps) > 1:
                self.run(self.bitmap_tool(), "bitmap", "--remove", "image", name)
                del self.bitmaps[name]
            return
        arguments = [f"--{action}"]
        if action == "clear":
            bitmap.dirty.clear()
        elif action == "merge":
            source = rng.choice(list(self.bitmaps))
            if source == name:
                return
            arguments.append(source)
            bitmap.merge(self.bitmaps[source], self.size)
        else:
            bitmap.enabled = action == "enable"
        self.run(self.bitmap_tool(), "bitmap", *arguments, "image", name)

    def resize(self):
        size = self.pick_size()
        if size == self.size:
            return
        shrink = ["--shrink"] if size < self.size else []
        self.run(self.blkimg, "resize", "-q", *shrink, "image", str(size))
        old, self.size = self.size, size
        for bitmap in self.bitmaps.values():
            bitmap.cut(size)
            if bitmap.enabled and size > old:
                bitmap.mark(old, size - old)

    def snapshot(self):
        """Whatever is written after a snapshot is what changes when it is applied."""
        self.run(self.blkimg, "snapshot", "-c", "s", "image")
        written = []
        commands = []
        for _ in range(self.rng.randrange(5)):
            offset, length = self.pick_range()
            written.append((offset, length))
            commands += ["-c", f"write -P 5 {offset} {length}"]
        if commands:
            self.run(self.blkimg, "io", *commands, "image")
        self.run(self.blkimg, "snapshot", "-a", "s", "image")
        self.run(self.blkimg, "snapshot", "-d", "s", "image")
        for bitmap in self.bitmaps.values():
            if not bitmap.enabled:
                continue
            for offset, length in written:
                start = offset // self.cluster * self.cluster
                end = min(-(-(offset + length) // self.cluster) * self.cluster, self.size)
                bitmap.mark(start, end - start)

    # ---- checks ----

    def check_blkimg(self):
        for name, bitmap in self.bitmaps.items():
            found = json.loads(run(self.folder, self.blkimg, "map", "--bitmap", name, "--output=json", "image"))
            self.compare(name, bitmap, [(one["start"], one["length"]) for one in found], "blkimg map")
        listed = json.loads(run(self.folder, self.blkimg, "bitmap", "--list", "--output=json", "image"))
        for one in listed:
            bitmap = self.bitmaps[one["name"]]
            dirty = sum(length for _, length in bitmap.extents(self.size))
            expected = {"name": one["name"], "granularity": bitmap.granularity, "dirty-bytes": dirty,
                        "flags": ["auto"] if bitmap.enabled else []}
            if one != expected:
                raise Failure(f"bitmap --list: {one}, expected {expected}")
        if len(listed) != len(self.bitmaps):
            raise Failure(f"bitmap --list has {len(listed)} bitmaps, expected {len(self.bitmaps)}")

    def check_qemu(self):
        for name, bitmap in self.bitmaps.items():
            if not self.size:
                continue
            found = json.loads(run(self.folder, "nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", "--", "[",
                                   "qemu-nbd", "-r", "-f", "qcow2", "-B", name, "image", "]"))
            runs = []
            for one in found:
                if not one["type"]:
                    continue
                if runs and sum(runs[-1]) == one["offset"]:
                    runs[-1] = (runs[-1][0], runs[-1][1] + one["length"])
                else:
                    runs.append((one["offset"], one["length"]))
            self.compare(name, bitmap, runs, "qemu-nbd")
        run(self.folder, "qemu-img", "check", "-q", "image")
        run(self.folder, self.blkimg, "check", "image")

    def compare(self, name, bitmap, found, reader):
        expected = bitmap.extents(self.size)
        if found != expected:
            raise Failure(f"{reader}: bitmap {name} (granularity {bitmap.granularity}): only there "
                          f"{sorted(set(found) - set(expected))[:5]}, only expected "
                          f"{sorted(set(expected) - set(found))[:5]}")

    def play(self):
        self.create()
        sessions = (self.write, self.write, self.write, self.change_bitmap, self.change_bitmap, self.resize,
                    self.snapshot, self.read_only)
        for _ in range(self.rng.randrange(2, 7)):
            self.rng.choice(sessions)()
            self.check_blkimg()
        self.check_blkimg()
        self.check_qemu()


def play(options, index):
    """One sequence; returns None, or what was wrong."""
    folder = tempfile.mkdtemp(prefix="bitmaprandom.")
    sequence = Sequence(options.blkimg, f"{options.seed}.{index}", folder)
    try:
        sequence.play()
        return None
    except (Failure, subprocess.TimeoutExpired, ValueError) as failure:
        return "\n".join([f"sequence {index}:"] + sequence.log + [str(failure)])
    finally:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description="Random sequences on images with dirty bitmaps.")
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(1 << 32)))
    parser.add_argument("--only", type=int)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("blkimg")
    options = parser.parse_args()
    options.blkimg = os.path.abspath(options.blkimg)
    indexes = [options.only] if options.only is not None else range(options.sequences)
    with ThreadPoolExecutor(options.jobs) as pool:
        problems = [problem for problem in pool.map(lambda index: play(options, index), indexes) if problem]
    print("\n\n".join(problems[:5]))
    print(f"{len(indexes)} sequences, {len(problems)} bad (seed {options.seed})")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
