#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random histories of a disk and its backups: each restored point is the content of its moment.

usage: backuprandom.py --blkimg PROGRAM [--histories N] [--steps N] [--seed N]

A history is a disk with two bitmaps and a random sequence of writes, zeroes,
discards, commits into it, resizes, backups of all kinds and backups that fail
(full disk, signal, kill). The content of a moment is what qemu-img reads from
the source then. It also tries to build on any earlier target: what is
accepted without --trust must be right, and the one that the bitmap continues
must be accepted. The last line is "histories: N, points: N, seed S".
"""

import argparse
import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile

SECTOR = 512
CLUSTERS = ["512", "4k", "64k", "256k"]


class Wrong(Exception):
    """What must hold does not."""


class History:
    def __init__(self, blkimg, rng, folder):
        self.blkimg = blkimg
        self.rng = rng
        self.folder = folder
        self.log = []
        self.points = {}        # target -> digest of its moment
        self.overlays = {}      # target -> what it lies on
        self.number = 0
        self.size = self.pick_size()
        self.bases = {"a": [], "b": []}  # targets of which one must be accepted, for each bitmap
        self.broken = set()     # bitmaps that are in use or may be missing
        self.start()

    # ---- running ----

    def run(self, *arguments, check=True, limit=None, kill=None):
        """Returns the exit status. limit: largest file in bytes; kill: (signal, seconds)."""
        self.log.append(" ".join(arguments))

        def prepare():
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = subprocess.Popen(arguments, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, preexec_fn=prepare, restore_signals=False)
        try:
            output, _ = process.communicate(timeout=kill[1] if kill else None)
        except subprocess.TimeoutExpired:
            process.send_signal(kill[0])
            output, _ = process.communicate()
        self.output = output.decode(errors="replace")
        self.log.append(f"   -> {process.returncode} {self.output.strip()[:300]}")
        if check and process.returncode != 0:
            raise Wrong("a command failed")
        return process.returncode

    def digest(self, image):
        raw = os.path.join(self.folder, "read.raw")
        reader = "qemu-img" if self.rng.random() < 0.8 or image == "src" else self.blkimg
        self.run(reader, "convert", "-f", "qcow2", "-O", "raw", image, "read.raw")
        with open(raw, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    # ---- the disk ----

    def pick_size(self):
        return self.rng.randrange(1, 6 * 2048) * SECTOR

    def pick_range(self):
        unit = self.rng.choice([1, SECTOR, 65536])
        length = min(self.size, unit * self.rng.randrange(1, {1: 3000, SECTOR: 600, 65536: 12}[unit]))
        offset = self.rng.randrange((self.size - length) // unit + 1) * unit
        return offset, length

    def commands(self):
        result = []
        for _ in range(self.rng.randrange(1, 6)):
            offset, length = self.pick_range()
            if self.rng.random() < 0.6:
                result += ["-c", f"write -P {self.rng.randrange(1, 256)} {offset} {length}"]
            else:
                result += ["-c", f"{self.rng.choice(['write -z', 'write -z -u', 'discard'])} {offset} {length}"]
        return result

    def io(self, image):
        self.run(*self.rng.choice([["qemu-io"], [self.blkimg, "io"]]), "-f", "qcow2", *self.commands(), image)

    def start(self):
        cluster = self.rng.choice(CLUSTERS)
        options = f"cluster_size={cluster}"
        below = []
        if self.rng.random() < 0.4:
            low = self.rng.choice([self.size, self.pick_size()])
            with open(os.path.join(self.folder, "low"), "wb") as file:
                file.write(b"L" * low)
            below = ["-b", "low", "-F", "raw"]
        self.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *below, "src", str(self.size))
        self.io("src")
        for bitmap in self.bases:
            granularity = self.rng.choice(["512", "4096", "65536", "1048576"])
            self.run("qemu-img", "bitmap", "--add", "-g", granularity, "src", bitmap)

    def write(self):
        self.io("src")

    def commit(self):
        """An external snapshot, committed later."""
        self.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "src", "-F", "qcow2", "top")
        self.io("top")
        self.run(self.blkimg, "commit", "-q", "top")

    def resize(self):
        size = self.pick_size()
        shrink = ["--shrink"] if size < self.size else []
        self.run(self.blkimg, "resize", "-q", *shrink, "src", str(size))
        self.size = size

    def disturb_bitmap(self):
        """Nothing can continue a bitmap that was cleared or made anew."""
        bitmap = self.rng.choice(list(self.bases))
        if bitmap in self.broken:
            return
        if self.rng.random() < 0.5:
            self.run(self.blkimg, "bitmap", "--clear", "src", bitmap)
        else:
            self.run(self.blkimg, "bitmap", "--remove", "src", bitmap)
            self.run(self.blkimg, "bitmap", "--add", "src", bitmap)
        self.bases[bitmap] = []

    def kill_guest(self):
        """Its bitmaps are in use afterwards."""
        if self.run(self.blkimg, "io", *self.commands(), "-c", "sigraise 9", "src", check=False) == 0:
            raise Wrong("io was not killed")
        self.broken = set(self.bases)

    # ---- backups ----

    def options(self):
        options = ["-O", "qcow2"]
        creation = [f"cluster_size={self.rng.choice(CLUSTERS)}"]
        if self.rng.random() < 0.2:
            creation.append("compat=0.10")
        options += ["-o", ",".join(creation)]
        for option in ["-c", "--verify"]:
            if self.rng.random() < 0.3:
                options.append(option)
        return options + ["-m", self.rng.choice(["1", "4"])]

    def new_target(self):
        self.number += 1
        return f"t{self.number}"

    def backup(self, options, target, **how):
        return self.run(self.blkimg, "backup", "-q", "-f", "qcow2", *options, "src", target, **how)

    def keep_point(self, target, expected):
        self.points[target] = expected
        if self.digest(target) != expected:
            raise Wrong(f"{target} is not the disk of its moment")
        self.run("qemu-img", "check", "-q", "-f", "qcow2", target)

    def full(self):
        target, expected = self.new_target(), self.digest("src")
        bitmap = self.rng.choice(list(self.bases))
        options = ["--mode=full", f"--bitmap={bitmap}"]
        if bitmap in self.broken:
            options = [f"--bitmap={bitmap}", "--on-broken-bitmap=full"]
        self.backup(self.options() + options, target)
        self.keep_point(target, expected)
        self.bases[bitmap] = [target]
        self.broken.discard(bitmap)

    def pick_bitmaps(self):
        """One or both of those that have a base. The first is the one to build on."""
        usable = [bitmap for bitmap in self.bases if self.bases[bitmap] and bitmap not in self.broken]
        self.rng.shuffle(usable)
        return usable[:1] if self.rng.random() < 0.7 else usable

    def incremental(self):
        bitmaps = self.pick_bitmaps()
        if not bitmaps:
            self.full()
            return
        sync = self.rng.choice(["on-success", "on-success", "never"])
        options = [f"--bitmap={bitmap}" for bitmap in bitmaps] + [f"--bitmap-sync={sync}"]
        target, expected = self.new_target(), self.digest("src")
        base = None
        candidates = list(self.bases[bitmaps[0]])
        for base in candidates:
            how = self.rng.choice(["base", "base", "rebase", "in-place"]) if len(candidates) == 1 else "base"
            if self.make_incremental(how, options, base, target):
                break
        else:
            raise Wrong("no base was accepted")
        self.keep_point(target, expected)
        self.run(self.blkimg, "backup", f"--list-chain={target}", check=False)
        if sync != "never":
            for bitmap in bitmaps:
                self.bases[bitmap] = [target]

    def make_incremental(self, how, options, base, target):
        if how == "base":
            self.overlays[target] = base
            return self.backup(self.options() + options + [f"--base={base}"], target, check=False) == 0
        if how == "rebase":
            self.overlays[target] = base
            self.backup(self.options() + options, target)
            self.run("qemu-img", "rebase", "-u", "-b", base, "-F", "qcow2", target)
            return True
        if self.virtual_size(base) != self.size:
            return self.make_incremental("base", options, base, target)
        shutil.copy(os.path.join(self.folder, base), os.path.join(self.folder, target))
        self.overlays[target] = self.overlays.get(base)
        self.backup(options + ["-n"], target)
        return True

    def virtual_size(self, image):
        self.run("qemu-img", "measure", "-O", "raw", "-f", "qcow2", image)
        return int(self.output.split("required size:")[1].split()[0])

    def any_base(self):
        """An arbitrary earlier target: refused, or right."""
        bitmaps = [bitmap for bitmap in self.bases if bitmap not in self.broken]
        if not bitmaps or not self.points:
            return
        bitmap, base = self.rng.choice(bitmaps), self.rng.choice(list(self.points))
        target, expected = self.new_target(), self.digest("src")
        options = [f"--bitmap={bitmap}", f"--base={base}", "--bitmap-sync=never"]
        if self.backup(options, target, check=False) == 0:
            self.overlays[target] = base
            self.keep_point(target, expected)

    def failed(self):
        """A backup that fails, or is killed. The disk is what it was, and the next backup is right."""
        bitmaps = self.pick_bitmaps()
        if not bitmaps:
            return
        bitmap = bitmaps[0]
        base = self.bases[bitmap][0]
        before, target = self.digest("src"), self.new_target()
        options = [f"--bitmap={bitmap}", f"--base={base}"]
        if self.rng.random() < 0.5:
            options += ["--keep-failed", "--bitmap-sync=" + self.rng.choice(["on-success", "always"])]
        if self.rng.random() < 0.5:
            how = {"limit": self.rng.randrange(1, 64) * 8192}
        else:
            how = {"kill": (self.rng.choice([2, 15, 9]), self.rng.uniform(0, 0.03))}
        status = self.backup(options + ["-r", "20M"], target, check=False, **how)
        if self.digest("src") != before:
            raise Wrong("a backup has changed the disk")
        made = [name for name in (target, target + ".partial") if os.path.exists(os.path.join(self.folder, name))]
        self.overlays.update({name: base for name in made})
        if status == 0:
            self.keep_point(target, before)
            self.bases[bitmap] = [target]
        else:
            self.bases[bitmap] = made + self.bases[bitmap]

    def commit_target(self):
        """The last target of a chain goes into the one below, which nobody else needs and which is that backup then."""
        below = list(self.overlays.values())
        for target, base in self.overlays.items():
            if target in self.points and base in self.points and base is not None and \
                    below.count(base) == 1 and below.count(target) == 0:
                self.run(self.blkimg, "commit", "-q", "-f", "qcow2", target, check=True)
                del self.points[base]
                for bitmap, bases in self.bases.items():
                    self.bases[bitmap] = [name for name in bases if name != base]
                return

    def step(self):
        actions = [(self.write, 8), (self.commit, 2), (self.resize, 1), (self.disturb_bitmap, 1), (self.kill_guest, 1),
                   (self.full, 1), (self.incremental, 7), (self.any_base, 2), (self.failed, 3), (self.commit_target, 1)]
        action = self.rng.choices([one for one, _ in actions], [weight for _, weight in actions])[0]
        self.log.append(f"# {action.__name__}")
        action()

    def finish(self):
        self.log.append("# all points again")
        for target, expected in self.points.items():
            if self.digest(target) != expected:
                raise Wrong(f"{target} is not the disk of its moment any more")
        if self.run("qemu-img", "check", "-q", "src", check=False) not in (0, 3):
            raise Wrong("the source is not sound")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--blkimg", required=True)
    parser.add_argument("--histories", type=int, default=10)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    blkimg = os.path.abspath(options.blkimg)
    points = 0
    for number in range(options.histories):
        rng = random.Random(f"{seed}-{number}")
        with tempfile.TemporaryDirectory() as folder:
            history = None
            try:
                history = History(blkimg, rng, folder)
                for _ in range(options.steps):
                    history.step()
                history.finish()
            except Wrong as wrong:
                print("\n".join(history.log[-60:]) if history else "")
                print(f"history {number} of seed {seed}: {wrong}")
                return 1
            points += len(history.points)
    print(f"histories: {options.histories}, points: {points}, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
