# SPDX-License-Identifier: MIT
"""What the machine can do: the least time that a row can take, found with the simplest means.

Each limit is a function that returns seconds; rows name it, with the files that it is about. Compression runs the
libraries themselves (ctypes), on pieces of a cluster's size, on all processors.
"""

import concurrent.futures
import ctypes
import ctypes.util
import os
import statistics
import time

import images

CLUSTER = 65536
WHAT = {
    "start": "starting a program (`true`)",
    "copy": "`cp` of the data",
    "copy-synced": "`cp` of the data and `sync` of the copy",
    "copy-direct": "`dd` with `iflag=direct oflag=direct`",
    "read": "`cat` of what is allocated to /dev/null",
    "reflink": "`cp --reflink` and `sync` of the copy",
    "deflate": "deflate of the data in memory, all processors",
    "inflate": "inflate of the data in memory, all processors",
    "zstd": "zstd of the data in memory, all processors",
    "unzstd": "zstd of the data back, in memory, all processors",
    "memory": "copying the data in memory",
}


class Limits:
    def __init__(self, inputs, shell, runs):
        self.inputs = inputs
        self.shell = shell      # runs a line of shell and returns its seconds
        self.runs = min(runs, 5)
        self.known = {}

    def seconds(self, limit):
        """The median of a few runs; measured once."""
        if limit not in self.known:
            name, *files = limit
            for file in files:
                self.inputs.need(file)
            measure = getattr(self, "limit_" + name.replace("-", "_"))
            self.known[limit] = statistics.median(measure(*files) for _ in range(self.runs))
        return self.known[limit]

    def limit_start(self):
        return self.shell("exec true")

    def limit_copy(self, name="source.raw"):
        return self.shell(f"cp --sparse=auto --reflink=never {name} target.limit")

    def limit_copy_synced(self, name="source.raw"):
        return self.shell(f"cp --sparse=auto --reflink=never {name} target.limit && sync target.limit")

    def limit_copy_direct(self):
        self.inputs.need("source.qcow2")
        return self.shell("dd if=source.qcow2 of=target.limit bs=2M iflag=direct oflag=direct status=none")

    def limit_reflink(self):
        self.inputs.need("xfs/source.raw")
        return self.shell("cp --reflink=always xfs/source.raw xfs/target.limit && sync xfs/target.limit")

    def limit_read(self, *names):
        """Of sparse files, only what is there."""
        buffer = memoryview(bytearray(1 << 20))
        start = time.monotonic()
        for name in names:
            fd = os.open(self.inputs.path(name), os.O_RDONLY)
            for at, end in images.data_ranges(fd):
                while at < end:
                    at += os.preadv(fd, [buffer[:min(len(buffer), end - at)]], at)
            os.close(fd)
        return time.monotonic() - start

    def limit_memory(self):
        data = self.sample()
        start = time.monotonic()
        copy = bytearray(data)
        return (time.monotonic() - start) * self.factor(copy)

    # --- compression ---

    def sample(self):
        """Up to 128 MiB of the source's data: what follows is in proportion."""
        content = images.Content(1)
        return b"".join(content.take(16 * CLUSTER) for _ in range(max(1, min(128, self.inputs.data_bytes() >> 20))))

    def factor(self, sample):
        return self.inputs.data_bytes() / len(sample)

    def on_all_processors(self, work, pieces):
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            shares = [pieces[i::os.cpu_count()] for i in range(os.cpu_count())]
            start = time.monotonic()
            results = list(pool.map(work, shares))
            seconds = time.monotonic() - start
        return seconds, [piece for share in results for piece in share]

    def seconds_packing(self, pack, unpack=None):
        """To pack the sample's clusters or, with `unpack`, to unpack what was packed."""
        data = self.sample()
        pieces = [data[at:at + CLUSTER] for at in range(0, len(data), CLUSTER)]
        seconds, packed = self.on_all_processors(pack, pieces)
        if unpack:
            seconds, _ = self.on_all_processors(unpack, packed)
        return seconds * self.factor(data)

    def limit_deflate(self):
        return self.seconds_packing(deflate_all)

    def limit_inflate(self):
        return self.seconds_packing(deflate_all, inflate_all)

    def limit_zstd(self):
        return self.seconds_packing(zstd_all)

    def limit_unzstd(self):
        return self.seconds_packing(zstd_all, unzstd_all)


def library(name):
    found = ctypes.util.find_library(name)
    return ctypes.CDLL(found) if found else None


class IsalStream(ctypes.Structure):
    """The head of struct isal_zstream; its inner state is behind."""
    _fields_ = [("next_in", ctypes.c_void_p), ("avail_in", ctypes.c_uint32), ("total_in", ctypes.c_uint32),
                ("next_out", ctypes.c_void_p), ("avail_out", ctypes.c_uint32), ("total_out", ctypes.c_uint32),
                ("hufftables", ctypes.c_void_p), ("level", ctypes.c_uint32), ("level_buf_size", ctypes.c_uint32),
                ("level_buf", ctypes.c_void_p), ("end_of_stream", ctypes.c_uint16), ("flush", ctypes.c_uint16),
                ("gzip_flag", ctypes.c_uint16), ("hist_bits", ctypes.c_uint16), ("inner", ctypes.c_char * (1 << 20))]


ISAL_ZLIB = 3


def deflate_all(pieces):
    """With ISA-L's level 1, or zlib's where it is missing."""
    lib = library("isal")
    if not lib:
        import zlib
        return [zlib.compress(piece, 1) for piece in pieces]
    stream = IsalStream()
    space = ctypes.create_string_buffer(1 << 20)
    room = ctypes.create_string_buffer(2 * CLUSTER)
    packed = []
    for piece in pieces:
        lib.isal_deflate_stateless_init(ctypes.byref(stream))
        stream.next_in = ctypes.cast(ctypes.c_char_p(piece), ctypes.c_void_p)
        stream.avail_in = len(piece)
        stream.next_out = ctypes.cast(room, ctypes.c_void_p)
        stream.avail_out = len(room)
        stream.level = 1
        stream.level_buf = ctypes.cast(space, ctypes.c_void_p)
        stream.level_buf_size = len(space)
        stream.end_of_stream = 1
        stream.gzip_flag = ISAL_ZLIB
        lib.isal_deflate_stateless(ctypes.byref(stream))
        packed.append(room.raw[:stream.total_out])
    return packed


def inflate_all(pieces):
    """With libdeflate, or zlib where it is missing."""
    lib = library("deflate")
    if not lib:
        import zlib
        return [zlib.decompress(piece) for piece in pieces]
    lib.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
    state = ctypes.c_void_p(lib.libdeflate_alloc_decompressor())
    room = ctypes.create_string_buffer(CLUSTER)
    for piece in pieces:
        lib.libdeflate_zlib_decompress(state, piece, ctypes.c_size_t(len(piece)), room, ctypes.c_size_t(CLUSTER), None)
    lib.libdeflate_free_decompressor(state)
    return []


def zstd_library():
    lib = library("zstd")
    if not lib:
        raise OSError("libzstd is not installed")
    lib.ZSTD_compress.restype = lib.ZSTD_decompress.restype = ctypes.c_size_t
    return lib


def zstd_all(pieces):
    """With the fastest of the usual levels."""
    lib = zstd_library()
    room = ctypes.create_string_buffer(2 * CLUSTER)
    packed = []
    for piece in pieces:
        size = lib.ZSTD_compress(room, ctypes.c_size_t(2 * CLUSTER), piece, ctypes.c_size_t(len(piece)), 1)
        packed.append(room.raw[:size])
    return packed


def unzstd_all(pieces):
    lib = zstd_library()
    room = ctypes.create_string_buffer(CLUSTER)
    for piece in pieces:
        lib.ZSTD_decompress(room, ctypes.c_size_t(CLUSTER), piece, ctypes.c_size_t(len(piece)))
    return []
