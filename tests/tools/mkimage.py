#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes qcow2 images field by field, and damages them.

usage: mkimage.py new FILE [FIELD=VALUE...]           a small image, see new_image()
       mkimage.py edit FILE [TARGET=VALUE...]         changes, in this order
       mkimage.py get FILE TARGET...                  prints values, a line each
       mkimage.py snapshots FILE COUNT [FIELD=VALUE...]   a table of snapshots, see add_snapshots()
       mkimage.py bitmaps FILE COUNT [FIELD=VALUE...]     a directory of bitmaps, see add_bitmaps()
       mkimage.py extension FILE TYPE BYTES           a header extension with that many bytes

A TARGET is

    l1_offset, version, ...    a field of the header (HEADER)
    file_bytes                 the length of the file
    l1[3]                      an entry of the L1 table
    l2[5]                      the L2 entry of guest cluster 5; subclusters[5] its second word
    refcount[7]                the count of host cluster 7
    reftable[0]                an entry of the refcount table
    snapshot[0].l1_offset      a field of a snapshot (SNAPSHOT)
    bitmap[0].flags            a field of a bitmap in the directory (BITMAP)
    bitmap_table[0][3]         an entry of a bitmap's table
    bitmaps.count              a field of the bitmaps extension (BITMAPS)
    u8[9] u16[9] u32[9] u64[9] the number at a byte offset of the file

An index and a VALUE may be an expression; it knows "old" (the value so far), any TARGET that is a name, "cluster"
(the cluster size), "end" (the end of the file, in whole clusters) and COPIED, COMPRESSED.

Nothing that is written is validated, on purpose.
"""

import os
import re
import struct
import sys

MAGIC = 0x514649FB
COPIED = 1 << 63
COMPRESSED = 1 << 62
OFFSET = 0x00FFFFFFFFFFFE00

EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875

# Name: (offset, bytes)
HEADER = {
    "magic": (0, 4), "version": (4, 4), "backing_offset": (8, 8), "backing_bytes": (16, 4),
    "cluster_bits": (20, 4), "size": (24, 8), "crypt": (32, 4), "l1_entries": (36, 4),
    "l1_offset": (40, 8), "reftable_offset": (48, 8), "reftable_clusters": (56, 4),
    "snapshot_count": (60, 4), "snapshots_offset": (64, 8), "incompatible": (72, 8),
    "compatible": (80, 8), "autoclear": (88, 8), "refcount_order": (96, 4),
    "header_bytes": (100, 4), "compression": (104, 1),
}
SNAPSHOT = {
    "l1_offset": (0, 8), "l1_entries": (8, 4), "id_bytes": (12, 2), "name_bytes": (14, 2),
    "seconds": (16, 4), "nanoseconds": (20, 4), "clock": (24, 8), "vm_state_bytes": (32, 4),
    "extra_bytes": (36, 4), "vm_state_bytes_large": (40, 8), "disk_bytes": (48, 8),
}
BITMAP = {
    "table_offset": (0, 8), "table_entries": (8, 4), "flags": (12, 4), "type": (16, 1),
    "granularity_bits": (17, 1), "name_bytes": (18, 2), "extra_bytes": (20, 4),
}
BITMAPS = {"count": (0, 4), "reserved": (4, 4), "directory_bytes": (8, 8), "directory_offset": (16, 8)}


def pad8(length):
    return (length + 7) // 8 * 8


class Image:
    """A qcow2 file, opened for reading and writing."""

    def __init__(self, name, mode="r+b"):
        self.file = open(name, mode)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    # --- bytes ---

    def read(self, offset, length):
        if offset >= 1 << 63:
            return bytes(length)
        self.file.seek(offset)
        return self.file.read(length).ljust(length, b"\0")

    def write(self, offset, data):
        self.file.seek(offset)
        self.file.write(data)
        self.file.flush()

    def get(self, offset, length):
        return int.from_bytes(self.read(offset, length), "big")

    def put(self, offset, length, value):
        self.write(offset, (value % (1 << (8 * length))).to_bytes(length, "big"))

    @property
    def file_bytes(self):
        return os.fstat(self.file.fileno()).st_size

    # --- structures ---

    def field(self, name):
        return self.get(*HEADER[name])

    @property
    def cluster(self):
        return 1 << min(self.field("cluster_bits"), 21)

    @property
    def end(self):
        return -(-self.file_bytes // self.cluster) * self.cluster

    @property
    def l2_entry_bytes(self):
        return 16 if self.field("version") >= 3 and self.field("incompatible") >> 4 & 1 else 8

    def refcount_order(self):
        return self.field("refcount_order") if self.field("version") >= 3 else 4

    def extensions(self):
        """Yields type, offset of the data, length."""
        at = self.field("header_bytes") if self.field("version") >= 3 else 72
        while at + 8 <= self.cluster:
            kind, length = self.get(at, 4), self.get(at + 4, 4)
            yield kind, at + 8, length
            if kind == 0:
                return
            at += 8 + pad8(length)

    def extension(self, wanted):
        for kind, at, _ in self.extensions():
            if kind == wanted:
                return at
        raise KeyError(f"no extension {wanted:#x}")

    def snapshot_at(self, index):
        at = self.field("snapshots_offset")
        for _ in range(index):
            at += pad8(40 + self.get(at + 36, 4) + self.get(at + 12, 2) + self.get(at + 14, 2))
        return at

    def bitmap_at(self, index):
        at = self.get(self.extension(EXT_BITMAPS) + 16, 8)
        for _ in range(index):
            at += pad8(24 + self.get(at + 18, 2) + self.get(at + 20, 4))
        return at

    def refcount_place(self, index):
        """The byte that has the count (or its beginning), its length, and shift and mask in it."""
        order = self.refcount_order()
        per_block = self.cluster * 8 >> order
        block = self.get(self.field("reftable_offset") + index // per_block * 8, 8)
        if not block:
            raise KeyError(f"no refcount block for cluster {index}")
        bit = (index % per_block) << order
        if order >= 3:
            return block + bit // 8, 1 << (order - 3), 0, (1 << (1 << order)) - 1
        return block + bit // 8, 1, bit % 8, (1 << (1 << order)) - 1

    # --- targets ---

    def place(self, target):
        """(offset, bytes) of a target that is whole bytes."""
        if target in HEADER:
            return HEADER[target]
        match = re.fullmatch(r"(\w+)\.(\w+)", target)
        if match and match[1] == "bitmaps":
            offset, length = BITMAPS[match[2]]
            return self.extension(EXT_BITMAPS) + offset, length
        match = re.fullmatch(r"(\w+)\[([^]]*)\](?:\.(\w+)|\[([^]]*)\])?", target)
        if not match:
            raise KeyError(f"what is {target}?")
        kind, index = match[1], self.value(match[2])
        if kind in ("u8", "u16", "u32", "u64"):
            return index, int(kind[1:]) // 8
        if kind == "l1":
            return self.field("l1_offset") + 8 * index, 8
        if kind in ("l2", "subclusters"):
            per_table = self.cluster // self.l2_entry_bytes
            table = self.get(self.field("l1_offset") + index // per_table * 8, 8) & OFFSET
            if not table:
                raise KeyError(f"guest cluster {index} has no L2 table")
            at = table + index % per_table * self.l2_entry_bytes
            return at + (8 if kind == "subclusters" else 0), 8
        if kind == "reftable":
            return self.field("reftable_offset") + 8 * index, 8
        if kind == "snapshot":
            offset, length = SNAPSHOT[match[3]]
            return self.snapshot_at(index) + offset, length
        if kind == "bitmap":
            offset, length = BITMAP[match[3]]
            return self.bitmap_at(index) + offset, length
        if kind == "bitmap_table":
            return self.get(self.bitmap_at(index), 8) + 8 * self.value(match[4]), 8
        raise KeyError(f"what is {target}?")

    def target_get(self, target):
        if target in ("file_bytes", "cluster", "end"):
            return getattr(self, target)
        match = re.fullmatch(r"refcount\[([^]]*)\]", target)
        if match:
            at, length, shift, mask = self.refcount_place(self.value(match[1]))
            return self.get(at, length) >> shift & mask
        return self.get(*self.place(target))

    def target_set(self, target, expression):
        if target == "file_bytes":
            self.file.truncate(self.value(expression, self.file_bytes))
            return
        value = self.value(expression, self.target_get(target))
        match = re.fullmatch(r"refcount\[([^]]*)\]", target)
        if match:
            at, length, shift, mask = self.refcount_place(self.value(match[1]))
            self.put(at, length, self.get(at, length) & ~(mask << shift) | (value & mask) << shift)
        else:
            self.put(*self.place(target), value)

    def value(self, expression, old=None):
        image = self

        class Names(dict):
            def __missing__(self, name):
                return image.target_get(name)

        known = Names(old=old, COPIED=COPIED, COMPRESSED=COMPRESSED, __builtins__={})
        return int(eval(expression, known, known))  # the caller's own arguments

    # --- growing ---

    def append(self, data, length=None):
        """Puts data into new clusters at the end of the file, counted once where there is a block for them."""
        at = self.end
        length = max(length or 0, len(data), 1)
        self.write(at, data)
        self.file.truncate(at + -(-length // self.cluster) * self.cluster)
        for index in range(at // self.cluster, self.end // self.cluster):
            try:
                self.target_set(f"refcount[{index}]", "1")
            except KeyError:
                break
        return at

    def add_extension(self, kind, data):
        """Puts an extension before the end mark. The backing name must not be in the way."""
        for found, at, _ in self.extensions():
            if found == 0:
                self.write(at - 8, struct.pack(">II", kind, len(data)) + data.ljust(pad8(len(data)), b"\0") + bytes(8))
                return


def new_image(name, **options):
    """A header, the refcount table, a block, L1, one L2 table and `data` clusters of bytes 0x11, 0x22, ...

    Options: any field of the header, and data (default 3).
    """
    data = options.pop("data", 3)
    bits = options.get("cluster_bits", 16)
    cluster = 1 << bits
    version = options.get("version", 3)
    incompatible = options.get("incompatible", 0)
    order = options.get("refcount_order", 4)
    size = options.get("size", 64 * cluster)
    entry_bytes = 16 if incompatible >> 4 & 1 else 8
    entries = -(-size // (cluster * (cluster // entry_bytes)))
    l1_clusters = -(-entries * 8 // cluster)
    fields = {
        "magic": MAGIC, "version": version, "cluster_bits": bits, "size": size, "l1_entries": entries,
        "l1_offset": 3 * cluster, "reftable_offset": cluster, "reftable_clusters": 1,
    }
    if version >= 3:
        fields.update(incompatible=incompatible, refcount_order=order, header_bytes=112)
    fields.update(options)

    with open(name, "wb"):
        pass
    with Image(name) as image:
        for field, value in fields.items():
            image.put(*HEADER[field], value)
        l2 = (3 + l1_clusters) * cluster
        image.file.truncate(l2 + (1 + data) * cluster)
        image.put(cluster, 8, 2 * cluster)
        image.put(3 * cluster, 8, l2 | COPIED)
        for i in range(data):
            at = l2 + (1 + i) * cluster
            image.put(l2 + i * entry_bytes, 8, at | COPIED)
            if entry_bytes == 16:
                image.put(l2 + i * 16 + 8, 8, 0xFFFFFFFF)
            image.write(at, bytes([0x11 * (i % 15 + 1)]) * cluster)
        for i in range(image.end // cluster):
            bit = i << order
            at = 2 * cluster + bit // 8
            if order >= 3:
                image.put(at, 1 << (order - 3), 1)
            else:
                image.put(at, 1, image.get(at, 1) | 1 << bit % 8)


def add_snapshots(name, count, **options):
    """A snapshot table at the end of the file. Each has the L1 table l1_offset with l1_entries (default: none).

    Options: id_bytes, name_bytes, extra_bytes (default 16), l1_offset, l1_entries; header: what the header says of the count.
    """
    extra = options.get("extra_bytes", 16)
    table = bytearray()
    with Image(name) as image:
        disk = image.field("size")
        for index in range(count):
            ident = str(index + 1).rjust(options.get("id_bytes", 0), "0").encode()
            title = f"s{index + 1}".ljust(options.get("name_bytes", 0), "x").encode()
            table += struct.pack(">QIHHIIQII", options.get("l1_offset", 0), options.get("l1_entries", 0),
                                 len(ident), len(title), 1700000000, 0, 0, 0, extra)
            table += struct.pack(">QQ", 0, disk).ljust(extra, b"\0")[:extra] + ident + title
            table += bytes(pad8(len(table)) - len(table))
        at = image.append(bytes(table))
        image.put(*HEADER["snapshots_offset"], at)
        image.put(*HEADER["snapshot_count"], options.get("header", count))


def add_bitmaps(name, count, **options):
    """A bitmap directory at the end of the file, and one table of one entry (all zeroes) for each bitmap.

    Options: name_bytes, granularity_bits (16), flags (0), extra_bytes (0), shared (1: all have one table).
    """
    directory = bytearray()
    with Image(name) as image:
        entries = -(-image.field("size") // ((image.cluster * 8) << options.get("granularity_bits", 16)))
        table = image.append(bytes(8 * entries)) if options.get("shared") else 0
        for index in range(count):
            title = f"b{index}".ljust(options.get("name_bytes", 0), "x").encode()
            extra = options.get("extra_bytes", 0)
            at = table or image.append(bytes(8 * entries))
            directory += struct.pack(">QIIBBHI", at, entries, options.get("flags", 0), options.get("type", 1),
                                     options.get("granularity_bits", 16), len(title), extra)
            directory += bytes(extra) + title
            directory += bytes(pad8(len(directory)) - len(directory))
        at = image.append(bytes(directory))
        image.add_extension(EXT_BITMAPS, struct.pack(">IIQQ", count, 0, len(directory), at))
        image.target_set("autoclear", "old | 1")


def split(arguments):
    return {key: int(value, 0) for key, value in (argument.split("=", 1) for argument in arguments)}


def main(arguments):
    if len(arguments) < 2 or arguments[0] not in ("new", "edit", "get", "snapshots", "bitmaps", "extension"):
        print(__doc__, file=sys.stderr)
        return 2
    command, name, *rest = arguments
    if command == "new":
        new_image(name, **split(rest))
    elif command == "edit":
        with Image(name) as image:
            for change in rest:
                target, expression = change.split("=", 1)
                image.target_set(target, expression)
    elif command == "get":
        with Image(name, "rb") as image:
            for target in rest:
                print(image.target_get(target))
    elif command == "snapshots":
        add_snapshots(name, int(rest[0], 0), **split(rest[1:]))
    elif command == "bitmaps":
        add_bitmaps(name, int(rest[0], 0), **split(rest[1:]))
    else:
        with Image(name) as image:
            image.add_extension(int(rest[0], 0), bytes(range(256)) * (int(rest[1]) // 256) + b"x" * (int(rest[1]) % 256))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
