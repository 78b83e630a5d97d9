#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random sequences of requests on qcow2 images of random shape, checked against a model.

    qcow2random.py [--sequences N] [--ops N] [--seed S] [--only INDEX] [--keep DIR] BLKIMG

Each sequence makes an image with qemu-img (version, cluster size, refcount width, extended L2,
data file, compression, backing file), and writes to it in a few sessions with one program, "blkimg
io" or qemu-io. Between sessions snapshots may be taken, so that clusters are shared. Then the
content is compared with the model by both programs, and both must find the image sound and without
leaks. The last line says how many sequences failed, and the seed.

Everything about sequence I follows from "S.I"; --only I runs it alone.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile

MIB = 1 << 20


class Failure(Exception):
    pass


def run(*command, ok=(0,), **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          timeout=100, **options)
    if done.returncode not in ok:
        raise Failure(f"{' '.join(command)[:2000]}\nstatus {done.returncode}\n"
                      f"{done.stdout.decode(errors='replace')[-2000:]}")
    return done.stdout.decode(errors="replace")


class Shape:
    """What kind of image."""

    def __init__(self, rng):
        self.version = rng.choice((2, 3, 3, 3))
        self.cluster_bits = rng.choice((9, 9, 10, 12, 14, 16, 16, 16, 18, 21))
        self.refcount_bits = 16
        self.extended = self.raw_data = self.data_file = False
        self.compression = "zlib"
        if self.version == 3:
            self.refcount_bits = rng.choice((1, 2, 4, 8, 16, 16, 32, 64))
            self.extended = self.cluster_bits >= 14 and rng.random() < 0.4
            self.data_file = rng.random() < 0.2
            self.raw_data = self.data_file and rng.random() < 0.5
            self.compression = rng.choice(("zlib", "zlib", "zstd"))
        cluster = 1 << self.cluster_bits
        most = max(3 * cluster, rng.choice((1, 2, 3)) * MIB)
        self.size = rng.randrange(1, most // 512) * 512
        self.backing = None if self.raw_data else rng.choice((None, "raw", "qcow2"))
        self.backing_size = max(512, int(self.size * rng.choice((0.4, 1, 1.5))) // 512 * 512)
        self.snapshots = not self.data_file and self.refcount_bits > 8

    def options(self):
        yield f"compat={'0.10' if self.version == 2 else '1.1'}"
        yield f"cluster_size={1 << self.cluster_bits}"
        if self.version == 3:
            yield f"refcount_bits={self.refcount_bits}"
            yield f"extended_l2={'on' if self.extended else 'off'}"
            yield f"compression_type={self.compression}"
        if self.data_file:
            yield "data_file=data.raw"
            yield f"data_file_raw={'on' if self.raw_data else 'off'}"

    def __str__(self):
        backing = f" backing={self.backing}:{self.backing_size}" if self.backing else ""
        return " ".join(self.options()) + f" size={self.size}" + backing


class Sequence:
    def __init__(self, blkimg, rng, ops, folder, writer):
        self.blkimg, self.rng, self.ops, self.folder, self.writer = blkimg, rng, ops, folder, writer
        self.shape = Shape(rng)
        self.model = bytearray(self.shape.size)
        self.cluster = 1 << self.shape.cluster_bits
        self.written = set()  # clusters ever written: qemu-io compresses only into others
        # qemu-io 7.2 fails to place compressed clusters when they are small or counts are narrow,
        # and damages the image when a compressed one is freed: it either compresses or frees.
        peer = writer == "qemu-io"
        self.may_compress = not self.shape.data_file and not (
            peer and (self.cluster < 4096 or self.shape.refcount_bits < 16 or rng.random() < 0.6))
        self.may_free = not (peer and self.may_compress)

    def path(self, name):
        return os.path.join(self.folder, name)

    # ---- making ----

    def make_backing(self):
        shape = self.shape
        data = bytearray(shape.backing_size)
        for _ in range(self.rng.randrange(1, 12)):
            at = self.rng.randrange(0, len(data))
            end = min(len(data), at + self.rng.randrange(1, len(data)))
            data[at:end] = bytes([self.rng.randrange(256)]) * (end - at)
        with open(self.path("base.raw"), "wb") as file:
            file.write(data)
        if shape.backing == "qcow2":
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2",
                cwd=self.folder)
        shown = min(len(data), shape.size)
        self.model[:shown] = data[:shown]

    def make(self):
        shape = self.shape
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(shape.options())]
        if shape.backing:
            self.make_backing()
            command += ["-b", f"base.{shape.backing}", "-F", shape.backing]
        run(*command, "image.qcow2", str(shape.size), cwd=self.folder)

    # ---- requests ----

    def some_range(self):
        size, rng = self.shape.size, self.rng
        offset = rng.randrange(0, size)
        most = rng.choice((1, 600, self.cluster, 3 * self.cluster, size))
        length = min(size - offset, rng.randrange(1, most + 1))
        unit = rng.choice((1, 512, self.cluster))
        start = offset // unit * unit
        return start, max(1, min(size - start, -(-length // unit) * unit))

    def note(self, offset, length):
        last = (offset + length - 1) // self.cluster
        self.written.update(range(offset // self.cluster, last + 1))

    def touches_written(self, offset, length):
        last = (offset + length - 1) // self.cluster
        return any(index in self.written for index in range(offset // self.cluster, last + 1))

    def write(self):
        offset, length = self.some_range()
        if not self.may_free and self.touches_written(offset, length):
            return self.read()
        pattern = self.rng.randrange(256)
        self.model[offset:offset + length] = bytes([pattern]) * length
        self.note(offset, length)
        return f"write -q -P {pattern} {offset} {length}"

    def write_zeroes(self):
        if not self.may_free:
            return self.read()
        offset, length = self.some_range()
        self.model[offset:offset + length] = bytes(length)
        self.note(offset, length)
        return f"write -q -z {self.rng.choice(('', '-u '))}{offset} {length}"

    def discard(self):
        offset, length = self.some_range()
        if not self.may_free:
            return self.read()
        if self.shape.version == 2 and self.shape.backing:
            return self.write()  # the two programs differ in what shows then
        end = offset + length
        start = -(-offset // self.cluster) * self.cluster
        if end < self.shape.size:
            end = end // self.cluster * self.cluster
        if start < end:
            self.model[start:end] = bytes(end - start)
            self.note(start, end - start)
        return f"discard -q {offset} {length}"

    def compress(self):
        if not self.may_compress:
            return self.write()
        offset = self.rng.randrange(0, self.shape.size) // self.cluster * self.cluster
        length = min(self.cluster, self.shape.size - offset)
        if self.writer == "qemu-io" and (offset // self.cluster in self.written or
                                         length < self.cluster):
            return self.read()
        pattern = self.rng.randrange(256)
        self.model[offset:offset + length] = bytes([pattern]) * length
        self.note(offset, length)
        return f"write -q -c -P {pattern} {offset} {length}"

    def read(self):
        offset, length = self.some_range()
        pattern = self.model[offset]
        end = offset
        while end < offset + length and self.model[end] == pattern:
            end += 1
        return f"read -q -P {pattern} {offset} {end - offset}"

    def request(self):
        kinds = (self.write, self.write_zeroes, self.discard, self.compress, self.read)
        return self.rng.choices(kinds, (10, 4, 3, 4, 5))[0]()

    def open_blkimg(self):
        """Another cache mode and tiny caches now and then, so that epochs are short."""
        command = [self.blkimg, "io", "-t", self.rng.choice(("writeback", "none", "unsafe"))]
        if self.rng.random() < 0.5:
            return command + ["-d", "unmap", "-f", "qcow2"], "image.qcow2"
        return command + ["--image-opts"], (
            "driver=qcow2,discard=unmap,file.driver=file,file.filename=image.qcow2,"
            "l2-cache-entry-size=512,l2-cache-size=4k,refcount-cache-size=512")

    def session(self, count):
        if self.writer == "blkimg":
            command, image = self.open_blkimg()
        else:
            command, image = ["qemu-io", "-d", "unmap", "-f", "qcow2"], "image.qcow2"
        for _ in range(count):
            command += ["-c", self.request()]
            if self.rng.random() < 0.03:
                command += ["-c", "flush"]
        output = run(*command, image, cwd=self.folder)
        if output.strip():
            raise Failure(f"{' '.join(command)[-3000:]}\n{output[-2000:]}")

    # ---- checking ----

    def check(self):
        with open(self.path("model.raw"), "wb") as file:
            file.write(self.model)
        run("qemu-img", "check", "-f", "qcow2", "image.qcow2", cwd=self.folder)
        run(self.blkimg, "check", "-f", "qcow2", "image.qcow2", cwd=self.folder)
        for program in ("qemu-img", self.blkimg):
            run(program, "compare", "-f", "raw", "-F", "qcow2", "model.raw", "image.qcow2",
                cwd=self.folder)
        if self.shape.raw_data:
            run("qemu-img", "compare", "-f", "raw", "-F", "raw", "model.raw", "data.raw",
                cwd=self.folder)

    def play(self):
        self.make()
        left = self.ops
        while left:
            count = min(left, self.rng.randrange(1, self.ops + 1))
            self.session(count)
            left -= count
            if left and self.shape.snapshots and self.rng.random() < 0.5:
                name = f"s{left}"
                run("qemu-img", "snapshot", "-c", name, "image.qcow2", cwd=self.folder)
            if left and self.rng.random() < 0.3:
                self.check()
        self.check()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sequences", type=int, default=20)
    parser.add_argument("--ops", type=int, default=100)
    parser.add_argument("--seed", default=str(random.randrange(1 << 32)))
    parser.add_argument("--only", type=int)
    parser.add_argument("--writer", choices=("blkimg", "qemu-io", "both"), default="both")
    parser.add_argument("--keep", help="keep the folder of a failed sequence there")
    parser.add_argument("blkimg")
    args = parser.parse_args()

    failed = 0
    numbers = range(args.sequences) if args.only is None else (args.only,)
    for number in numbers:
        rng = random.Random(f"{args.seed}.{number}")
        writer = args.writer
        if writer == "both":
            writer = ("blkimg", "blkimg", "qemu-io")[number % 3]
        folder = tempfile.mkdtemp(prefix="qcow2random.")
        sequence = Sequence(os.path.abspath(args.blkimg), rng, args.ops, folder, writer)
        try:
            sequence.play()
        except (Failure, subprocess.TimeoutExpired) as failure:
            failed += 1
            print(f"sequence {number} (--seed {args.seed} --only {number}), written by {writer}:\n"
                  f"{sequence.shape}\n{failure}")
            if args.keep:
                shutil.copytree(folder, os.path.join(args.keep, str(number)), dirs_exist_ok=True)
        finally:
            shutil.rmtree(folder)
    print(f"{len(numbers)} sequences of {args.ops} operations, {failed} failed (seed {args.seed})")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
