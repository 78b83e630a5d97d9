#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Counts the instructions that commands execute on fixed inputs, and compares with what is recorded.

usage: instructions.py --check BUILDDIR      fails if a command needs over 5 % more than recorded
       instructions.py --renew BUILDDIR      records what it needs now: after a change that is worth it

Options: --only NAME (a command, may be given again), --record FILE (default: tests/instructions.tsv), --blkimg PATH.

callgrind counts, so the load of the machine does not matter. Counted is what runs in the program itself: libraries
choose their code by the processor, and change with the system. What the compiler makes of the program differs, too,
so a record holds for one compiler, its flags, one set of libraries and one kind of processor. Exit status: 0 within
bounds, 1 more than recorded or a command failed, 77 no record for this build.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "bench"))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

import images  # noqa: E402 (found by the lines above)
import mkimage  # noqa: E402
from images import GIB, MIB  # noqa: E402

BOUND = 1.05
NO_RECORD = 77

# One worker each, so that nobody waits for a lock.
COMMANDS = {
    "info": "info -f qcow2 bitmaps.qcow2",
    "check": "check -f qcow2 shuffled.qcow2",
    "map": "map --output=json -f qcow2 shuffled.qcow2",
    "convert": "convert -m 1 -t unsafe -f raw -O qcow2 source.raw target.qcow2",
    "convert -c": "convert -m 1 -t unsafe -c -f raw -O qcow2 source.raw target.qcow2",
    "backup": "backup -m 1 -t unsafe -f qcow2 source.qcow2 target.qcow2",
}


def make_inputs(where):
    os.chdir(where)
    images.write_raw("source.raw", 64 * MIB, 24 * MIB, seed=1)
    images.write_qcow2("source.qcow2", 1 * GIB, images.in_order(1024, every=4, run=16))
    images.write_qcow2("shuffled.qcow2", 4 * GIB, images.shuffled(65536))
    images.write_qcow2("bitmaps.qcow2", 1 * GIB, images.in_order(16))
    mkimage.add_bitmaps("bitmaps.qcow2", 200, flags=2)


def without_debug_info(blkimg):
    """A copy of the program: what some compilers write about their code is more than valgrind can read."""
    subprocess.run(["strip", "--strip-debug", "-o", "blkimg", blkimg], check=True)
    return os.path.abspath("blkimg")


def count(blkimg, command):
    """Instructions that the program executes."""
    if os.path.exists("target.qcow2"):
        os.unlink("target.qcow2")
    done = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=counts", "--dump-line=no", blkimg,
                           *command.split()], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"{command}: status {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}")
    return own_share("counts", os.path.realpath(blkimg))


def own_share(profile, program):
    """The sum of a profile's lines that are of the program's object. What a call costs inside, which follows a line
    "calls=", is counted where it is executed."""
    names = {}
    total, own, inside_call = 0, False, False
    with open(profile, encoding="utf-8", errors="replace") as file:
        for line in file:
            object_line = re.match(r"(c?ob)=\((\d+)\)(?: (.*))?", line)
            if object_line:
                kind, number, name = object_line.groups()
                if name:
                    names[number] = name
                if kind == "ob":
                    own = os.path.realpath(names[number]) == program
            elif line.startswith("calls="):
                inside_call = True
            elif re.match(r"[+*\d-]", line):
                if own and not inside_call:
                    total += int(line.split()[1])
                inside_call = False
    if total == 0:
        sys.exit("the profile names no instruction of the program")
    return total


def build_key(builddir):
    """What counts depend on, besides the source."""
    config = {}
    with open(os.path.join(builddir, "config.mk"), encoding="utf-8") as file:
        for line in file:
            name, _, value = line.partition(" = ")
            config[name] = value.split()
    compiler = [word for word in config["CC"] if os.path.basename(word) != "ccache"]
    said = [subprocess.run([*compiler, option], stdout=subprocess.PIPE, check=True).stdout.decode()
            for option in ("--version", "-dumpversion")]
    name = "clang" if "clang" in said[0] else "gcc"
    flags = [word for word in config["CFLAGS"] + config["CPPFLAGS"] + config["HARDENING"] if not word.startswith("-g")]
    libraries = sorted({word.removeprefix("-l") for word in config["LIBS"]})
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        # valgrind knows nothing wider.
        wide = " avx2" if re.search(r"^flags.* avx2\b", file.read(), re.MULTILINE) else ""
    return "; ".join([f"{name} {said[1].split('.')[0].strip()}", platform.machine() + wide, " ".join(flags),
                      " ".join(libraries)])


def read_record(path):
    """The comment at the top, and {(key, command): count}."""
    head, counts = [], {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("#"):
                head.append(line)
            elif line.strip():
                key, command, number = line.rstrip("\n").split("\t")
                counts[key, command] = int(number)
    return head, counts


def check(blkimg, wanted, record, key):
    _, counts = read_record(record)
    if not any(recorded == key for recorded, _ in counts):
        print(f"no counts are recorded for {key}")
        return NO_RECORD
    grown = False
    for name in wanted:
        if (key, name) not in counts:
            print(f"{name}: not recorded; renew with tests/tools/instructions.py --renew BUILDDIR")
            grown = True
            continue
        before = counts[key, name]
        now = count(blkimg, COMMANDS[name])
        if now > before * BOUND:
            # How threads meet differs a little from run to run.
            now = min(now, count(blkimg, COMMANDS[name]))
        more = now > before * BOUND
        grown = grown or more
        print(f"{name}: {now} instructions, {before} recorded, {now / before - 1:+.1%}{': too many' if more else ''}")
    return 1 if grown else 0


def renew(blkimg, wanted, record, key):
    head, counts = read_record(record)
    for name in wanted:
        counts[key, name] = count(blkimg, COMMANDS[name])
    with open(record + ".new", "w", encoding="utf-8") as file:
        file.writelines(head)
        for (recorded, name), number in sorted(counts.items()):
            file.write(f"{recorded}\t{name}\t{number}\n")
    os.rename(record + ".new", record)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true")
    what.add_argument("--renew", action="store_true")
    parser.add_argument("--only", action="append", choices=COMMANDS, metavar="NAME")
    parser.add_argument("--record", default=os.path.join(HERE, "..", "instructions.tsv"), metavar="FILE")
    parser.add_argument("--blkimg", metavar="PATH")
    parser.add_argument("builddir")
    chosen = parser.parse_args()
    record = os.path.abspath(chosen.record)
    blkimg = os.path.abspath(chosen.blkimg or os.path.join(chosen.builddir, "blkimg"))
    key = build_key(chosen.builddir)
    with tempfile.TemporaryDirectory(prefix="blkimg-instructions.") as where:
        make_inputs(where)
        done = (check if chosen.check else renew)(without_debug_info(blkimg), chosen.only or list(COMMANDS), record, key)
        os.chdir("/")
    return done


if __name__ == "__main__":
    sys.exit(main())
