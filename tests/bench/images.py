# SPDX-License-Identifier: MIT
"""Makes the content and the images that are measured; the same bytes each time.

Images of a million clusters are written as metadata alone: their clusters are holes of the file. What a command
does with tables costs the same, and the disk holds a few MiB.
"""

import os
import random
import struct
import subprocess
import sys
from array import array

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

POOL_BYTES = 8 * MIB
COPIED = 1 << 63


def big_endian(values, kind):
    """The numbers as they are stored: kind "Q" or "H"."""
    data = array(kind, values)
    if sys.byteorder == "little":
        data.byteswap()
    return data


def text_like(rng, size):
    """Words of a made-up vocabulary, few of them often, as in text and source code."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    weights = [26 - i for i in range(26)]
    words = ["".join(rng.choices(letters, weights, k=rng.randint(2, 9))) for _ in range(6000)]
    ends = [" "] * 8 + [", ", ".\n"]
    frequency = [1 / (rank + 2) for rank in range(len(words))]
    parts, length = [], 0
    while length < size:
        piece = "".join(w + e for w, e in zip(rng.choices(words, frequency, k=20000), rng.choices(ends, k=20000)))
        parts.append(piece)
        length += len(piece)
    return "".join(parts).encode()[:size]


def binary_like(rng, size):
    """Records of counters, small numbers, addresses close to each other and padding, as in programs and databases."""
    parts = []
    address = 0x7F0000000000
    for index in range(size // 32 + 1):
        address += rng.choice((16, 48, 64, 4096))
        parts.append(struct.pack("<IHHQBBHQI", index, rng.choice((0, 1, 1, 7)), 0xFFFF, address,
                                 rng.getrandbits(8), 0, rng.getrandbits(4), 0, rng.getrandbits(12))[:32])
    return b"".join(parts)[:size]


class Content:
    """A stream of data, of which a third each is text, binaries and random bytes that do not compress."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.pools = [text_like(self.rng, POOL_BYTES), binary_like(self.rng, POOL_BYTES)]

    def take(self, size):
        """The next bytes: all of one kind."""
        kind = self.rng.randrange(3)
        if kind == 2:
            return self.rng.randbytes(size)
        parts = []
        while size > 0:
            # A place of its own in the pool each time: no two clusters are alike.
            at = self.rng.randrange(POOL_BYTES // 2)
            parts.append(self.pools[kind][at:at + size])
            size -= len(parts[-1])
        return b"".join(parts)


def write_raw(path, size, data_bytes, seed):
    """A raw image with that much data, in runs of 64 KiB to 16 MiB between holes."""
    content = Content(seed)
    rng = content.rng
    unit = 65536
    runs = []
    left = data_bytes // unit
    while left > 0:
        runs.append(min(left, rng.choice((1, 2, 4, 16, 64, 256))))
        left -= runs[-1]
    holes = [0] * (len(runs) + 1)
    free = size // unit - sum(runs)
    cuts = sorted(rng.randrange(free + 1) for _ in runs)
    for index, cut in enumerate(cuts):
        holes[index] = cut - (cuts[index - 1] if index else 0)
    at = 0
    with open(path, "wb") as file:
        file.truncate(size)
        for hole, run in zip(holes, runs):
            at += hole
            file.seek(at * unit)
            for start in range(0, run, 16):
                file.write(content.take(min(16, run - start) * unit))
            at += run


def change_raw(path, fraction, seed):
    """Changes that part of the 64 KiB pieces of a raw image that hold data."""
    rng = random.Random(seed)
    with open(path, "r+b") as file:
        for start, end in data_ranges(file.fileno()):
            for at in range(start, end, 65536):
                if rng.random() < fraction:
                    file.seek(at)
                    file.write(rng.randbytes(min(4096, end - at)))


def data_ranges(fd):
    """Where the file has data, as (start, end)."""
    size = os.fstat(fd).st_size
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def write_qcow2(path, size, places, cluster_bits=16, backing="", wrong_counts=0.0, subclusters=None):
    """A qcow2 image whose guest clusters are at the given places: pairs of guest cluster and slot, where the slots are
    the clusters behind the metadata. wrong_counts is the part of the refcounts that are not what they should be.
    subclusters is the second word of each L2 entry; it makes an image with extended L2 entries."""
    cluster = 1 << cluster_bits
    entry_words = 1 if subclusters is None else 2
    per_table = cluster // 8 // entry_words
    tables = {}
    slots = 0
    for guest, slot in places:
        table = tables.get(guest // per_table)
        if table is None:
            table = tables[guest // per_table] = array("Q", bytes(cluster))
        table[guest % per_table * entry_words] = slot + 1
        slots = max(slots, slot + 1)

    def clusters(count, per_cluster):
        return -(-count // per_cluster)

    l1_entries = clusters(size, cluster * per_table)
    l1_clusters = clusters(l1_entries * 8, cluster)
    used = 1 + l1_clusters + len(tables) + slots
    blocks = reftable = 0
    while True:
        wanted = clusters(used + blocks + reftable, cluster // 2)
        if wanted == blocks and reftable:
            break
        blocks, reftable = wanted, clusters(wanted * 8, cluster)
    reftable_at = 1 + l1_clusters
    blocks_at = reftable_at + reftable
    tables_at = blocks_at + blocks
    data_at = tables_at + len(tables)

    l1 = array("Q", bytes(l1_entries * 8))
    counts = array("H", bytes(blocks * cluster))
    for index in range(data_at):
        counts[index] = 1
    bodies = []
    for index, (number, table) in enumerate(sorted(tables.items())):
        l1[number] = (tables_at + index) * cluster | COPIED
        for at in range(0, len(table), entry_words):
            if table[at]:
                counts[data_at + table[at] - 1] = 1
                table[at] = (data_at + table[at] - 1) * cluster | COPIED
                if subclusters is not None:
                    table[at + 1] = subclusters
        bodies.append(big_endian(table, "Q"))
    rng = random.Random(1)
    for _ in range(int(slots * wrong_counts)):
        # Some too high, which is a leak, and as many too low.
        counts[data_at + rng.randrange(slots)] = rng.choice((0, 2))

    name = backing.encode()
    extensions = b""
    if name:
        extensions += struct.pack(">II8s", 0xE2792ACA, 3, b"raw")
    extensions += bytes(8)
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 104 + len(extensions) if name else 0, len(name),
                         cluster_bits, size, 0, l1_entries, cluster, reftable_at * cluster, reftable, 0, 0,
                         0 if subclusters is None else 1 << 4, 0, 0, 4, 104)
    with open(path, "wb") as file:
        file.write(header + extensions + name)
        file.seek(cluster)
        file.write(big_endian(l1, "Q"))
        file.seek(reftable_at * cluster)
        file.write(big_endian(((blocks_at + i) * cluster for i in range(blocks)), "Q"))
        file.seek(blocks_at * cluster)
        file.write(big_endian(counts, "H"))
        for body in bodies:
            file.write(body)
        file.truncate((data_at + slots) * cluster)


def in_order(count, every=1, run=1):
    """Guest clusters in the order of the file: runs of clusters, of which one in EVERY is allocated."""
    return ((slot // run * run * every + slot % run, slot) for slot in range(count))


def shuffled(count, seed=1, window=1 << 16):
    """All of COUNT guest clusters, each window of them in random order in the file. A larger window would measure
    nothing but how often qemu-img reads the same refcount blocks: 20 s for a check of 64 GiB."""
    rng = random.Random(seed)
    slots = []
    for start in range(0, count, window):
        part = list(range(start, min(count, start + window)))
        rng.shuffle(part)
        slots += part
    return enumerate(slots)


def with_gaps(count):
    """COUNT guest clusters with a free cluster behind each."""
    return ((guest, guest * 2) for guest in range(count))


def mark_at_random(path, fraction):
    """Marks that part of the first bitmap of an image, scattered: every cluster of the bitmap gets data. The clusters
    that this adds have no counts yet; a repair is to follow."""
    with open(path, "r+b") as file:
        def read(offset, form):
            file.seek(offset)
            return struct.unpack(form, file.read(struct.calcsize(form)))

        cluster = 1 << read(20, ">I")[0]
        size, = read(24, ">Q")
        at, = read(100, ">I")
        while read(at, ">I")[0] != 0x23852875:
            at += 8 + (read(at + 4, ">I")[0] + 7) // 8 * 8
        directory, = read(at + 24, ">Q")
        table, entries = read(directory, ">QI")
        granule = 1 << read(directory + 17, ">B")[0]
        bits = -(-size // granule)
        rng = random.Random(1)
        data = bytearray(entries * cluster)
        for _ in range(max(1, int(bits * fraction))):
            bit = rng.randrange(bits)
            data[bit // 8] |= 1 << bit % 8
        end = -(-file.seek(0, 2) // cluster) * cluster
        file.seek(end)
        file.write(data)
        file.seek(table)
        file.write(big_endian((end + index * cluster for index in range(entries)), "Q"))


def sparse_copy(source, target):
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
