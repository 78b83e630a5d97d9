#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Judges the image that a crash or a fault left: is it sound, is its content old or new?

usage: check_image.py --image NAME [options] FOLDER

A sound image is one that `qemu-img check` calls clean or merely leaking. Then
the guest's view, read through the backing chain, is compared with two raw
files: each sector must equal that of OLD or that of NEW, or with --atomic the
whole must equal one of them. A name that does not exist is fine unless OLD is
given or NEW is required.

The environment that crashstates.py and faultloop.py set makes the check
stricter: after a run that ended with 0 the content must be NEW, as far as
--kept (crash states) or the fault loop asks for it.
"""

import argparse
import os
import struct
import subprocess
import sys
import tempfile

SECTOR = 512
CHUNK = 1 << 16      # small enough that memory for it is used again and not mapped anew each time


def add_options(parser):
    group = parser.add_argument_group("check of an image")
    group.add_argument("--image", metavar="NAME", help="the image to check, a name in the state's folder")
    group.add_argument("--old", metavar="RAW", help="its content before")
    group.add_argument("--new", metavar="RAW", help="its content afterwards")
    group.add_argument("--atomic", action="store_true", help="content wholly old or wholly new")
    group.add_argument("--kept", action="store_true",
                       help="power cut after the command's end with status 0: content must be new")
    group.add_argument("--format", default="qcow2", help="format of the image (qcow2)")
    group.add_argument("--snapshot", action="append", default=[], metavar="NAME=RAW",
                       help="internal snapshot NAME, where it exists, has exactly this content")
    group.add_argument("--snapshots", action="append", default=[], metavar="LIST",
                       help="the names of all internal snapshots, with commas; may be given again: one of these lists")
    group.add_argument("--qemu-img", default="qemu-img", help="the program to check with")


def run(arguments, folder):
    return subprocess.run(arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False)


def first_lines(text, count=2):
    return "; ".join(text.strip().splitlines()[:count])


def allowed(chunk, old, new):
    """None if every sector of the chunk is the old or the new one, else the bad sector's index."""
    for at in range(0, len(chunk), SECTOR):
        sector = chunk[at:at + SECTOR]
        if sector not in (old[at:at + SECTOR], new[at:at + SECTOR]):
            return at // SECTOR
    return None


def compare(content_path, old_path, new_path, atomic):
    """Returns what is wrong with the content, or None."""
    sizes = {os.path.getsize(path) for path in (old_path, new_path) if path}
    size = os.path.getsize(content_path)
    if size not in sizes:
        return f"the image has {size} bytes, not one of {sorted(sizes)}"
    may_be = {path: os.path.getsize(path) == size for path in (old_path, new_path) if path}
    files = {path: open(path, "rb") for path in may_be}
    try:
        with open(content_path, "rb") as content:
            at = 0
            while chunk := content.read(CHUNK):
                others = {path: file.read(CHUNK) for path, file in files.items()}
                for path, other in others.items():
                    may_be[path] = may_be[path] and other == chunk
                if atomic and not any(may_be.values()):
                    return f"content neither wholly old nor wholly new, seen at byte {at}"
                if not atomic and chunk not in others.values():
                    values = list(others.values())
                    bad = allowed(chunk, values[0], values[-1])
                    if bad is not None:
                        return f"sector at byte {at + bad * SECTOR} is neither old nor new"
                at += len(chunk)
    finally:
        for file in files.values():
            file.close()
    return None


def convert_and_compare(options, folder, old, new, atomic, snapshot=None):
    handle, content = tempfile.mkstemp(prefix=".content-", dir=folder)
    os.close(handle)
    try:
        # unsafe: nobody needs this copy to survive anything.
        arguments = [options.qemu_img, "convert", "-t", "unsafe", "-f", options.format, "-O", "raw"]
        if snapshot is not None:
            arguments += ["-l", f"snapshot.name={snapshot}"]
        result = run(arguments + [options.image, content], folder)
        if result.returncode != 0:
            return f"cannot be read: {first_lines(result.stdout)}"
        return compare(content, old, new, atomic)
    finally:
        os.unlink(content)


def backing_name(path):
    """The backing file that the header of a qcow2 image names; empty if there is none."""
    with open(path, "rb") as file:
        head = file.read(20)
        if len(head) < 20 or not head.startswith(b"QFI\xfb"):
            return ""
        offset, length = struct.unpack_from(">QI", head, 8)
        file.seek(offset)
        return file.read(length).decode(errors="replace") if offset else ""


def snapshot_names(path):
    """The names of a qcow2 image's snapshots, in their order. Read from the file, which is known to be sound:
    one program less to start."""
    names = []
    with open(path, "rb") as file:
        file.seek(60)
        count, offset = struct.unpack(">IQ", file.read(12))
        for _ in range(count):
            file.seek(offset)
            id_bytes, name_bytes, extra_bytes = struct.unpack_from(">12xHH20xI", file.read(40))
            length = 40 + extra_bytes + id_bytes + name_bytes
            names.append(file.read(length - 40)[extra_bytes + id_bytes:].decode(errors="replace"))
            offset += (length + 7) // 8 * 8
    return names


def check_state(options, folder, environment):
    """Returns what is wrong with the state in the folder, or None."""
    must_be_new = environment.get("FAULT_STATUS") == "0" or (
        options.kept and environment.get("STATE_FINAL") == "1")
    if not os.path.lexists(os.path.join(folder, options.image)):
        if options.old or (must_be_new and options.new):
            return f"{options.image} is gone"
        return None
    if options.format != "raw":
        result = run([options.qemu_img, "check", "-q", "-f", options.format, options.image], folder)
        if result.returncode not in (0, 3):
            return f"qemu-img check: status {result.returncode}: {first_lines(result.stdout)}"
    old, new = options.old, options.new
    if must_be_new and new:
        old = None
    if old or new:
        problem = convert_and_compare(options, folder, old, new, options.atomic)
        if problem:
            return problem
    if options.snapshot or options.snapshots:
        there = snapshot_names(os.path.join(folder, options.image))
        if options.snapshots and ",".join(there) not in options.snapshots:
            return f"the snapshots are {there}"
        for name, raw in (item.split("=", 1) for item in options.snapshot):
            if name in there:
                problem = convert_and_compare(options, folder, raw, raw, True, snapshot=name)
                if problem:
                    return f"snapshot {name}: {problem}"
    return None


def absolute_references(options):
    """The check runs in another folder than it was started from."""
    options.old = options.old and os.path.abspath(options.old)
    options.new = options.new and os.path.abspath(options.new)
    options.snapshot = ["{}={}".format(name, os.path.abspath(raw))
                        for name, raw in (item.split("=", 1) for item in options.snapshot)]


def judge_folder(arguments, environment):
    """Returns what is wrong, or None. Arguments and environment as of the command."""
    parser = argparse.ArgumentParser(description="Judges the image that a crash or a fault left.")
    add_options(parser)
    parser.add_argument("folder")
    options = parser.parse_args(arguments)
    if options.image is None:
        parser.error("--image is needed")
    absolute_references(options)
    return check_state(options, options.folder, environment)


def main():
    problem = judge_folder(sys.argv[1:], os.environ)
    if problem:
        print(problem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
