#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Judges what a backup left that failed, was killed or lost power; prints what is wrong.

usage: check_backup.py --blkimg PROGRAM --disk SOURCE=TARGET=BASE:RAW [--disk ...] [options] FOLDER

For each disk: SOURCE is what it was (content RAW), TARGET is either not there
or complete, and the next backup with --bitmap is right: it is made on each of
TARGET, TARGET.partial and BASE, of which one must be accepted and each that is
accepted must restore RAW. So no bit was lost whose data is not in a good
target. After status 6 TARGET is complete, and with --bitmap-mode accepted as a
base. With --in-place the target exists and may be anything but a backup that it
is not.

The environment that faultloop.py and crashstates.py set says how the run ended.
"""

import argparse
import os
import subprocess
import sys


class Wrong(Exception):
    """What must hold does not."""


def run(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    return subprocess.run(arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False)


def is_same(folder, image, raw):
    return run(folder, "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image, raw).returncode == 0


def is_sound(folder, image):
    return run(folder, "qemu-img", "check", "-q", "-f", "qcow2", image).returncode in (0, 3)


class End:
    """How the run ended. well: None when that is not known (killed)."""

    def __init__(self, environment):
        status = environment.get("FAULT_STATUS")
        self.said = environment.get("FAULT_STDERR", "")
        if status is not None:
            self.well = status == "0"
        else:
            self.well = True if environment.get("STATE_FINAL") == "1" else None
        # Status 6: every target is complete, but a source's bitmaps may not have been switched.
        self.usable = status == "6"


class Disk:
    def __init__(self, text):
        files, self.raw = text.split(":")
        self.source, self.target, self.base = files.split("=")

    def check_source(self, folder):
        if not is_sound(folder, self.source):
            raise Wrong(f"{self.source} is not sound")
        if not is_same(folder, self.source, self.raw):
            raise Wrong(f"{self.source} is not what it was")

    def check_target(self, folder, options, end):
        exists = os.path.exists(os.path.join(folder, self.target))
        if options.in_place and not end.well:
            return
        if end.well and not exists:
            raise Wrong(f"status 0, and no {self.target}")
        if end.usable and (not exists or "do not use" in end.said):
            raise Wrong(f"status 6, and {self.target} cannot be used")
        if not exists:
            return
        if end.well is False and "complete" not in end.said and "do not use" not in end.said:
            raise Wrong(f"nothing is said about {self.target}, which is there")
        if "do not use" in end.said:
            return
        if not is_sound(folder, self.target) or not is_same(folder, self.target, self.raw):
            raise Wrong(f"{self.target} is there and not complete")

    def builds_on_base(self, folder):
        return f"backing file: {self.base}" in run(folder, "qemu-img", "info", self.target).stdout

    def check_next(self, folder, options, end):
        accepted = 0
        for base in (self.target, self.target + ".partial", self.base):
            if not os.path.exists(os.path.join(folder, base)):
                continue
            result = run(folder, options.blkimg, "backup", "-q", "-f", "qcow2", f"--bitmap={options.bitmap}",
                         "--bitmap-sync=never", f"--base={base}", self.source, "next")
            if result.returncode != 0:
                if "in use" in result.stdout:
                    raise Wrong(f"a bitmap is lost: {result.stdout.strip()}")
                if end.usable and base == self.target and options.bitmap_mode and self.builds_on_base(folder):
                    raise Wrong(f"status 6, and {base} is not taken as a base: {result.stdout.strip()}")
                continue
            accepted += 1
            if not is_same(folder, "next", self.raw):
                raise Wrong(f"a backup on {base} is accepted and is not right")
        if not accepted and not (options.in_place and end.well is not True):
            raise Wrong("no base is accepted")

    def check_in_place(self, folder, options, end):
        """The bitmap still marks all that the target may lack."""
        if not options.in_place or end.well:
            return
        if not is_sound(folder, self.target):
            raise Wrong(f"{self.target} is not sound")
        run(folder, options.blkimg, "backup", "-q", "-f", "qcow2", "-n", "--trust", f"--bitmap={options.bitmap}",
            self.source, self.target)
        if not is_same(folder, self.target, self.raw):
            raise Wrong(f"{self.target} cannot be brought up to date")


def judge_folder(arguments, environment):
    """Returns what is wrong, or None. Arguments and environment as of the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blkimg", required=True)
    parser.add_argument("--disk", action="append", type=Disk, required=True)
    parser.add_argument("--bitmap", default="b")
    parser.add_argument("--in-place", action="store_true")
    parser.add_argument("--bitmap-mode", action="store_true", help="the target holds what the bitmap marked")
    parser.add_argument("folder")
    options = parser.parse_args(arguments)
    end = End(environment)
    if end.well is False and not end.said:
        return "nothing was said"
    if end.well and end.said:
        return "status 0, and a message"
    try:
        for disk in options.disk:
            disk.check_source(options.folder)
            disk.check_target(options.folder, options, end)
            disk.check_next(options.folder, options, end)
            disk.check_in_place(options.folder, options, end)
    except Wrong as wrong:
        return str(wrong)
    return None


if __name__ == "__main__":
    sys.exit(judge_folder(sys.argv[1:], os.environ))
