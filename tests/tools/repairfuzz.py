#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Damages the pointers of a qcow2 image so that tables and guest data get in each other's place, and repairs it.

usage: repairfuzz.py [--seed N] [--count N] [--only I] [--keep DIR]

The program is $BLKIMG. The guest data are made of words that look like entries of tables, so that what is taken for a
table leads on into the file. Whatever a repair (-r leaks, -r all) does: each cluster of the disk and of each snapshot
that could be read before has the same content afterwards, no count of what they use becomes too low, and the program does
not crash or hang.

The damage is fixed by the seed and the number of the image. Exit status: 0 all well, 1 not.
"""

import argparse
import collections
import os
import random
import shutil
import subprocess
import sys
import tempfile

import mkimage
from fuzz import BLKIMG, Run

BASES = [
    (["-o", "cluster_size=512"], True, "64k"),
    (["-o", "cluster_size=4k"], True, "512k"),
    (["-o", "cluster_size=4k,compat=0.10"], True, "512k"),
    (["-o", "cluster_size=4k,refcount_bits=1"], False, "512k"),
    (["-o", "cluster_size=4k,refcount_bits=2"], True, "512k"),
    (["-o", "cluster_size=16k,extended_l2=on"], True, "1M"),
]
MAX_CLUSTERS = 4000


def qemu(*arguments):
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)


def words(chance, clusters, bits, length):
    """Data that look like entries of tables."""
    data = bytearray()
    while len(data) < length:
        word = chance.choice([0, 1, 0x1FF, chance.getrandbits(9)])
        word |= chance.randrange(clusters) << bits if chance.random() < 0.8 else 0
        word |= chance.choice([0, mkimage.COPIED, mkimage.COPIED | mkimage.COMPRESSED])
        data += word.to_bytes(8, "big")
    return bytes(data[:length])


def make_base(name, options, snapshots, size, chance):
    qemu("qemu-img", "create", "-q", "-f", "qcow2", *options, name, size)
    with mkimage.Image(name) as image:
        cluster, bits, total = image.cluster, image.field("cluster_bits"), image.field("size")
    source = name + ".source"

    def write(share):
        commands = []
        for at in range(0, total, cluster * 4):
            if chance.random() < share:
                with open(f"{source}.{at}", "wb") as file:
                    file.write(words(chance, total // cluster, bits, cluster * 3))
                commands += ["-c", f"write -s {source}.{at} {at} {cluster * 3}"]
        qemu("qemu-io", "-t", "unsafe", *commands, name)

    write(0.6)
    qemu("qemu-io", "-c", f"write -z {total // 2} {cluster}", name)
    qemu("qemu-io", "-c", f"write -c -P 3 {total - cluster} {cluster}", name)
    if snapshots:
        qemu("qemu-img", "snapshot", "-c", "s", name)
        write(0.3)
    if "compat=0.10" not in options[1]:
        qemu("qemu-img", "bitmap", "--add", "-g", str(max(cluster, 512)), name, "b")
        write(0.1)


def guest(image, l1_offset, entries, uses):
    """The content of each guest cluster: bytes, None where nothing is, or "bad". Counts the uses of data clusters."""
    cluster, width, end = image.cluster, image.l2_entry_bytes, image.end
    bits = image.field("cluster_bits")
    per_table = cluster // width
    content = {}
    tables = 0
    for i in range(min(entries, MAX_CLUSTERS)):
        table = image.get(l1_offset + 8 * i, 8) & mkimage.OFFSET
        if not table:
            continue
        tables += 1
        if tables * per_table > MAX_CLUSTERS:
            break
        if table % cluster or table >= end:
            content[i] = "bad"
            continue
        data = image.read(table, cluster)
        for j in range(per_table):
            entry = int.from_bytes(data[j * width:j * width + 8], "big")
            where = entry & mkimage.OFFSET
            if entry & mkimage.COMPRESSED:
                x = 62 - (bits - 8)
                at = entry & ((1 << x) - 1)
                sectors = (entry & (mkimage.COMPRESSED - 1)) >> x
                length = (sectors + 1) * 512 - at % 512
                value = image.read(at, length) if cluster <= at and at + length <= image.file_bytes else "bad"
            elif entry & 1 and width == 8:
                value = "zero"
            elif not where:
                value = None
            elif where % cluster or where >= end:
                value = "bad"
            else:
                value = image.read(where, cluster)
                uses[where // cluster] += 1
            content[i, j] = value
    return content


def contents(name, snapshots, uses):
    with mkimage.Image(name, "rb") as image:
        all_of = {"disk": guest(image, image.field("l1_offset"), image.field("l1_entries"), uses)}
        for i in range(min(image.field("snapshot_count"), 3) if snapshots else 0):
            at = image.snapshot_at(i)
            if at < image.end and image.get(at, 8) < image.end:
                all_of[image.get(at, 8)] = guest(image, image.get(at, 8), image.get(at + 8, 4), uses)
        return all_of


def count_of(image, index):
    try:
        return image.target_get(f"refcount[{index}]")
    except (KeyError, OSError, ValueError):
        return 0


def lowered(old, new, uses):
    """What is counted less than before, and less than it is used."""
    with mkimage.Image(old, "rb") as before, mkimage.Image(new, "rb") as after:
        # What held the counts themselves may be freed, whatever a wild table says of it.
        table = before.field("reftable_offset")
        own = {table // before.cluster + i for i in range(before.field("reftable_clusters"))}
        own |= {before.get(table + 8 * i, 8) // before.cluster for i in range(before.cluster // 8)}
        for cluster, times in uses.items():
            if cluster in own:
                continue
            was, count = count_of(before, cluster), count_of(after, cluster)
            if count < min(was, times):
                return f"cluster {cluster}, used {times} times, had the count {was} and has {count}"
    return None


def changed(before, after):
    for view, clusters in before.items():
        for where, value in clusters.items():
            if value == "bad":
                continue
            if view not in after:
                return f"{view} is gone"
            if after[view].get(where, None) != value:
                return f"{view}, {where}: {describe(value)} has become {describe(after[view].get(where))}"
    return None


def describe(value):
    return value[:32].hex() if isinstance(value, bytes) else str(value)


POINTERS = [
    "l1_offset", "l1[0]", "l1[1]", "l2[0]", "l2[1]", "l2[3]", "reftable_offset", "reftable[0]", "reftable[1]",
    "snapshots_offset", "snapshot[0].l1_offset", "bitmaps.directory_offset", "bitmap[0].table_offset",
    "bitmap_table[0][0]",
]
LENGTHS = [
    "l1_entries", "reftable_clusters", "snapshot_count", "snapshot[0].l1_entries", "snapshot[0].extra_bytes",
    "bitmaps.directory_bytes", "bitmaps.count", "bitmap[0].table_entries",
]


def damage(name, chance):
    """Returns the changes."""
    done = []
    with mkimage.Image(name) as image:
        clusters = image.end // image.cluster
        for _ in range(chance.choice([1, 1, 2, 3])):
            kind = chance.random()
            if kind < 0.45:
                target = chance.choice(POINTERS)
                value = f"{chance.randrange(1, clusters)}*cluster"
                if target.endswith("]"):
                    value += chance.choice(["", "|COPIED", "|COPIED|511"])
            elif kind < 0.8:
                target = chance.choice(LENGTHS)
                value = f"old+{chance.choice([1, 2, 8, 64, 200, 512, 1500])}"
            else:
                target = f"refcount[{chance.randrange(clusters)}]"
                value = str(chance.choice([0, 1, 2]))
            if target.startswith("snapshot[") and not image.field("snapshots_offset"):
                continue
            try:
                image.target_set(target, value)
                if image.field("magic") != mkimage.MAGIC:  # a wild pointer led to the header
                    image.target_set("magic", str(mkimage.MAGIC))
                done.append(f"{target}={value}")
            except (KeyError, OverflowError, ValueError, OSError):
                pass
    return done


def try_image(base, folder, chance):
    name = os.path.join(folder, "a")
    shutil.copy(base, name)
    done = damage(name, chance)
    problems = []
    # A snapshot counts only if the table can be read.
    snapshots = Run([BLKIMG, "snapshot", "-l", name]).status == 0
    uses = collections.Counter()
    before = contents(name, snapshots, uses)
    for way in ("leaks", "all"):
        used = os.path.join(folder, way)
        shutil.copy(name, used)
        run = Run([BLKIMG, "check", "-q", "-r", way, used])
        problem = run.problem({0, 1, 2, 3, 5}, lines=False)
        if not problem:
            problem = changed(before, contents(used, snapshots, collections.Counter())) or (
                "reftable" not in " ".join(done) and lowered(name, used, uses))
        if problem:
            problems.append(f"-r {way} (status {run.status}): {problem}\n    {' '.join(done)}")
    return problems


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep")
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("T")) as folder:
        bases = []
        for i, (create, snapshots, size) in enumerate(BASES):
            bases.append(os.path.join(folder, f"base{i}"))
            make_base(bases[-1], create, snapshots, size, random.Random(f"{options.seed}.base.{i}"))
        for i in range(options.count):
            if options.only not in (None, i):
                continue
            chance = random.Random(f"{options.seed}.{i}")
            base = bases[i % len(bases)]
            problems = try_image(base, folder, chance)
            for problem in problems:
                print(f"image {i} ({BASES[i % len(BASES)][0][1]}): {problem}")
            bad += bool(problems)
            if options.keep and (problems or options.only is not None):
                os.makedirs(options.keep, exist_ok=True)
                for kept in ("a", "leaks", "all"):
                    shutil.copy(os.path.join(folder, kept), os.path.join(options.keep, f"{i}.{kept}"))
    print(f"repairs: {options.count} images, {bad} bad (seed {options.seed})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
