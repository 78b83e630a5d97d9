#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sets every field of a qcow2 image to bad values, and compares what QEMU and "blkimg check" make of it.

    openparity.py [--blkimg PROGRAM] [--only TEXT] [--verbose]

For every image made:

  * where QEMU does not open the image, "blkimg check" does not end with 0, unless BLIND has the case;
  * where QEMU opens it and finds nothing wrong, "blkimg check" ends with 0, unless STRICT has the case;
  * what "blkimg check -r all" calls whole is opened by QEMU and found whole, unless FOREIGN has the case;
  * what is corrupt is whole after "-r all", unless LEFT has the case: there the repair would lose something.

"QEMU opens" means that qemu-io opens a copy for writing. The four tables say why, and each row of them must be met.
--only tries the cases whose name has TEXT and forgets that; --verbose shows what the programs said.
"""

import argparse
import concurrent.futures
import fnmatch
import os
import shutil
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import mkimage

# Patterns of names of cases, and why.
BLIND = {
    "full: incompatible=old|2": "the corrupt bit forbids writing; the image is whole, and -r all clears the bit",
}
STRICT = {
    "v2: backing_offset=8": "the backing file's name would lie inside the header",
    "v2: backing_offset=71": "the backing file's name would lie inside the header",
    "v2: snapshot_count=3": "the third snapshot is what QEMU reads behind the end of the file: zeroes",
    "backed: 0xe2792aca+0": "two extensions name different formats of the backing file: programs differ in which counts",
    "backed: 0xe2792aca+15": "two extensions name different formats of the backing file: programs differ in which counts",
}
FOREIGN = {
    "backed: 0xe2792aca+1": "the backing file is none of a check's business, nor is whether its format is known",
}
LEFT = {
    "full: l1_entries=1<<22": "the L1 table goes on past the end: what it mapped may have been cut off",
    "*: snapshot_count=*": "what lies behind the known snapshots may be others, damaged",
    "*: snapshot[[]0[]].l1_entries=*": "a table of the snapshot may have been cut off",
    "*: snapshot[[]0[]].l1_offset=*": "where the snapshot's table is is not known",
    "*: snapshot[[]0[]].*_bytes=*": "the entries that follow cannot be found",
    "*: snapshot*_offset=*": "where the snapshots are is not known",
    "*: 0x537be77+*": "an encryption header, though the image seems not to be encrypted: the method may be lost",
    "backed: 0xe2792aca+1*": "without a known format the backing file would be probed",
    "v2: l1_offset=*": "where the L1 table is is not known",
    "full: l1_offset=*": "where the L1 table is is not known",
    "*: l1_entries=*": "the L1 table overlaps what follows it",
    "full: refcount_order=0": "one bit cannot count what a snapshot shares; amend widens it",
}

M64 = (1 << 64) - 1
OFFSETS = ["0", "8", "old+512", "cluster", "end", "1<<40", "1<<55", "1<<56", "1<<62", "1<<63", f"{M64-65535}"]

HEADER = {
    "backing_offset": ["0", "8", "71", "72", "104", "112", "65535", "65536", "1<<63"],
    "backing_bytes": ["0", "1", "1023", "1024", "0xffffffff"],
    "cluster_bits": ["0", "8", "9", "15", "17", "21", "22", "0xffffffff"],
    "size": ["0", "1", "old+1", "old-512", "old+cluster", "1<<40", "(1<<63)-1", "1<<63", str(M64)],
    "crypt": ["1", "2", "3", "0xffffffff"],
    "l1_entries": ["0", "1", "old-1", "old+1", "old+9000", "1<<22", "(1<<22)+1", "0xffffffff"],
    "l1_offset": OFFSETS,
    "reftable_offset": OFFSETS,
    "reftable_clusters": ["0", "2", "128", "129", "0xffffffff"],
    "snapshot_count": ["0", "1", "3", "65536", "65537", "0xffffffff"],
    "snapshots_offset": OFFSETS,
}
HEADER3 = {
    "incompatible": ["old|1", "old|2", "old|4", "old|8", "old|16", "old|32", "old|1<<63"],
    "compatible": ["1", "2", "1<<63", str(M64)],
    "autoclear": ["0", "1", "2", "3", "4", "1<<63", str(M64)],
    "refcount_order": ["0", "3", "5", "6", "7", "0xffffffff"],
    "header_bytes": ["0", "72", "100", "104", "105", "108", "112", "120", "65536", "65544", "0xffffffff"],
    "compression": ["1", "2", "255"],
}
BITMAPS = {
    "count": ["0", "1", "3", "65535", "65536", "0xffffffff"],
    "reserved": ["1", "0xffffffff"],
    "directory_bytes": ["0", "8", "old-8", "old+8", "old+1", "1<<26", "1<<40", "1<<63", str(M64)],
    "directory_offset": OFFSETS,
}
BITMAP = {
    "table_offset": OFFSETS,
    "table_entries": ["0", "2", "100000", "1<<27", "(1<<27)+1", "0xffffffff"],
    "flags": ["0", "1", "2", "3", "4", "5", "6", "8", "1<<31"],
    "type": ["0", "2", "255"],
    "granularity_bits": ["0", "8", "9", "10", "31", "32", "63", "64", "255"],
    "name_bytes": ["0", "1", "3", "7", "8", "9", "1023", "1024", "65535"],
    "extra_bytes": ["1", "2", "8", "1024", "1025", "0xffffffff"],
}
SNAPSHOT = {
    "l1_offset": OFFSETS,
    "l1_entries": ["0", "1", "old+1", "1<<22", "(1<<22)+1", "0xffffffff"],
    "id_bytes": ["0", "2", "3", "65535"],
    "name_bytes": ["0", "2", "4", "65535"],
    "seconds": ["0xffffffff"], "nanoseconds": ["0xffffffff"], "clock": [str(M64)],
    "vm_state_bytes": ["1", "0xffffffff"],
    "extra_bytes": ["0", "8", "15", "16", "32", "1024", "1025", "0xffffffff"],
    "vm_state_bytes_large": ["1", "1<<40", str(M64)],
    "disk_bytes": ["0", "1", "512", "old+512", "1<<40", "1<<62", str(M64)],
}


def edits(base, prefix, table):
    for field, values in table.items():
        for value in values:
            yield base, [f"{prefix}{field}={value}"]


def extension_cases():
    """(base, list of (type, length said)): extensions put before the end mark."""
    fmt, names, bitmaps = mkimage.EXT_BACKING_FORMAT, mkimage.EXT_FEATURE_NAMES, mkimage.EXT_BITMAPS
    luks, data_file = 0x0537BE77, 0x44415441
    for kind in (0, fmt, names, bitmaps, luks, data_file, 0x1234):
        for length in (0, 1, 7, 8, 16, 24, 48, 49, 1023, 1024, 70000, 0xFFFFFFF8, 0xFFFFFFFF):
            yield "plain", [(kind, length)]
        yield "plain", [(kind, 16), (kind, 16)]
    for kind in (fmt, bitmaps, data_file):
        yield "full", [(kind, 24)]
    for length in (0, 1, 15, 16, 1023, 1024):
        yield "backed", [(fmt, length)]
        yield "data", [(data_file, length)]


def put_extensions(image, extensions):
    """At the end of the list, as the image has room; the end mark moves."""
    backing = b""
    if image.field("backing_offset"):
        backing = image.read(image.field("backing_offset"), image.field("backing_bytes"))
    for found, at, _ in image.extensions():
        if found == 0:
            break
    at -= 8
    for kind, length in extensions:
        data = (b"qcow2\0" * 200 if kind != mkimage.EXT_BITMAPS else bytes(1024))[:min(length, 1200)]
        image.write(at, struct.pack(">II", kind, length) + data.ljust(mkimage.pad8(len(data)), b"\0"))
        at += 8 + mkimage.pad8(len(data))
    image.write(at, bytes(8))
    if backing:
        image.write(at + 8, backing)
        image.put(*mkimage.HEADER["backing_offset"], at + 8)


class Parity:
    """Makes the bases in a folder, and judges cases there."""

    def __init__(self, folder, blkimg):
        self.folder, self.blkimg = folder, blkimg

    def run(self, *command, cwd=None):
        done = subprocess.run(command, cwd=cwd or self.folder, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=60, errors="replace")
        return done.returncode, (done.stderr.strip() or done.stdout.strip())

    def must(self, *command):
        status, text = self.run(*command)
        if status:
            raise SystemExit(f"{command}: {text}")

    def qio(self, image, *commands):
        self.must("qemu-io", *[word for command in commands for word in ("-c", command)], image)

    def make_bases(self):
        create = ("qemu-img", "create", "-q", "-f", "qcow2")
        for base, options in (("full", []), ("v2", ["-o", "compat=0.10"])):
            self.must(*create, *options, base, "2M")
            self.qio(base, "write -P 1 0 100k")
            self.must("qemu-img", "snapshot", "-c", "one", base)
            self.qio(base, "write -P 2 64k 64k")
            self.must("qemu-img", "snapshot", "-c", "two", base)
        self.must("qemu-img", "bitmap", "--add", "full", "bitmap-0")
        self.must("qemu-img", "bitmap", "--add", "full", "bitmap-1")
        self.must(*create, "plain", "2M")
        self.qio("plain", "write -P 1 0 100k")
        self.must(*create, "-b", "plain", "-F", "qcow2", "backed", "2M")
        self.must(*create, "-o", "data_file=raw", "data", "2M")
        for base, flags in (("extra", 0), ("extra4", 4)):
            shutil.copy(os.path.join(self.folder, "plain"), os.path.join(self.folder, base))
            mkimage.add_bitmaps(os.path.join(self.folder, base), 2, extra_bytes=8, flags=flags)

    def make(self, folder, base, changes):
        """The image "a" of a case, in a folder of its own with what it refers to."""
        os.mkdir(folder)
        image = os.path.join(folder, "a")
        shutil.copy(os.path.join(self.folder, base), image)
        for name, user in (("plain", "backed"), ("raw", "data")):
            if base == user:
                shutil.copy(os.path.join(self.folder, name), folder)
        with mkimage.Image(image) as opened:
            if changes and isinstance(changes[0], tuple):
                put_extensions(opened, changes)
                return
            for change in changes:
                opened.target_set(*change.split("=", 1))

    def qemu(self, folder):
        """(does QEMU open "a" for writing, its status of a check or None, what it said)"""
        shutil.copy(os.path.join(folder, "a"), os.path.join(folder, "copy"))
        status, said = self.run("qemu-io", "-f", "qcow2", "-c", "quit", "copy", cwd=folder)
        if status:
            return False, None, said
        return True, *self.run("qemu-img", "check", "-f", "qcow2", "a", cwd=folder)

    def judge(self, number, base, changes):
        """(name, what kind of case it is or None, texts)"""
        folder = os.path.join(self.folder, f"case{number}")
        name = f"{base}: " + ", ".join(c if isinstance(c, str) else f"{c[0]:#x}+{c[1]}" for c in changes)
        self.make(folder, base, changes)
        opens, checked, said = self.qemu(folder)
        ours, text = self.run(self.blkimg, "check", "-f", "qcow2", "a", cwd=folder)
        texts = [f"qemu: {checked} {said[:300]}", f"blkimg: {ours} {text[:300]}"]
        kinds = set()
        if ours not in (0, 1, 2, 3):
            kinds.add("CRASH")
        if not opens and ours == 0:
            kinds.add("BLIND")
        if checked == 0 and ours != 0:
            kinds.add("STRICT")
        if ours in (0, 2, 3):
            repaired, text = self.run(self.blkimg, "check", "-f", "qcow2", "-r", "all", "a", cwd=folder)
            texts.append(f"repair: {repaired} {text[:300]}")
            if repaired == 0 and (ours or not opens):
                opens, checked, said = self.qemu(folder)
                texts.append(f"qemu after repair: {checked} {said[:300]}")
                kinds |= {"FOREIGN"} if checked != 0 else set()
            elif repaired:
                kinds.add("LEFT")
        shutil.rmtree(folder)
        return name, kinds, texts


def all_cases():
    bitmap = {field: values for field, values in BITMAP.items() if field != "extra_bytes"}
    cases = [*edits("full", "", HEADER), *edits("full", "", HEADER3), *edits("v2", "", HEADER),
             *edits("full", "bitmaps.", BITMAPS), *edits("full", "bitmap[0].", BITMAP),
             *edits("full", "snapshot[0].", SNAPSHOT),
             *edits("v2", "snapshot[0].", {"extra_bytes": SNAPSHOT["extra_bytes"]}), *extension_cases(),
             ("extra", []), ("extra4", []), *edits("extra", "bitmap[0].", {"flags": bitmap["flags"]})]
    cases += [(base, ["snapshot_count=0", f"snapshots_offset={value}"]) for base in ("full", "v2") for value in OFFSETS]
    return cases


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--blkimg", default=os.environ.get("BLKIMG", "blkimg"))
    parser.add_argument("--only", default="")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    tables = {"BLIND": BLIND, "STRICT": STRICT, "FOREIGN": FOREIGN, "LEFT": LEFT, "CRASH": {}}
    with tempfile.TemporaryDirectory() as folder:
        parity = Parity(folder, os.path.abspath(options.blkimg))
        parity.make_bases()
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(lambda item: parity.judge(item[0], *item[1]), enumerate(all_cases())))
    results = [result for result in results if options.only in result[0]]
    met, bad = set(), 0
    for name, kinds, texts in results:
        unexpected = []
        for kind in kinds:
            rows = [row for row in tables[kind] if fnmatch.fnmatchcase(name, row)]
            met |= {(kind, row) for row in rows}
            unexpected += [] if rows else [kind]
        bad += bool(unexpected)
        if unexpected or options.verbose:
            print(f"{name}: {' '.join(sorted(unexpected)) or 'as it should be'}", *texts, sep="\n    ")
    for kind, table in tables.items():
        for row in table:
            if not options.only and (kind, row) not in met:
                print(f"{kind} has a row that no case needs: {row}")
                bad += 1
    print(f"{len(results)} cases, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
