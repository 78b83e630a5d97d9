# SPDX-License-Identifier: MIT
"""Runs the rows: pairs of the peer and blkimg, one after the other, each result checked, all outside the timing that
is not the command itself."""

import glob
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import check
import images
import limits
from inputs import Inputs, Skip

MEMORY_BOUND_KIB = 64 * 1024
COMMAND_SECONDS = 600
LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")


class Failed(Exception):
    """A command that failed or made something wrong."""


class Launcher:
    """The small process that starts the commands. Closing it ends what it runs."""

    def __init__(self, where):
        self.where = where
        self.process = subprocess.Popen([sys.executable, "-I", "-S", LAUNCHER], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, start_new_session=True)

    def run(self, argv, stdout=None):
        job = {"argv": argv, "cwd": self.where, "stdout": stdout, "seconds": COMMAND_SECONDS}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()


class Bench:
    """Measures rows in a directory that holds the inputs."""

    def __init__(self, where, blkimg, runs, scale):
        self.where = os.path.abspath(where)
        os.makedirs(self.where, exist_ok=True)
        self.blkimg = blkimg
        self.runs = runs
        self.inputs = Inputs(self.where, scale, blkimg)
        self.checker = check.Checker(self.where, blkimg)
        self.launcher = Launcher(self.where)
        self.limits = limits.Limits(self.inputs, self.shell, runs)
        self.programs = {"blkimg": blkimg, "qemu-img": which("qemu-img"), "qemu-io": which("qemu-io")}

    def close(self):
        self.launcher.close()
        self.clean()
        self.inputs.close()

    def path(self, name):
        return os.path.join(self.where, name)

    def clean(self, *patterns):
        for pattern in patterns or ("target.*", "work.*", "xfs/target.*"):
            for path in glob.glob(self.path(pattern)):
                os.unlink(path)

    def settle(self, copies=()):
        """The state before a run: no outputs, fresh copies of what it changes, nothing left to write back."""
        self.clean()
        for name in copies:
            images.sparse_copy(self.path(name), self.path("work." + name))
        os.sync()

    def shell(self, line):
        self.settle()
        done = self.launcher.run(["/bin/sh", "-c", line])
        if done["status"] != 0:
            raise Failed(f"{line}: {done['stderr'].strip()}")
        return done["wall"]

    # --- a row ---

    def run(self, row, mine, options="", stdout=None):
        """One run; what it left is in place afterwards."""
        self.settle(row.copies.split())
        program = "blkimg" if mine else row.program
        words = row.command(mine, options)
        done = self.launcher.run([self.programs[program], *words], stdout)
        if done["status"] != 0:
            text = done["stderr"].strip().splitlines()
            raise Failed(f"{program} {words[0]}: status {done['status']}{': ' + text[-1] if text else ''}")
        return done

    def checked(self, row, mine, options=""):
        """A run whose result is checked. Adds the size of the target."""
        done = self.run(row, mine, options)
        wrong = self.checker.judge(row.checks)
        if wrong:
            raise Failed(f"the result of {'blkimg' if mine else row.program} is wrong: {wrong}")
        if row.size:
            done["bytes"] = self.checker.size_of("target.qcow2")
        return done

    def best_options(self, row):
        """Warms the cache and finds the peer's best options."""
        if len(row.options) == 1:
            self.run(row, False, row.options[0])
            return row.options[0]
        times = {}
        self.run(row, False, row.options[0])
        for options in row.options:
            seconds = self.run(row, False, options)["wall"]
            if seconds < 1:
                seconds = min(seconds, self.run(row, False, options)["wall"])
            times[options] = seconds
        return min(times, key=times.get)

    def same_output(self, row, options):
        """What both print has to be the same."""
        outputs = []
        for mine in (False, True):
            self.run(row, mine, "" if mine else options, self.path("work.output"))
            with open(self.path("work.output"), "rb") as file:
                outputs.append(file.read())
        if outputs[0] != outputs[1]:
            raise Failed(f"blkimg prints something else than {row.program}")

    def measure(self, row, progress):
        """The result of a row as it is recorded."""
        for name in (row.inputs + " " + row.copies).split():
            progress("making " + name)
            self.inputs.need(name)
        progress("warming up")
        options = self.best_options(row)
        self.run(row, True)
        if ("output",) in row.checks:
            self.same_output(row, options)
        peer, mine = [], []
        for index in range(self.runs):
            progress(f"pair {index + 1} of {self.runs}")
            peer.append(self.checked(row, False, options))
            mine.append(self.checked(row, True))
        progress("the limit")
        limit = self.limits.seconds(row.limit)
        self.clean()
        return summary(row, options, peer, mine, limit)


def which(name):
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise Skip(f"{name} is not installed")


def spread(values):
    """The quartiles; of few values the ends."""
    if len(values) < 4:
        return [min(values), max(values)]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def summary(row, options, peer, mine, limit):
    ratios = [b["wall"] / a["wall"] for a, b in zip(peer, mine)]
    result = {
        "name": row.name, "goal": row.goal, "status": "measured", "peer": row.program, "peer_options": options,
        "pairs": len(ratios), "ratio": statistics.median(ratios), "ratio_spread": spread(ratios),
        "limit": row.limit[0], "limit_files": row.limit[1:], "limit_seconds": limit, "measured_at": time.strftime("%Y-%m-%d"),
    }
    for who, runs in (("peer", peer), ("blkimg", mine)):
        result[who + "_seconds"] = statistics.median(run["wall"] for run in runs)
        result[who + "_cpu_seconds"] = statistics.median(run["cpu"] for run in runs)
        result[who + "_peak_kib"] = max(run["peak_kib"] for run in runs)
        result[who + "_all_seconds"] = [round(run["wall"], 6) for run in runs]
    result["from_limit"] = result["blkimg_seconds"] / limit
    result["fast"] = result["ratio"] <= row.goal
    # A row beside blkimg itself has no peer's memory to stay below.
    bound = MEMORY_BOUND_KIB if row.program == "blkimg" else min(MEMORY_BOUND_KIB, result["peer_peak_kib"])
    result["small"] = result["blkimg_peak_kib"] <= bound
    if row.size:
        result["size"] = mine[-1]["bytes"] / peer[-1]["bytes"]
        result["size_goal"] = row.size
        result["fits"] = result["size"] <= row.size
    return result
