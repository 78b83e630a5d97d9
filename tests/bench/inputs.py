# SPDX-License-Identifier: MIT
"""The inputs of the rows by name. Each is made when a row first needs it, and kept."""

import os
import shutil
import subprocess
import sys

import images
from images import GIB, MIB, TIB

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import mkimage  # noqa: E402 (found by the line above)

SOURCE_MIB, SOURCE_DATA_MIB = 4096, 940


class Skip(Exception):
    """Why something cannot be measured here."""


class Inputs:
    """Makes inputs in a directory. scale divides their sizes, blkimg is only used where qemu-img cannot."""

    def __init__(self, where, scale, blkimg):
        self.where = where
        self.scale = scale
        self.blkimg = blkimg
        self.mounted = None

    def path(self, name):
        return os.path.join(self.where, name)

    def source_bytes(self):
        return max(MIB, SOURCE_MIB * MIB // self.scale)

    def data_bytes(self):
        return max(MIB // 4, SOURCE_DATA_MIB * MIB // self.scale)

    def clusters(self, count=1 << 20):
        return max(1024, count // self.scale)

    def need(self, name):
        """Makes the input unless it is there. What a killed run left has another name."""
        path = self.path(name)
        if name.startswith("xfs/"):
            self.mount_xfs()
        if os.path.exists(path):
            return path
        make = getattr(self, "make_" + name.removeprefix("xfs/").replace(".", "_").replace("-", "_"), None)
        unfinished = path + ".new"
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        if name.startswith("xfs/"):
            self.make_on_xfs(name.removeprefix("xfs/"), unfinished)
        else:
            make(unfinished)
        os.rename(unfinished, path)
        return path

    # --- commands ---

    def qemu_img(self, *arguments):
        subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, cwd=self.where)

    def convert(self, source, target, *options):
        self.qemu_img("convert", "-W", "-m", "8", *options, self.need(source), target)

    def write_pieces(self, path, size):
        """16 writes of a cluster, evenly spread."""
        commands = [word for i in range(16) for word in ("-c", f"write -q -P 5 {i * (size // 16)} 64k")]
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, path], check=True, stdout=subprocess.DEVNULL)

    def repair(self, path):
        """Counts the clusters that were added by hand; what qemu-img says of each of them is dropped."""
        done = subprocess.run(["qemu-img", "check", "-q", "-r", "all", path], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{os.path.basename(path)} cannot be repaired: {done.stderr.decode()[-500:]}")

    # --- a file system with reflinks ---

    def mount_xfs(self):
        if self.mounted:
            return
        if os.geteuid() != 0:
            raise Skip("only root can mount a file system with reflinks")
        if not shutil.which("mkfs.xfs"):
            raise Skip("mkfs.xfs is not installed")
        image, where = self.path("xfs.img"), self.path("xfs")
        os.makedirs(where, exist_ok=True)
        if not os.path.exists(image):
            with open(image + ".new", "wb") as file:
                file.truncate(max(512 * MIB, 3 * self.source_bytes()))
            subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image + ".new"], check=True)
            os.rename(image + ".new", image)
        done = subprocess.run(["mount", "-o", "loop", image, where], stderr=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise Skip("cannot mount an XFS image here")
        self.mounted = where

    def close(self):
        if self.mounted:
            subprocess.run(["umount", self.mounted], check=False)
            self.mounted = None

    def make_on_xfs(self, name, path):
        if name == "same.raw":
            subprocess.run(["cp", "--reflink=always", self.need("xfs/source.raw"), path], check=True)
        else:
            images.sparse_copy(self.need(name), path)

    # --- data ---

    def make_source_raw(self, path):
        images.write_raw(path, self.source_bytes(), self.data_bytes(), seed=1)

    def make_same_raw(self, path):
        images.sparse_copy(self.need("source.raw"), path)

    def make_changed_raw(self, path):
        images.sparse_copy(self.need("source.raw"), path)
        images.change_raw(path, 0.01, seed=2)

    def make_source_qcow2(self, path):
        self.convert("source.raw", path, "-f", "raw", "-O", "qcow2")

    def make_zlib_qcow2(self, path):
        self.convert("source.raw", path, "-f", "raw", "-O", "qcow2", "-c")

    def make_zstd_qcow2(self, path):
        self.convert("source.raw", path, "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd")

    def make_small_qcow2(self, path):
        self.qemu_img("create", "-q", "-f", "qcow2", path, GIB)

    # --- metadata ---

    def make_large_qcow2(self, path):
        self.qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, TIB // self.scale)

    def make_fragmented_qcow2(self, path):
        count = self.clusters()
        images.write_qcow2(path, count << 16, images.shuffled(count))

    def make_million_qcow2(self, path):
        count = self.clusters()
        images.write_qcow2(path, count << 16, images.in_order(count))

    def make_million_snapshot_qcow2(self, path):
        images.sparse_copy(self.need("million.qcow2"), path)
        self.qemu_img("snapshot", "-c", "before", path)
        self.write_pieces(path, self.clusters() * 65536)

    def make_damaged_qcow2(self, path):
        count = self.clusters()
        images.write_qcow2(path, count << 16, images.in_order(count), wrong_counts=0.001)

    # --- overlays ---

    def dense_bytes(self):
        return self.clusters() << 10

    def make_dense_raw(self, path):
        images.write_raw(path, self.dense_bytes(), self.dense_bytes(), seed=3)

    def make_lower_qcow2(self, path):
        self.qemu_img("create", "-q", "-f", "qcow2", path, self.dense_bytes())

    def make_upper_qcow2(self, path):
        """Of clusters of 1 KiB that are all allocated; its backing file is the copy of lower.qcow2."""
        self.convert("dense.raw", path, "-f", "raw", "-O", "qcow2", "-o", "cluster_size=1k")
        self.qemu_img("rebase", "-u", "-f", "qcow2", "-b", "work.lower.qcow2", "-F", "qcow2", path)

    def make_overlay_qcow2(self, path):
        """Of clusters of 1 KiB, one run of 64 KiB in four allocated, on source.raw."""
        self.need("source.raw")
        count = self.source_bytes() >> 12
        images.write_qcow2(path, self.source_bytes(), images.in_order(count, every=4, run=64), cluster_bits=10,
                           backing="source.raw")

    def make_flat_raw(self, path):
        self.convert("overlay.qcow2", path, "-f", "qcow2", "-O", "raw")

    # --- bitmaps ---

    def with_bitmaps(self, path, size, cluster):
        self.qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", path, size)
        for name in ("from", "to"):
            self.qemu_img("bitmap", "--add", "-g", "64k", path, name)
        images.mark_at_random(path, 0.01)
        self.repair(path)

    def make_bitmaps_qcow2(self, path):
        self.with_bitmaps(path, 8 * TIB // self.scale, "64k")

    def make_bitmaps_4k_qcow2(self, path):
        self.with_bitmaps(path, 8 * TIB // self.scale, "4k")

    def make_many_bitmaps_qcow2(self, path):
        many_bitmaps(self, path, TIB // self.scale, 300)

    # --- large and empty ---

    def make_empty_qcow2(self, path):
        self.qemu_img("create", "-q", "-f", "qcow2", path, 8 * TIB)

    def make_sparse_raw(self, path):
        with open(path, "wb") as file:
            file.truncate(4 * TIB)

    # --- incremental backup ---

    def incremental(self):
        """Size of the disk, and how many MiB are dirty: 1 % of it."""
        count = max(4, 1024 // self.scale)
        return count * 100 * MIB, count

    def scattered(self, path, step, count):
        content = images.Content(4)
        with open(self.path("block.new"), "wb") as block:
            block.write(content.rng.randbytes(MIB))
        script = "".join(f"write -q -s {self.path('block.new')} {i * step}M 1M\n" for i in range(count))
        subprocess.run(["qemu-io", "-f", "qcow2", path], input=script.encode(), check=True, stdout=subprocess.DEVNULL)
        os.unlink(self.path("block.new"))

    def make_full_backup_qcow2(self, path):
        """The backup that the incremental one is made on, and with it the disk."""
        size, count = self.incremental()
        disk = self.path("disk.qcow2")
        self.qemu_img("create", "-q", "-f", "qcow2", disk + ".new", size)
        subprocess.run([self.blkimg, "backup", "-q", "--new-bitmap=daily", disk + ".new", path], check=True)
        self.scattered(disk + ".new", 100, count)
        os.rename(disk + ".new", disk)

    def make_disk_qcow2(self, path):
        """Made with the backup; one without the other is of no use."""
        backup = self.path("full-backup.qcow2")
        if os.path.exists(backup):
            os.unlink(backup)
        self.need("full-backup.qcow2")
        os.rename(self.path("disk.qcow2"), path)

    def make_part_qcow2(self, path):
        _, count = self.incremental()
        self.qemu_img("create", "-q", "-f", "qcow2", path, count * MIB)
        self.scattered(path, 1, count)


def many_bitmaps(inputs, path, size, count):
    """An image with that many bitmaps, each of which has seen the same few writes."""
    inputs.qemu_img("create", "-q", "-f", "qcow2", path, size)
    mkimage.add_bitmaps(path, count, flags=2)
    inputs.repair(path)
    inputs.write_pieces(path, size)
