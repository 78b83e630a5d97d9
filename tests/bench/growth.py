# SPDX-License-Identifier: MIT
"""How time and memory grow: blkimg alone, on inputs of 1, 4 and 16 times the size.

A case is one command on one family of inputs. What grows is what is allocated, the virtual size at the same
allocation, or a count (snapshots, bitmaps, files of a chain). The slope is that of processor time, which the rest of the
machine moves least, less the start-up of the program, so that what is short does not hide a steep slope.
"""

import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

import images
from images import GIB, MIB
from inputs import mkimage
from measure import MEMORY_BOUND_KIB

FACTORS = (1, 4, 16)

STEEPEST = 1.15             # the exponent of what is still a line; the rest is noise
QUICK_ENOUGH = 0.05         # seconds; no slope is asked for below
MORE_MEMORY_KIB = 4096      # what the peak may grow by from 4 to 16 times the size, when all buffers are in use


@dataclass
class Case:
    name: str
    grows: str              # "allocated", "virtual" or "count"
    args: str               # FACTOR in it is the factor
    inputs: str = ""
    copies: str = ""
    checks: tuple = ()


def family(prefix, grows, inputs, *commands, copies=""):
    """Cases on the same inputs: (name, args[, checks])."""
    return [Case(f"{prefix}: {name}", grows, args, inputs, copies, checks[0] if checks else ())
            for name, args, *checks in commands]


SOUND = (("sound", "target.qcow2"),)

CASES = [
    *family("data", "allocated", "data-FACTOR.raw data-FACTOR.qcow2",
            ("raw to qcow2", "convert -t unsafe -f raw -O qcow2 data-FACTOR.raw target.qcow2", SOUND),
            ("qcow2 to raw", "convert -t unsafe -f qcow2 -O raw data-FACTOR.qcow2 target.raw"),
            ("convert -c", "convert -t unsafe -c -f raw -O qcow2 data-FACTOR.raw target.qcow2", SOUND),
            ("compare", "compare -f raw -F qcow2 data-FACTOR.raw data-FACTOR.qcow2"),
            ("checksum", "checksum -f qcow2 data-FACTOR.qcow2"),
            ("backup", "backup -t unsafe -f qcow2 data-FACTOR.qcow2 target.qcow2", SOUND)),
    *family("clusters in random order", "allocated", "shuffled-FACTOR.qcow2",
            ("info", "info -f qcow2 shuffled-FACTOR.qcow2"),
            ("check", "check -f qcow2 shuffled-FACTOR.qcow2"),
            ("map", "map --output=json -f qcow2 shuffled-FACTOR.qcow2"),
            ("measure", "measure -f qcow2 -O qcow2 shuffled-FACTOR.qcow2")),
    *family("clusters", "allocated", "", ("snapshot -c", "snapshot -c new work.ordered-FACTOR.qcow2"),
            copies="ordered-FACTOR.qcow2"),
    *family("clusters", "allocated", "", ("snapshot -a", "snapshot -a before work.snapshot-FACTOR.qcow2"),
            ("snapshot -d", "snapshot -d before work.snapshot-FACTOR.qcow2"), copies="snapshot-FACTOR.qcow2"),
    *family("clusters", "allocated", "", ("check -r all", "check -q -r all -f qcow2 work.damaged-FACTOR.qcow2"),
            copies="damaged-FACTOR.qcow2"),
    *family("clusters of 1 KiB", "allocated", "", ("commit", "commit -q -f qcow2 work.upper-FACTOR.qcow2"),
            copies="upper-FACTOR.qcow2 lower-FACTOR.qcow2"),
    *family("clusters of 1 KiB", "allocated", "data-1.raw changed-1.raw",
            ("rebase", "rebase -f qcow2 -b changed-1.raw -F raw work.overlay-FACTOR.qcow2"),
            copies="overlay-FACTOR.qcow2"),
    *family("marked bits", "allocated", "", ("merge", "bitmap --merge from -f qcow2 work.marked-FACTOR.qcow2 to"),
            copies="marked-FACTOR.qcow2"),
    *family("marked bits", "allocated", "disk-FACTOR.qcow2 full-FACTOR.qcow2",
            ("incremental backup", "backup -t unsafe -f qcow2 --bitmap=daily --bitmap-sync=never "
             "--base=full-FACTOR.qcow2 disk-FACTOR.qcow2 target.qcow2", SOUND)),

    *family("1 MiB in 8 TiB", "virtual", "wide-FACTOR.qcow2 wide-FACTOR.raw",
            ("info", "info -f qcow2 wide-FACTOR.qcow2"),
            ("check", "check -f qcow2 wide-FACTOR.qcow2"),
            ("map", "map --output=json -f qcow2 wide-FACTOR.qcow2"),
            ("measure", "measure -f qcow2 -O qcow2 wide-FACTOR.qcow2"),
            ("qcow2 to qcow2", "convert -t unsafe -f qcow2 -O qcow2 wide-FACTOR.qcow2 target.qcow2"),
            ("qcow2 to raw", "convert -t unsafe -f qcow2 -O raw wide-FACTOR.qcow2 target.raw"),
            ("raw to qcow2", "convert -t unsafe -f raw -O qcow2 wide-FACTOR.raw target.qcow2"),
            ("compare", "compare -f raw -F qcow2 wide-FACTOR.raw wide-FACTOR.qcow2"),
            ("backup", "backup -t unsafe -f qcow2 wide-FACTOR.qcow2 target.qcow2")),
    *family("1 MiB in 8 TiB", "virtual", "", ("io write", "io -f qcow2 -c 'write -q 1G 64k' work.wide-FACTOR.qcow2"),
            ("snapshot -c", "snapshot -c new work.wide-FACTOR.qcow2"),
            ("bitmap --add", "bitmap --add -f qcow2 work.wide-FACTOR.qcow2 new"),
            copies="wide-FACTOR.qcow2"),
    *family("1 MiB in 8 TiB", "virtual", "", ("bitmap --merge", "bitmap --merge from -f qcow2 work.pair-FACTOR.qcow2 to"),
            copies="pair-FACTOR.qcow2"),
    *family("1 MiB in 8 TiB", "virtual", "daily-FACTOR.qcow2 first-FACTOR.qcow2",
            ("incremental backup", "backup -t unsafe -f qcow2 --bitmap=daily --bitmap-sync=never "
             "--base=first-FACTOR.qcow2 daily-FACTOR.qcow2 target.qcow2")),

    *family("1,000 snapshots", "count", "snapshots-FACTOR.qcow2",
            ("info", "info -f qcow2 snapshots-FACTOR.qcow2"), ("check", "check -f qcow2 snapshots-FACTOR.qcow2"),
            ("list", "snapshot -l snapshots-FACTOR.qcow2")),
    *family("1,000 snapshots", "count", "", ("snapshot -c", "snapshot -c new work.snapshots-FACTOR.qcow2"),
            ("snapshot -d", "snapshot -d s0 work.snapshots-FACTOR.qcow2"),
            ("io write", "io -f qcow2 -c 'write -q 0 64k' work.snapshots-FACTOR.qcow2"),
            copies="snapshots-FACTOR.qcow2"),
    *family("1,000 bitmaps", "count", "bitmaps-FACTOR.qcow2",
            ("info", "info -f qcow2 bitmaps-FACTOR.qcow2"), ("check", "check -f qcow2 bitmaps-FACTOR.qcow2"),
            ("backup", "backup -t unsafe -f qcow2 bitmaps-FACTOR.qcow2 target.qcow2")),
    *family("1,000 bitmaps", "count", "", ("io write", "io -f qcow2 -c 'write -q 1M 64k' work.bitmaps-FACTOR.qcow2"),
            ("bitmap --add", "bitmap --add -f qcow2 work.bitmaps-FACTOR.qcow2 new"),
            copies="bitmaps-FACTOR.qcow2"),
    *family("chain of 100", "count", "chain-FACTOR.qcow2",
            ("info", "info --backing-chain -f qcow2 chain-FACTOR.qcow2"),
            ("map", "map --output=json -f qcow2 chain-FACTOR.qcow2"),
            ("convert", "convert -t unsafe -f qcow2 -O qcow2 chain-FACTOR.qcow2 target.qcow2", SOUND)),
    *family("512-byte clusters", "allocated", "tiny-FACTOR.qcow2",
            ("check", "check -f qcow2 tiny-FACTOR.qcow2"), ("map", "map --output=json -f qcow2 tiny-FACTOR.qcow2"),
            ("convert", "convert -t unsafe -f qcow2 -O raw tiny-FACTOR.qcow2 target.raw"),
            ("convert to them", "convert -t unsafe -f raw -O qcow2 -o cluster_size=512 data-FACTOR.raw target.qcow2")),
    *family("2 MiB clusters with subclusters", "allocated", "sub-FACTOR.qcow2",
            ("check", "check -f qcow2 sub-FACTOR.qcow2"), ("map", "map --output=json -f qcow2 sub-FACTOR.qcow2"),
            ("convert", "convert -t unsafe -f qcow2 -O raw sub-FACTOR.qcow2 target.raw")),
    *family("scattered free clusters", "allocated", "",
            ("io write", "io -f qcow2 -c 'write -q 200G 16M' work.gaps-FACTOR.qcow2"),
            ("snapshot -c", "snapshot -c new work.gaps-FACTOR.qcow2"),
            ("bitmap --add", "bitmap --add -f qcow2 work.gaps-FACTOR.qcow2 new"), copies="gaps-FACTOR.qcow2"),
]


class Families:
    """Makes the inputs: NAME-FACTOR.FORMAT. unit is what factor 1 stands for, in MiB of data and 1,024 clusters."""

    def __init__(self, inputs, unit):
        self.inputs = inputs
        self.unit = unit

    def path(self, name):
        return self.inputs.path(name)

    def need(self, name):
        path = self.path(name)
        if os.path.exists(path):
            return path
        stem, _, form = name.rpartition(".")
        kind, _, factor = stem.rpartition("-")
        if os.path.exists(path + ".new"):
            os.unlink(path + ".new")
        getattr(self, f"make_{kind}_{form}")(path + ".new", int(factor))
        os.rename(path + ".new", path)
        return path

    def qemu_img(self, *arguments):
        self.inputs.qemu_img(*arguments)

    def clusters(self, factor):
        return self.unit * 1024 * factor

    # --- data and clusters ---

    def make_data_raw(self, path, factor):
        images.write_raw(path, 32 * self.unit * MIB, self.unit * factor * MIB, seed=5)

    def make_data_qcow2(self, path, factor):
        self.qemu_img("convert", "-f", "raw", "-O", "qcow2", self.need(f"data-{factor}.raw"), path)

    def make_changed_raw(self, path, factor):
        images.sparse_copy(self.need(f"data-{factor}.raw"), path)
        images.change_raw(path, 0.01, seed=6)

    def make_shuffled_qcow2(self, path, factor):
        images.write_qcow2(path, 64 * GIB, images.shuffled(self.clusters(factor)))

    def make_ordered_qcow2(self, path, factor, **options):
        images.write_qcow2(path, 64 * GIB, images.in_order(self.clusters(factor)), **options)

    def make_damaged_qcow2(self, path, factor):
        self.make_ordered_qcow2(path, factor, wrong_counts=0.001)

    def make_snapshot_qcow2(self, path, factor):
        images.sparse_copy(self.need(f"ordered-{factor}.qcow2"), path)
        self.qemu_img("snapshot", "-c", "before", path)
        self.inputs.write_pieces(path, self.clusters(factor) * 65536)

    def make_upper_qcow2(self, path, factor):
        size = self.unit * factor * MIB
        images.write_raw(path + ".raw", size, size, seed=7)
        self.qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=1k", path + ".raw", path)
        os.unlink(path + ".raw")
        self.qemu_img("rebase", "-u", "-f", "qcow2", "-b", f"work.lower-{factor}.qcow2", "-F", "qcow2", path)

    def make_lower_qcow2(self, path, factor):
        self.qemu_img("create", "-q", "-f", "qcow2", path, self.unit * factor * MIB)

    def make_overlay_qcow2(self, path, factor):
        self.need("data-1.raw")
        images.write_qcow2(path, 32 * self.unit * MIB, images.in_order(self.clusters(factor), every=2, run=64),
                           cluster_bits=10, backing="data-1.raw")

    def make_tiny_qcow2(self, path, factor):
        self.need(f"data-{factor}.raw")
        images.write_qcow2(path, GIB, images.in_order(self.clusters(factor)), cluster_bits=9)

    def make_sub_qcow2(self, path, factor):
        """Every other subcluster of 64 KiB holds data."""
        count = self.unit * factor
        images.write_qcow2(path, 64 * GIB, images.in_order(count), cluster_bits=21, subclusters=0x55555555)

    def make_gaps_qcow2(self, path, factor):
        images.write_qcow2(path, 256 * GIB, images.with_gaps(self.clusters(factor)))

    # --- bitmaps ---

    def two_bitmaps(self, path, size, marked):
        self.qemu_img("create", "-q", "-f", "qcow2", path, size)
        for name in ("from", "to"):
            self.qemu_img("bitmap", "--add", "-g", "64k", path, name)
        images.mark_at_random(path, marked / (size >> 16))
        self.inputs.repair(path)

    def make_marked_qcow2(self, path, factor):
        self.two_bitmaps(path, 1024 * GIB, self.clusters(factor))

    def make_pair_qcow2(self, path, factor):
        self.two_bitmaps(path, 512 * GIB * factor, 16)

    def backup_of(self, path, disk, size, write):
        """A full backup, after which the disk is written."""
        self.qemu_img("create", "-q", "-f", "qcow2", disk + ".new", size)
        subprocess.run([self.inputs.blkimg, "backup", "-q", "--new-bitmap=daily", disk + ".new", path], check=True)
        write(disk + ".new")
        os.rename(disk + ".new", disk)

    def make_disk_qcow2(self, path, factor):
        full = self.path(f"full-{factor}.qcow2")
        self.backup_of(full, path.removesuffix(".new"), 100 * GIB,
                       lambda disk: self.inputs.scattered(disk, 50, self.unit * factor))
        os.rename(path.removesuffix(".new"), path)

    def make_daily_qcow2(self, path, factor):
        size = 512 * GIB * factor
        self.backup_of(self.path(f"first-{factor}.qcow2"), path.removesuffix(".new"), size,
                       lambda disk: self.inputs.write_pieces(disk, size))
        os.rename(path.removesuffix(".new"), path)

    # --- wide and empty ---

    def make_wide_qcow2(self, path, factor):
        self.qemu_img("create", "-q", "-f", "qcow2", path, 512 * GIB * factor)
        self.inputs.write_pieces(path, 512 * GIB * factor)

    def make_wide_raw(self, path, factor):
        size = 512 * GIB * factor
        with open(path, "wb") as file:
            file.truncate(size)
            for index in range(16):
                file.seek(index * (size // 16))
                file.write(b"\5" * 65536)

    # --- counts ---

    def count(self, factor):
        """1,000 at the largest size."""
        return max(1, self.unit * factor * 1000 // 1024)

    def make_snapshots_qcow2(self, path, factor):
        """Each larger one is made from the one before."""
        have = 0
        if factor == 1:
            images.write_qcow2(path, 64 * GIB, images.in_order(1024))
        else:
            images.sparse_copy(self.need(f"snapshots-{factor // 4}.qcow2"), path)
            have = self.count(factor // 4)
        for index in range(have, self.count(factor)):
            self.qemu_img("snapshot", "-c", f"s{index}", path)

    def make_bitmaps_qcow2(self, path, factor):
        self.qemu_img("create", "-q", "-f", "qcow2", path, 64 * GIB)
        mkimage.add_bitmaps(path, self.count(factor), flags=2)
        self.inputs.repair(path)
        self.inputs.write_pieces(path, 64 * GIB)

    def make_chain_qcow2(self, path, factor):
        files = max(2, self.unit * factor * 100 // 1024)
        for index in range(files):
            last = index == files - 1
            file = path if last else self.path(f"link-{factor}-{index}.qcow2")
            backing = ("-b", f"link-{factor}-{index - 1}.qcow2", "-F", "qcow2") if index else ()
            self.qemu_img("create", "-q", "-f", "qcow2", *backing, file, *(() if index else ("64G",)))
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 5 {index}M 64k", file], check=True,
                           stdout=subprocess.DEVNULL)


def exponent(seconds):
    """The slope of seconds (or KiB) over size, both as logarithms. Below a millisecond nothing can be told."""
    xs = [math.log(factor) for factor in FACTORS]
    ys = [math.log(max(value, 1e-3)) for value in seconds]
    x, y = statistics.mean(xs), statistics.mean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)


def measure(bench, families, case, start, progress):
    """The result of a case as it is recorded. start: processor seconds of a run that does nothing."""
    points = []
    for factor in FACTORS:
        row = sized(case, factor)
        for name in (row.inputs + " " + row.copies).split():
            progress(f"making {name}")
            # A pair of a disk and its backup is made at once, under the name of the disk.
            if not name.startswith(("full-", "first-")):
                families.need(name)
        progress(f"{factor} times the size")
        bench.run(row, True)
        runs = [bench.run(row, True) for _ in range(bench.runs)]
        wrong = bench.checker.judge(row.checks)
        if wrong:
            raise RuntimeError(f"{case.name}: {wrong}")
        points.append({"factor": factor, "seconds": statistics.median(run["wall"] for run in runs),
                       "cpu_seconds": statistics.median(run["cpu"] for run in runs),
                       "peak_kib": max(run["peak_kib"] for run in runs)})
    bench.clean()
    net = [point["cpu_seconds"] - start for point in points]
    peaks = [point["peak_kib"] for point in points]
    result = {"name": case.name, "grows": case.grows, "status": "measured", "points": points,
              "exponent": exponent(net), "memory_exponent": exponent(peaks)}
    steepest = 0.15 if case.grows == "virtual" else STEEPEST
    result["fast"] = result["exponent"] <= steepest or points[-1]["seconds"] <= QUICK_ENOUGH
    result["small"] = peaks[-1] <= MEMORY_BOUND_KIB and peaks[-1] - peaks[1] <= MORE_MEMORY_KIB
    return result


def sized(case, factor):
    from rows import Row
    words = [text.replace("FACTOR", str(factor)) for text in (case.args, case.inputs, case.copies)]
    return Row(case.name, case.name, 1.0, words[0], words[1], ("start",), copies=words[2], checks=case.checks)


if __name__ == "__main__":
    sys.exit("run scripts/bench --growth")
