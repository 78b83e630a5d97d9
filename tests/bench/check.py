# SPDX-License-Identifier: MIT
"""Whether a run did what it should: judged by qemu-img, whoever made it. Each check returns what is wrong, or nothing."""

import os
import subprocess


class Checker:
    def __init__(self, where, blkimg):
        self.where = where
        self.blkimg = blkimg

    def run(self, *argv):
        return subprocess.run(argv, cwd=self.where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)

    def judge(self, checks):
        """The first thing that is wrong."""
        for name, *arguments in checks:
            if name in ("output", "status"):
                continue
            wrong = getattr(self, "check_" + name.replace("-", "_"))(*arguments)
            if wrong:
                return wrong
        return None

    def said(self, what, done):
        text = done.stdout.decode(errors="replace").strip().splitlines()
        return f"{what}: {text[-1] if text else f'status {done.returncode}'}"

    def check_compare(self, first, second):
        done = self.run("qemu-img", "compare", *formats(first, second), first, second)
        return self.said(f"{first} is not {second}", done) if done.returncode != 0 else None

    def check_sound(self, name):
        done = self.run("qemu-img", "check", "-f", "qcow2", name)
        return self.said(f"{name} is not sound", done) if done.returncode != 0 else None

    def check_pattern(self, name, command):
        done = self.run("qemu-io", "-r", "-f", "qcow2", "-c", command, name)
        if done.returncode != 0 or b"verification failed" in done.stdout:
            return self.said(f"{name} does not hold what was written", done)
        return None

    def check_same_bits(self, name):
        """The merged bitmap: it was empty before, so it is now as the one that was merged."""
        maps = [self.run(self.blkimg, "map", "-f", "qcow2", f"--bitmap={bitmap}", name) for bitmap in ("from", "to")]
        if any(done.returncode != 0 for done in maps) or maps[0].stdout != maps[1].stdout:
            return f"{name} has the wrong bits"
        return None

    def check_same_disk(self, disk):
        """Only what the backup is about has a disk to be compared with; the peer copies a part of it."""
        if b"backing file:" not in self.run("qemu-img", "info", "target.qcow2").stdout:
            return self.check_compare("target.qcow2", "part.qcow2")
        return self.check_compare("target.qcow2", disk)

    def size_of(self, name):
        return os.stat(os.path.join(self.where, name)).st_blocks * 512


def formats(first, second):
    return ["-f", first.rpartition(".")[2], "-F", second.rpartition(".")[2]]
