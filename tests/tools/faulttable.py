#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Fails the system calls of every command, one per run, and looks for a false success.

usage: faulttable.py [--count N] [--seed S] [--only REGEX] [--kinds LIST] BLKIMG

Each row of COMMANDS runs in a fresh copy of one scene. Its calls of each kind are
counted first; then each of them fails (or reads short, or reads nothing) in a run of
its own; with --count only N of them, drawn with the seed. A run is bad if

- it ends by a signal, or not at all;
- it exits 0 and what it printed, or any file's content, bitmaps or snapshots, is not
  what the run without a fault made (a lie);
- it fails silently;
- a file that was there is damaged: neither as before nor as the command makes it,
  unless it is sound and every sector is the old or the new one;
- a new file is left after a failure, and the message does not name it.

The last line is `fault table: N tried, N exited 0, N bad (seed S)`.
"""

import argparse
import filecmp
import os
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import check_image
import faultloop
import workfolder

KINDS = faultloop.KINDS + faultloop.LOOKS

# What the scene is made of; every command runs on a copy of the result.
SCENE = """
create -q -f raw src.raw 1M
io -f raw -c 'write -P 1 0 300k' -c 'write -P 2 700k 64k' src.raw
convert -f raw -O qcow2 src.raw base.q
convert -f raw -O qcow2 src.raw other.q
create -q -f qcow2 -b base.q -F qcow2 top.q
io -c 'write -P 3 128k 200k' top.q
convert -f raw -O qcow2 src.raw old.q
convert -c -f raw -O qcow2 src.raw small.q
convert -f raw -O qcow2 src.raw snap.q
snapshot -q -c one snap.q
io -c 'write -P 4 0 128k' snap.q
convert -f raw -O qcow2 src.raw bm.q
bitmap --add bm.q b0
bitmap --add --disable bm.q b1
io -c 'write -P 5 512k 64k' bm.q
create -q -f qcow2 -o data_file=data.raw data.q 1M
io -c 'write -P 6 0 256k' data.q
create -q -f qcow2 -o lazy_refcounts=on disk.q 1M
io -c 'write -P 7 0 512k' disk.q
backup --new-bitmap=daily disk.q full.q
io -c 'write -P 8 256k 64k' disk.q
"""

COMMANDS = """
amend -o compat=0.10 other.q
amend -o refcount_bits=64,lazy_refcounts=on other.q
amend -o size=2M other.q
backup disk.q new.q
backup --new-bitmap=b disk.q new.q
backup --bitmap=daily --base=full.q disk.q new.q
backup --bitmap=daily --base=full.q --verify --checksum disk.q new.q
backup --list-chain=full.q
bench -f raw -c 4 src.raw
bench -w -c 4 old.q
bitmap --add old.q b
bitmap --remove bm.q b0
bitmap --clear bm.q b0
bitmap --disable bm.q b0
bitmap --enable bm.q b1
bitmap --merge b0 bm.q b1
bitmap --add --merge b0 -b bm.q -F qcow2 old.q b
check top.q
check -r all snap.q
check --output=json bm.q
checksum top.q
close-check bm.q
commit -q top.q
commit -q -d top.q
compare -f raw -F qcow2 src.raw base.q
compare -s base.q other.q
compare base.q top.q
convert -O raw top.q new.raw
convert -O qcow2 -c top.q new.q
convert -O qcow2 --bitmaps bm.q new.q
convert -O qcow2 --bitmaps disk.q new.q
convert -O qcow2 full.q new.q
convert -O qcow2 -W -m 4 src.raw old.q
convert -O qcow2 -o preallocation=metadata src.raw new.q
convert -O raw -o preallocation=full src.raw new.raw
convert -n -O qcow2 src.raw old.q
convert -O qcow2 -B base.q -F qcow2 top.q new.q
convert -O qcow2 -o data_file=new.raw src.raw new.q
convert -O raw -l one snap.q new.raw
convert -O raw small.q new.raw
convert -C -O raw src.raw new.raw
convert -t writethrough -O qcow2 src.raw new.q
create -q -f raw new.raw 1M
create -q -f qcow2 new.q 1M
create -q -f qcow2 -b base.q -F qcow2 new.q
create -q -f qcow2 old.q 1M
create -q -f qcow2 -o data_file=new.raw,preallocation=full new.q 1M
create -q -f qcow2 -o preallocation=full new.q 1M
dd if=src.raw of=new.raw bs=64k
dd -O qcow2 if=top.q of=new.q bs=1M
info top.q
info --output=json bm.q
info --backing-chain top.q
io -c 'write -P 9 0 64k' -c flush -c 'read -P 9 0 64k' old.q
io -c 'write -z 0 128k' -c 'discard 512k 64k' old.q
io -c 'write -c -P 9 0 64k' old.q
io -c 'write -P 9 100k 300k' top.q
io -f raw -c 'write -P 9 0 64k' -c 'truncate 2M' src.raw
map --output=json top.q
map src.raw
measure -O qcow2 top.q
mirror base.q new.q
mirror -O raw base.q new.raw
pivot --to=other.q top.q
mirror --pivot=top.q base.q new.q
mirror full.q new.q
mirror --mode=top top.q new.q
rebase -b other.q -F qcow2 top.q
rebase -b '' top.q
rebase -u -b other.q -F qcow2 top.q
rebase -u -b other.q -F qcow2 disk.q
resize -q old.q 2M
resize -q --shrink old.q 512k
resize -q -f raw src.raw 2M
snapshot -q -c two snap.q
snapshot -q -a one snap.q
snapshot -q -d one snap.q
snapshot -l snap.q
"""

# What differs from run to run: the space a file takes, times, and a new backup's id.
VARYING = re.compile(r'(disk size: .*|"actual-size": \d+|[0-9.]+ sec.*|[0-9.]+ seconds.*'
                     r'|\b[0-9a-f]{32}\b|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})')


@dataclass
class Run:
    """What one run came to. faulted: the call whose turn it was."""

    status: object
    out: str
    errors: str
    calls: list


class Row:
    """One command, with what it makes when nothing fails."""

    def __init__(self, table, line):
        self.table = table
        self.line = line
        self.clean_folder = os.path.join(table.scratch, "clean", re.sub(r"\W+", "-", line))

    def run(self, folder, kind, number):
        workfolder_copy(self.table.scene, folder)
        count_file = folder + ".count"
        environment = workfolder.preload_environment(self.table.library)
        environment.update(FAULT_FILES=":".join(os.path.join(folder, name) for name in self.table.names),
                           FAULT_CALL=kind, FAULT_N=str(number), FAULT_ERRNO="EIO", FAULT_ONCE="1",
                           FAULT_COUNT_FILE=count_file)
        command = ["bash", "-c", f'exec "$0" {self.line}', self.table.blkimg]
        try:
            done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, errors="replace", timeout=60, check=False)
            status, out, errors = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired:
            status, out, errors = "timeout", "", ""
        calls = faultloop.Loop._lines(count_file)
        if os.path.exists(count_file):
            os.unlink(count_file)
        return Run(status, VARYING.sub("X", out), errors, calls)

    def learn(self):
        """Runs without a fault; returns the faults there are to try."""
        faults = []
        for kind in self.table.kinds:
            shutil.rmtree(self.clean_folder, ignore_errors=True)
            clean = self.run(self.clean_folder, kind, 0)
            if clean.status != 0 and not self.line.startswith("compare"):
                raise workfolder.SetupError(f"{self.line}: status {clean.status} without a fault: {clean.errors}")
            self.clean = clean
            faults += [(self, kind, number) for number in range(1, len(clean.calls) + 1)]
        return faults

    def try_fault(self, kind, number):
        """Returns (status, which call, what is wrong or None)."""
        folder = os.path.join(self.table.scratch, f"run-{id(self)}-{kind}-{number}")
        try:
            run = self.run(folder, kind, number)
            call = run.calls[number - 1] if number <= len(run.calls) else f"{kind} {number}: not reached"
            return run.status, call, self.judge(run, folder) if number <= len(run.calls) else None, run.errors
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def judge(self, run, folder):
        if run.status == "timeout" or run.status < 0 or run.status > 63:
            return f"ended by {run.status}"
        if run.status == self.clean.status:
            return self.judge_success(run, folder)
        if not run.errors and "failed" not in run.out:
            return "failed without a word"
        return self.judge_files(run, folder)

    def judge_success(self, run, folder):
        if run.out != self.clean.out:
            return f"other output: {run.out!r} instead of {self.clean.out!r}"
        if sorted(os.listdir(folder)) != sorted(os.listdir(self.clean_folder)):
            return f"files: {sorted(os.listdir(folder))}"
        for name in os.listdir(folder):
            if not same(folder, self.clean_folder, name) and view(folder, name) != view(self.clean_folder, name):
                return f"{name} differs from what the run without a fault makes"
        return None

    def judge_files(self, run, folder):
        before = set(os.listdir(self.table.scene))
        for name in sorted(set(os.listdir(folder)) - before):
            if name not in run.errors:
                return f"{name} is left and not named"
        for name in sorted(before):
            if not os.path.exists(os.path.join(folder, name)):
                if os.path.exists(os.path.join(self.clean_folder, name)):
                    return f"{name} is gone"
            elif not same(folder, self.table.scene, name) and not same(folder, self.clean_folder, name):
                problem = self.judge_changed(folder, name)
                if problem:
                    return f"{name}: {problem}"
        return None

    def judge_changed(self, folder, name):
        kind = image_format(name)
        if kind != "raw":
            result = check_image.run(["qemu-img", "check", "-q", "-f", kind, name], folder)
            if result.returncode not in (0, 3):
                return f"qemu-img check: {result.returncode}: {check_image.first_lines(result.stdout)}"
        contents = [content(place, name) for place in (folder, self.table.scene, self.clean_folder)]
        try:
            return check_image.compare(contents[0], contents[1], contents[2], False)
        finally:
            for path in contents:
                os.unlink(path)


def image_format(name):
    return "raw" if name.endswith(".raw") else "qcow2"


def same(folder, other, name):
    path = os.path.join(other, name)
    return os.path.exists(path) and filecmp.cmp(os.path.join(folder, name), path, shallow=False)


def content(folder, name):
    """The guest's view as a raw file beside the folder."""
    path = f"{folder}.{name}.content-{random.getrandbits(64):x}"
    result = check_image.run(["qemu-img", "convert", "-U", "-t", "unsafe", "-f", image_format(name), "-O", "raw", name,
                              path], folder)
    if result.returncode != 0:
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"cannot be read: {result.stdout}")
    return path


def view(folder, name):
    """All that a user sees of an image: content, and what info tells of snapshots, bitmaps and options."""
    path = content(folder, name)
    try:
        with open(path, "rb") as file:
            data = file.read()
    finally:
        os.unlink(path)
    told = check_image.run(["qemu-img", "info", "-U", "-f", image_format(name), name], folder).stdout
    return data, VARYING.sub("X", re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "X", told))


def workfolder_copy(source, target):
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


class Table:
    def __init__(self, blkimg, scratch, kinds):
        self.blkimg = os.path.abspath(blkimg)
        self.scratch = scratch
        self.kinds = kinds
        self.library = workfolder.find_preload("fault-preload", scratch)
        self.scene = os.path.join(scratch, "scene")
        os.makedirs(self.scene)
        os.makedirs(os.path.join(scratch, "clean"))
        for line in SCENE.strip().splitlines():
            done = subprocess.run(["bash", "-c", f'exec "$0" {line}', self.blkimg], cwd=self.scene,
                                  capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise workfolder.SetupError(f"{line}: {done.stderr}")
        self.names = sorted(os.listdir(self.scene)) + ["new.q", "new.raw"]


def parse_arguments():
    parser = argparse.ArgumentParser(description="Fails the system calls of every command.")
    parser.add_argument("--count", type=int, default=0, help="this many faults, drawn at random (all)")
    parser.add_argument("--seed", type=int, default=random.getrandbits(31), help="of that draw")
    parser.add_argument("--only", default="", help="rows that match this expression")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of calls, comma-separated (all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--workdir", default=None, help="parent of the temporary folder ($TMPDIR)")
    parser.add_argument("blkimg")
    return parser.parse_args()


def main():
    options = parse_arguments()
    tried = exited_0 = bad = 0
    try:
        with workfolder.Scratch(options.workdir) as scratch, ThreadPoolExecutor(options.jobs) as pool:
            table = Table(options.blkimg, scratch, options.kinds.split(","))
            rows = [Row(table, line) for line in COMMANDS.strip().splitlines() if re.search(options.only, line)]
            faults = [fault for found in pool.map(Row.learn, rows) for fault in found]
            if options.count and options.count < len(faults):
                faults = random.Random(options.seed).sample(faults, options.count)
            results = pool.map(lambda fault: fault[0].try_fault(*fault[1:]), faults)
            for (row, kind, number), (status, call, problem, errors) in zip(faults, results):
                tried += 1
                exited_0 += status == 0
                if problem:
                    bad += 1
                    print(f"BAD: {row.line}: {kind} {number} ({call}): status {status}: {problem}; "
                          f"stderr: {check_image.first_lines(errors, 3)}", flush=True)
    except (workfolder.SetupError, OSError) as error:
        print(f"faulttable: {error}", file=sys.stderr)
        return 2
    print(f"fault table: {tried} tried, {exited_0} exited 0, {bad} bad (seed {options.seed})")
    return 1 if bad or tried == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
