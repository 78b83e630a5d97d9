#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs blkimg on crafted and on randomly damaged qcow2 images.

usage: fuzz.py try [--memory] IMAGE...             every command on each image as it is
       fuzz.py cases [--memory] FILE                  on changed images, a line each: TEXT BASE CHANGE...
       fuzz.py run [--seed N] [--count N] [--only I] [--keep DIR]   on images with random damage

The image of a case is "a", a copy of BASE, or a new one if that is empty, changed by "mkimage.py edit". info must
refuse it with one line that names it and has TEXT; an empty TEXT asks nothing. Words are quoted as for a shell.
The program is $BLKIMG. Nothing may crash, hang, or report a sanitizer's finding; a failure is one line on stderr and
status 1 (of check: 2 and 3 too). With --memory info must need less than 64 MiB. A conversion that ends with 0 must
have the content that qemu-img finds, and qemu-img must not have refused the image.

The damage is fixed by the seed and the number of the image. Exit status: 0 all well, 1 not.
"""

import argparse
import filecmp
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import crashlog
import mkimage

LIMIT_SECONDS = int(os.environ.get("FUZZ_LIMIT", "10"))
INFO_KIB = 64 * 1024
SANITIZER_STATUS = 99
SMALL = 16 << 20  # what is compared here, without a program
BLKIMG = os.environ.get("BLKIMG", "blkimg")

# Name, arguments, whether the image is a copy that may change, statuses.
COMMANDS = [
    ("info", ["info", "@"], False, {0, 1}),
    ("info --backing-chain", ["info", "--backing-chain", "--output=json", "@"], False, {0, 1}),
    ("check", ["check", "@"], False, {0, 1, 2, 3, 63}),
    ("map", ["map", "--output=json", "@"], False, {0, 1}),
    ("measure", ["measure", "-O", "qcow2", "@"], False, {0, 1}),
    ("snapshot -l", ["snapshot", "-l", "@"], False, {0, 1}),
    ("io read", ["io", "-r", "-c", "read 0 192k", "@"], False, {0, 1}),
    ("io write", ["io", "-c", "write 0 64k", "-c", "write -z 70k 200k", "-c", "discard 64k 64k", "@"], True, {0, 1, 5}),
    ("snapshot -c", ["snapshot", "-c", "new", "@"], True, {0, 1, 5}),
    ("check -r all", ["check", "-r", "all", "@"], True, {0, 1, 2, 3, 5, 63}),
    ("check -r lost", ["check", "-r", "lost", "@"], True, {0, 1, 2, 3, 5, 63}),
    ("check -r leaks", ["check", "-r", "leaks", "@"], True, {0, 1, 2, 3, 5, 63}),
]


class Run:
    """One run of a program with its time, its memory and what it wrote."""

    def __init__(self, arguments, folder=None):
        start = time.monotonic()
        environment = dict(os.environ, LC_ALL="C")
        environment.setdefault("ASAN_OPTIONS", f"exitcode={SANITIZER_STATUS}:detect_leaks=1:allocator_may_return_null=1")
        environment.setdefault("UBSAN_OPTIONS", f"print_stacktrace=1:halt_on_error=1:exitcode={SANITIZER_STATUS}")
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment,
                                     cwd=folder)
            timer = threading.Timer(LIMIT_SECONDS, child.kill)
            timer.start()
            _, status, usage = os.wait4(child.pid, 0)
            timer.cancel()
            child.returncode = os.waitstatus_to_exitcode(status)
            self.status = child.returncode
            self.kib = usage.ru_maxrss
            self.seconds = time.monotonic() - start
            err.seek(0)
            self.stderr = err.read(1 << 20).decode(errors="backslashreplace")

    def problem(self, statuses, lines=True):
        if self.status == -signal.SIGKILL and self.seconds >= LIMIT_SECONDS:
            return f"not within {LIMIT_SECONDS} s"
        if self.status < 0 or self.status == SANITIZER_STATUS or "runtime error:" in self.stderr:
            return f"crashed ({self.status}):\n{self.stderr[:3000]}"
        if self.status not in statuses:
            return f"status {self.status}: {self.stderr[:300]}"
        # One line an error: of the work, and of a close that failed because of it.
        errors = self.stderr.splitlines()
        if lines and self.status == 1 and (not errors or not errors[0].startswith("blkimg: ") or
                                           any(not line.startswith("blkimg: closing ") for line in errors[1:])):
            return f"not one line on stderr: {self.stderr[:500]}"
        return None


def guest_size(image):
    with mkimage.Image(image, "rb") as opened:
        return opened.field("size")


def try_convert(image, folder, peer):
    """Both programs convert; what blkimg calls done must be what qemu-img finds."""
    mine, theirs = os.path.join(folder, "mine.raw"), os.path.join(folder, "theirs.raw")
    run = Run([BLKIMG, "convert", "-O", "raw", image, mine])
    problem = run.problem({0, 1})
    if problem or run.status or not peer or guest_size(image) > 1 << 30:
        return problem
    other = Run(["qemu-img", "convert", "-O", "raw", image, theirs])
    if other.status < 0:
        return None  # it took too long, or crashed
    if other.status:
        # A conversion needs no snapshots and no bitmaps, and ignores a mark that means nothing.
        if any(word in other.stderr.lower() for word in ("snapshot", "bitmap", "data-file-raw")):
            return None
        return f"ended with 0, qemu-img refused: {other.stderr[:300]}"
    # Of a size within a sector QEMU leaves the rest out.
    os.truncate(mine, guest_size(image) // 512 * 512)
    if os.path.getsize(mine) == os.path.getsize(theirs) <= SMALL and filecmp.cmp(mine, theirs, shallow=False):
        return None
    if Run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", mine, theirs]).status:
        return "content differs from what qemu-img finds"
    return None


def try_image(image, memory=False, peer=True):
    """Returns a list of problems."""
    problems = []
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(image))) as folder:
        for name, arguments, changes, statuses in COMMANDS:
            used = image
            if changes:
                used = os.path.join(os.path.dirname(os.path.abspath(image)), "changed")
                crashlog.copy_sparse(image, used)
            run = Run([BLKIMG] + [used if argument == "@" else argument for argument in arguments])
            # Findings of a check come before the error that ended it; each command of io has its own.
            problem = run.problem(statuses, lines=not name.startswith(("check", "io")))
            if not problem and memory and name.startswith("info") and run.kib > INFO_KIB:
                problem = f"needs {run.kib} KiB"
            if problem:
                problems.append(f"{name}: {problem}")
            if changes:
                os.unlink(used)
        problem = try_convert(image, folder, peer)
        if problem:
            problems.append(f"convert: {problem}")
    return problems


# --- given changes ---


def try_case(line, memory):
    """Returns a list of problems; see the top."""
    text, base, *changes = shlex.split(line)
    with tempfile.TemporaryDirectory(prefix="case.") as folder:
        image = os.path.join(folder, "a")
        if base:
            crashlog.copy_sparse(base, image)
        else:
            mkimage.new_image(image)
        mkimage.main(["edit", image] + changes)
        problems = try_image(image, memory)
        if text:
            run = Run([BLKIMG, "info", "a"], folder)
            if run.status != 1 or not re.search(f"'a'.*{re.escape(text)}", run.stderr, re.DOTALL):
                problems.append(f"not refused with \"{text}\" but status {run.status}: {run.stderr}")
    return problems


def run_cases(arguments):
    with open(arguments.file, encoding="utf-8") as file:
        lines = file.read().splitlines()
    bad = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line, problems in zip(lines, pool.map(lambda line: try_case(line, arguments.memory), lines)):
            for problem in problems:
                print(f"{line}: {problem}")
            bad += bool(problems)
    print(f"changed images: {len(lines)} tried, {bad} bad")
    return bad or not lines


# --- random damage ---


def qemu(*arguments):
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_bases(folder):
    """Small images of many kinds; returns their names."""
    bases = []
    kinds = [
        ["cluster_size=512"], ["cluster_size=4k"], ["cluster_size=64k"], ["compat=0.10"], ["extended_l2=on,cluster_size=16k"],
        ["refcount_bits=1"], ["refcount_bits=64,cluster_size=1k"], ["compression_type=zstd,cluster_size=4k"],
        ["cluster_size=2k,lazy_refcounts=on"],
    ]
    qemu("qemu-img", "create", "-f", "qcow2", f"{folder}/backing", "3M")
    qemu("qemu-io", "-c", "write -P 9 0 3M", f"{folder}/backing")
    for number, (options,) in enumerate(kinds):
        name = f"{folder}/base{number}"
        backing = ["-b", "backing", "-F", "qcow2"] if number in (1, 4) else []
        qemu("qemu-img", "create", "-f", "qcow2", "-o", options, *backing, name, "4M")
        qemu("qemu-io", "-c", "write -P 1 0 100k", "-c", "write -z 200k 64k", "-c", "write -P 2 1M 64k", name)
        if "=1" != options[-2:]:
            subprocess.run(["qemu-io", "-c", "write -c -P 3 2M 64k", "-c", "write -c -P 4 2112k 64k", name],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            subprocess.run(["qemu-img", "snapshot", "-c", "one", name], stderr=subprocess.DEVNULL)
            qemu("qemu-io", "-c", "write -P 5 64k 64k", name)
        if "0.10" not in options:
            subprocess.run(["qemu-img", "bitmap", "--add", name, "b0"], stderr=subprocess.DEVNULL)
        bases.append(name)
    return bases


def structures(image):
    """Offset and length of everything that is not guest data."""
    places = [(0, 112), (0, 512), (image.field("l1_offset"), 8 * image.field("l1_entries"))]
    table = image.field("reftable_offset")
    places.append((table, 16))
    places.append((image.get(table, 8), 64))
    for index in range(min(image.field("l1_entries"), 64)):
        l2 = image.get(image.field("l1_offset") + 8 * index, 8) & mkimage.OFFSET
        if l2:
            places.append((l2, min(image.cluster, 2048)))
    if image.field("snapshot_count"):
        at = image.field("snapshots_offset")
        places += [(at, 48), (at, 120), (image.get(at, 8), 8)]
    try:
        at = image.bitmap_at(0)
        places += [(at, 32), (image.get(at, 8), 8), (image.extension(mkimage.EXT_BITMAPS), 24)]
    except KeyError:
        pass
    return places


def interesting(chance, image, old):
    """A value that means something."""
    cluster = image.cluster
    return chance.choice([
        0, 1, old + 1, old - 1, old ^ (1 << chance.randrange(64)), old + cluster, old | mkimage.COPIED, old | mkimage.COMPRESSED,
        old & ~mkimage.COPIED, 1 << 31, (1 << 32) - 1, 1 << 55, 1 << 63, (1 << 64) - 1, chance.getrandbits(64), image.end,
        image.end - 512, image.field("l1_offset"), image.field("reftable_offset"), image.get(image.field("reftable_offset"), 8),
        chance.randrange(64) * cluster, chance.randrange(1 << 20),
    ])


def damage(image, chance):
    """One change; returns what was done."""
    kind = chance.randrange(8)
    if kind < 2:
        name = chance.choice(sorted(mkimage.HEADER))
        value = interesting(chance, image, image.field(name))
        image.put(*mkimage.HEADER[name], value)
        return f"{name}={value:#x}"
    if kind == 2:
        size = chance.randrange(image.file_bytes + 1)
        image.file.truncate(size)
        return f"cut to {size}"
    if kind == 3:
        at = chance.randrange(max(image.file_bytes, 1))
        image.write(at, bytes([chance.randrange(256)]))
        return f"byte {at}"
    start, length = chance.choice(structures(image))
    if kind < 6:
        at = start + chance.randrange(max(length, 8)) // 8 * 8
        value = interesting(chance, image, image.get(at, 8))
        if at < 1 << 40:
            image.put(at, 8, value)
        return f"u64[{at:#x}]={value % (1 << 64):#x}"
    at = start + chance.randrange(max(length, 1))
    if at < 1 << 40:
        image.put(at, 1, image.get(at, 1) ^ (1 << chance.randrange(8)))
    return f"bit in byte {at:#x}"


def try_damaged(number, bases, folder, arguments):
    """Returns a list of problems of the image with this number."""
    chance = random.Random(f"{arguments.seed}/{number}")
    base = chance.choice(bases)
    done = []
    with tempfile.TemporaryDirectory(dir=folder) as home:
        name = os.path.join(home, "image")
        os.symlink("../backing", os.path.join(home, "backing"))
        shutil.copy(base, name)
        with mkimage.Image(name) as image:
            for _ in range(chance.choice([1, 1, 1, 2, 3])):
                try:
                    done.append(damage(image, chance))
                except (KeyError, OSError, OverflowError):
                    done.append("(impossible)")
        problems = try_image(name)
        if problems and arguments.keep:
            os.makedirs(arguments.keep, exist_ok=True)
            shutil.copy(name, f"{arguments.keep}/{number}")
    return [f"{number} ({os.path.basename(base)}, {', '.join(done)}): {problem}" for problem in problems]


def run_fuzz(arguments):
    bad = 0
    with tempfile.TemporaryDirectory(prefix="fuzz.") as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        bases = make_bases(folder)
        picked = [arguments.only] if arguments.only is not None else range(arguments.count)
        for problems in pool.map(lambda number: try_damaged(number, bases, folder, arguments), picked):
            for problem in problems:
                print(problem, flush=True)
            bad += bool(problems)
    print(f"damaged images: {len(picked)} tried, {bad} bad (seed {arguments.seed})")
    return bad


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    given = commands.add_parser("try")
    given.add_argument("--memory", action="store_true")
    given.add_argument("images", nargs="+")
    cases = commands.add_parser("cases")
    cases.add_argument("--memory", action="store_true")
    cases.add_argument("file")
    chance = commands.add_parser("run")
    chance.add_argument("--seed", type=int, default=1)
    chance.add_argument("--count", type=int, default=200)
    chance.add_argument("--only", type=int)
    chance.add_argument("--keep")
    arguments = parser.parse_args()
    if arguments.command == "run":
        return 1 if run_fuzz(arguments) else 0
    if arguments.command == "cases":
        return 1 if run_cases(arguments) else 0
    bad = 0
    for image in arguments.images:
        for problem in try_image(image, arguments.memory):
            print(f"{image}: {problem}")
            bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main())
