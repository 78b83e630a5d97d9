#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random chains of images under random surgery: the guest must not notice.

    chainrandom.py [--chains N] [--steps N] [--seed S] [--only INDEX] [--keep DIR] BLKIMG

Each chain is two to four images of random shape. Steps in random order write to its top, commit it (into its
backing file or further down), rebase one of its images (onto one further down, another image, or none), mirror one and pivot
the overlay above it (and a second overlay) to the copy, mirror the top while a guest writes, take a
snapshot and go back to it, resize the top, or put an overlay on it. After each step what the top shows is compared with a
plain raw file that had the same writes, read by both programs, and every image must be sound.

Everything about chain I follows from "S.I"; --only I runs it alone. The last line is "N chains of M steps (seed S)".
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile

KIB = 1 << 10
MIB = 1 << 20


class Failure(Exception):
    """Something that must not be."""


def run(*command, ok=(0,)):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False, timeout=100)
    output = done.stdout.decode(errors="replace")
    if done.returncode not in ok:
        raise Failure(f"{' '.join(command)}\nstatus {done.returncode}\n{output[-2000:]}")
    return output


class Image:
    """One image of a chain."""

    def __init__(self, name, form):
        self.name = name
        self.format = form


class Chain:
    """A chain, from its base to its top, and what the top shows."""

    def __init__(self, blkimg, rng):
        self.blkimg = blkimg
        self.rng = rng
        self.made = 0
        self.done = []
        self.expected = bytearray()
        self.images = []
        self.make_base()
        for _ in range(rng.randrange(1, 4)):
            self.step_overlay()
            self.step_write()

    # ---- helpers ----

    def tool(self, *arguments):
        self.done.append("blkimg " + " ".join(arguments))
        return run(self.blkimg, *arguments)

    def new_name(self):
        self.made += 1
        return f"i{self.made}"

    def random_size(self):
        return self.rng.randrange(1, 4 * MIB // 512) * 512

    def shape(self):
        """Random options of a qcow2 image."""
        if self.rng.random() < 0.15:
            return f"compat=0.10,cluster_size={1 << self.rng.randrange(9, 17)}"
        bits = self.rng.choice((9, 10, 12, 14, 16, 16, 16, 18, 21))
        extended = bits >= 14 and self.rng.random() < 0.3
        return f"cluster_size={1 << bits},extended_l2={'on' if extended else 'off'}"

    def random_writes(self, size):
        """io commands, and what they do to a bytearray."""
        commands, effects = [], []
        for _ in range(self.rng.randrange(1, 6)):
            start = self.rng.randrange(size)
            length = min(size - start, self.rng.choice((1, 512, 4 * KIB, 64 * KIB, 70000, 400000)))
            if self.rng.random() < 0.25:
                flags = self.rng.choice(("-z", "-zu"))
                commands.append(f"write {flags} {start} {length}")
                effects.append((start, length, 0))
            else:
                value = self.rng.randrange(256)
                commands.append(f"write -P {value} {start} {length}")
                effects.append((start, length, value))
        return commands, effects

    @staticmethod
    def apply(effects, content):
        for start, length, value in effects:
            content[start:start + length] = bytes([value]) * length

    def write_to(self, image, content):
        commands, effects = self.random_writes(len(content))
        arguments = ["io", "-f", image.format]
        for command in commands:
            arguments += ["-c", command]
        self.tool(*arguments, image.name)
        self.apply(effects, content)

    def new_image(self, size):
        """An image that stands alone, with random content, which is returned too."""
        image = Image(self.new_name(), self.rng.choice(("raw", "qcow2", "qcow2")))
        options = ("-o", self.shape()) if image.format == "qcow2" else ()
        self.tool("create", "-q", "-f", image.format, *options, image.name, str(size))
        content = bytearray(size)
        self.write_to(image, content)
        return image, content

    def make_base(self):
        base, self.expected = self.new_image(self.random_size())
        self.images = [base]

    # ---- steps ----

    def step_overlay(self):
        below = self.images[-1]
        size = len(self.expected) if self.rng.random() < 0.6 else self.random_size()
        top = Image(self.new_name(), "qcow2")
        self.tool("create", "-q", "-f", "qcow2", "-o", self.shape(), "-b", below.name,
                  "-F", below.format, top.name, str(size))
        self.images.append(top)
        self.expected = bytearray(self.expected[:size].ljust(size, b"\0"))

    def step_write(self):
        self.write_to(self.images[-1], self.expected)

    def step_commit(self):
        if len(self.images) < 2:
            return
        arguments = ["commit", "-q"]
        if self.rng.random() < 0.3:
            arguments.append("-d")
        if self.rng.random() < 0.4:
            arguments += ["-b", self.rng.choice(self.images[:-1]).name]
        self.tool(*arguments, self.images[-1].name)

    def step_rebase(self):
        if len(self.images) < 2:
            return
        index = self.rng.randrange(1, len(self.images))
        arguments = ["rebase", "-q"]
        if self.rng.random() < 0.2:
            arguments.append("-c")
        way = self.rng.choice(("down", "down", "other", "none"))
        if way == "down":
            onto = self.rng.randrange(index)
            below = self.images[:onto + 1]
        elif way == "other":
            below = [self.new_image(self.random_size())[0]]
        else:
            below = []
        arguments += ["-b", below[-1].name, "-F", below[-1].format] if below else ["-b", ""]
        self.tool(*arguments, self.images[index].name)
        self.images = below + self.images[index:]

    def step_mirror(self):
        """Replaces an image by a copy of it, and moves the overlay above it."""
        if len(self.images) < 2:
            return
        index = self.rng.randrange(len(self.images) - 1)
        source, overlay = self.images[index], self.images[index + 1]
        top_only = index > 0 and self.rng.random() < 0.5
        target = Image(self.new_name(), "qcow2" if top_only else self.rng.choice(("raw", "qcow2")))
        overlays = [overlay.name]
        if self.rng.random() < 0.4:
            overlays.append(self.new_name())
            self.tool("create", "-q", "-f", "qcow2", "-b", source.name, "-F", source.format,
                      overlays[1])
            self.tool("io", "-c", "write -P 77 0 512", overlays[1])
            shown = self.content(overlays[1], "qcow2")
        witness = ["--witness", self.new_name()] if self.rng.random() < 0.5 else []
        arguments = ["mirror", "-q", "-f", source.format, "-O", target.format]
        if top_only:
            arguments.append("--mode=top")
        if target.format == "qcow2":
            arguments += ["-o", self.shape()]
        if self.rng.random() < 0.6:
            arguments += [f"--pivot={name}" for name in overlays] + witness
            self.tool(*arguments, source.name, target.name)
        else:
            self.tool(*arguments, source.name, target.name)
            self.tool("pivot", *witness, "-F", target.format, "--to", target.name, *overlays)
        if len(overlays) == 2 and self.content(overlays[1], "qcow2") != shown:
            raise Failure(f"{overlays[1]}, the second overlay, shows something else")
        below = self.images[:index] if top_only else []
        self.images = below + [target] + self.images[index + 1:]

    def step_live(self):
        """Replaces the top by a copy that followed a guest's writes."""
        top = self.images[-1]
        if top.format != "qcow2":
            return
        target = Image(self.new_name(), "qcow2")
        commands, effects = self.random_writes(len(self.expected))
        script = self.new_name()
        with open(script, "w", encoding="ascii") as file:
            for command in commands:
                file.write(command + "\n" + self.rng.choice(("", "sleep 1\n", "flush\n")))
        mode = "--mode=" + ("top" if len(self.images) > 1 and self.rng.random() < 0.5 else "full")
        self.done += commands
        self.tool("mirror", "-q", mode, "-f", "qcow2", "-o", self.shape(), "--guest-io", script,
                  top.name, target.name)
        self.apply(effects, self.expected)
        if self.content(top.name, "qcow2") != self.expected:
            raise Failure(f"{top.name}, which was mirrored, shows something else")
        self.images = (self.images[:-1] if mode == "--mode=top" else []) + [target]

    def step_snapshot(self):
        top = self.images[-1]
        if top.format != "qcow2":
            return
        self.tool("snapshot", "-q", "-c", "moment", top.name)
        self.write_to(top, bytearray(self.expected))
        self.tool("snapshot", "-q", "-a", "moment", top.name)
        self.tool("snapshot", "-q", "-d", "moment", top.name)

    def step_resize(self):
        size = self.random_size()
        shrink = ["--shrink"] if size < len(self.expected) else []
        top = self.images[-1]
        self.tool("resize", "-q", "-f", top.format, *shrink, top.name, str(size))
        self.expected = bytearray(self.expected[:size].ljust(size, b"\0"))

    STEPS = (step_write, step_write, step_commit, step_commit, step_rebase, step_rebase, step_rebase,
             step_mirror, step_mirror, step_mirror, step_live, step_snapshot, step_resize,
             step_overlay)

    def step(self):
        self.rng.choice(self.STEPS)(self)
        if len(self.images) < 2:
            self.step_overlay()

    # ---- the judge ----

    def content(self, name, form, program=None):
        run(program or self.blkimg, "convert", "-f", form, "-O", "raw", name, "seen")
        with open("seen", "rb") as file:
            return file.read()

    def check(self):
        top = self.images[-1]
        for program in (self.blkimg, "qemu-img"):
            seen = self.content(top.name, top.format, program)
            if seen == self.expected:
                continue
            if len(seen) != len(self.expected):
                raise Failure(f"{program}: {top.name} has {len(seen)} bytes, not {len(self.expected)}")
            at = next(i for i, byte in enumerate(seen) if byte != self.expected[i])
            raise Failure(f"{program}: {top.name} shows {seen[at]} at {at}, not {self.expected[at]}")
        for image in self.images:
            if image.format == "qcow2":
                run("qemu-img", "check", "-q", image.name)


def run_chain(blkimg, seed, index, steps, keep):
    """Returns None, or what went wrong."""
    rng = random.Random(f"{seed}.{index}")
    folder = tempfile.mkdtemp(prefix="chain.")
    home = os.getcwd()
    chain, problem = None, None
    os.chdir(folder)
    try:
        chain = Chain(blkimg, rng)
        chain.check()
        for _ in range(steps):
            chain.step()
            chain.check()
    except (Failure, subprocess.TimeoutExpired) as failure:
        done = "\n  ".join(chain.done[-25:]) if chain else "(while it was made)"
        problem = f"chain {index}: {failure}\nafter\n  {done}"
    os.chdir(home)
    if problem and keep:
        shutil.copytree(folder, os.path.join(keep, f"chain-{index}"))
    shutil.rmtree(folder)
    return problem


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", metavar="DIR")
    parser.add_argument("blkimg")
    options = parser.parse_args()
    blkimg = os.path.abspath(options.blkimg)
    indexes = [options.only] if options.only is not None else range(options.chains)
    bad = 0
    for index in indexes:
        problem = run_chain(blkimg, options.seed, index, options.steps, options.keep)
        if problem:
            bad += 1
            print(problem, flush=True)
    print(f"{len(indexes)} chains of {options.steps} steps (seed {options.seed})"
          + (f", {bad} bad" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
