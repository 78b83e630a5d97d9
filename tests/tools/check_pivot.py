#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Judges a chain whose overlays a crash or a fault left between two backing files, and lets recovery finish it.

usage: check_pivot.py --new NAME --before FOLDER [--witness NAME] [options] FOLDER

The overlays "one" and "two" stand on "mid", and are switched to NAME. What each of the three shows is in the folder
"before", as raw files. Must hold:

- each overlay names one of the two, is sound and shows what it did; NAME shows what "mid" does if an overlay names it;
- after an end with status 0 all name the new one, and after one fault all name the old one, except where only the last
  word failed;
- with a witness: it agrees with the names, and recovery, here one way and there the other, brings all to one side.
"""

import argparse
import filecmp
import json
import os
import re
import subprocess
import sys
import tempfile

import check_image

OVERLAYS = ["one", "two"]
OLD = "mid"


class Bad(Exception):
    """What is wrong."""


def equal(folder, image, raw):
    """Whether the guest's view of the image is what the raw file holds."""
    handle, content = tempfile.mkstemp(prefix=".content-", dir=folder)
    os.close(handle)
    try:
        result = check_image.run(["qemu-img", "convert", "-U", "-t", "unsafe", "-O", "raw", image, content], folder)
        if result.returncode != 0:
            raise Bad(f"{image} cannot be read: {check_image.first_lines(result.stdout)}")
        return filecmp.cmp(content, raw, shallow=False)
    finally:
        os.unlink(content)


def look(options):
    """Judges the overlays; returns the names of their backing files."""
    names = [check_image.backing_name(os.path.join(options.folder, image)) for image in OVERLAYS]
    for image, name in zip(OVERLAYS, names):
        if name not in (OLD, options.new):
            raise Bad(f"{image} names '{name}'")
    if options.new in names and not equal(options.folder, options.new, os.path.join(options.before, OLD + ".raw")):
        raise Bad(f"the overlays name {names}, and {options.new} is not proven")
    for image in OVERLAYS:
        result = check_image.run(["qemu-img", "check", "-q", image], options.folder)
        if result.returncode not in (0, 3):
            raise Bad(f"{image}: {check_image.first_lines(result.stdout)}")
        if not equal(options.folder, image, os.path.join(options.before, image + ".raw")):
            raise Bad(f"{image} shows something else")
    return names


def read_witness(options):
    path = options.witness and os.path.join(options.folder, options.witness)
    if not path or not os.path.exists(path):
        return b""
    with open(path, "rb") as file:
        return file.read()


def witness_state(content):
    """How far the witness says that the switch is: nothing, begin, done."""
    first, newline, rest = content.partition(b"\n")
    try:
        begun = newline and json.loads(first)["state"] == "begin"
    except (ValueError, KeyError, TypeError):
        begun = False
    if not begun:
        return "nothing"
    return "done" if rest.replace(b"\0", b"").rstrip(b"\n") == b'{"state":"done"}' else "begin"


def recover(options, environment, state):
    """Recovery one way or the other, of the overlays of this state."""
    path = os.path.join(options.folder, options.witness)
    content = re.sub(rb'"file":"[^"\n]*/', b'"file":"', read_witness(options))
    # A new file: the state may have the witness under two names.
    with open(path + ".edited", "wb") as file:
        file.write(content)
    os.replace(path + ".edited", path)
    undo = int(environment.get("STATE_INDEX", environment.get("FAULT_N", "0"))) % 2 == 1 and state != "done"
    want = OLD if undo or state == "nothing" else options.new
    way = ["--undo"] if undo else []
    result = subprocess.run([environment["BLKIMG"], "pivot", "--recover", options.witness] + way, cwd=options.folder,
                            env={name: value for name, value in environment.items() if name != "LD_PRELOAD"},
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            errors="replace", timeout=60, check=False)
    if result.returncode != 0:
        raise Bad(f"recovery: status {result.returncode}: {result.stdout}")
    names = look(options)
    if names != [want] * len(OVERLAYS):
        raise Bad(f"recovered {' '.join(way)} from {state} to {names}")


def judge(options, environment):
    names, state = look(options), witness_state(read_witness(options))
    all_old, all_new = (names == [name] * len(OVERLAYS) for name in (OLD, options.new))
    fault = environment.get("FAULT_STATUS")
    ended = (environment.get("STATE_FINAL") == "1" or fault == "0") and not options.either
    if ended and not all_new:
        raise Bad(f"ended with 0, and names {names}")
    # One fault: all are put back. Only where the last word was what failed they stay.
    if fault not in (None, "0") and not environment.get("FAULT_STICKY"):
        if not all_old and not (all_new and state != "nothing"):
            raise Bad(f"after one fault they name {names}, and the state is {state}")
    if not options.witness:
        return
    if ended and state != "done":
        raise Bad(f"ended with 0, and the state is {state}")
    if state == "done" and not all_new:
        raise Bad(f"it is done, and they name {names}")
    if state == "nothing" and not all_old:
        raise Bad(f"nothing is begun, and they name {names}")
    if os.path.exists(os.path.join(options.folder, options.witness)):
        recover(options, environment, state)


def judge_folder(arguments, environment):
    """Returns what is wrong, or None. Arguments and environment as of the command."""
    parser = argparse.ArgumentParser(description="Judges overlays after a crash or a fault of a switch.")
    parser.add_argument("--new", required=True, help="the new backing file")
    parser.add_argument("--before", required=True, help="the folder with what each image shows")
    parser.add_argument("--witness", help="the witness, if there is one")
    parser.add_argument("--either", action="store_true", help="a command that ends with 0 may have undone it all")
    parser.add_argument("folder")
    options = parser.parse_args(arguments)
    options.before = os.path.abspath(options.before)
    try:
        judge(options, environment)
    except Bad as problem:
        return f"{problem}; witness: {read_witness(options).rstrip(bytes(1))!r}"
    return None


if __name__ == "__main__":
    sys.exit(judge_folder(sys.argv[1:], os.environ))
