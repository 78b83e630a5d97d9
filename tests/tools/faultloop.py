#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs a command once for each call that can fail, with that call failing.

usage: faultloop.py --files A:B [--also C:D] [--check CMD | --image NAME ...] [options] -- COMMAND

Every run gets fresh copies of the files in its own directory. For each kind
of call in --calls, number 1, 2, 3 ... fails, until a run makes fewer matching
calls than the number. After each run the check judges the directory, with
FAULT_STATUS (the command's exit status), FAULT_CALL, FAULT_N, FAULT_LINE (which
call failed), FAULT_STDERR and FAULT_STDOUT (what the command printed there).

The kind malloc, which is not among the default ones, fails allocations (malloc-preload.c); these are
many, and --sample tries some of them.

A run that exits 0 is listed. It is only right where the command did its work
another way, which a check with the expected content shows: check_image.py then
wants NEW.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import check_image
import workfolder

LINE_BYTES = 96
MALLOC = "malloc"
KINDS = ["write", "sync", "truncate", "close", "fallocate", "rename", "link", "unlink"]
# Calls that change nothing; a command may well end with 0 after some of them.
LOOKS = ["open", "read", "short-read", "eof", "seek", "stat", "close-read"]


@dataclass
class Outcome:
    """One run. count: matching calls that were made; line: the one that failed."""

    call: str
    number: int
    status: int
    count: int
    line: str
    problem: str = None


class Loop:
    def __init__(self, options, originals, scratch):
        self.options = options
        self.originals = originals
        self.scratch = scratch
        self.libraries = {}

    def _library(self, call):
        name = "malloc-preload" if call == MALLOC else "fault-preload"
        if name not in self.libraries:
            self.libraries[name] = workfolder.find_preload(name, self.scratch)
        return self.libraries[name]

    def run_once(self, call, number):
        """One run with fault number (0: none)."""
        home = os.path.join(self.scratch, f"{call}-{number}")
        folder = os.path.join(home, "files")
        count_file = os.path.join(home, "count")
        os.makedirs(home)
        try:
            self.originals.lay_out(folder)
            environment = workfolder.preload_environment(self._library(call))
            environment.update(FAULT_FILES=":".join(os.path.join(folder, name) for name in self.originals.names),
                               FAULT_CALL=call, FAULT_N=str(number), FAULT_ERRNO=self.options.errno,
                               FAULT_ONCE="0" if self.options.sticky else "1", FAULT_COUNT_FILE=count_file)
            status, output, errors = self._command(folder, environment)
            lines = self._lines(count_file)
            line = lines[number - 1] if 0 < number <= len(lines) else ""
            outcome = Outcome(call, number, status, len(lines), line)
            if line or number == 0:
                outcome.problem = self._judge(outcome, folder, output, errors)
            if outcome.problem and self.options.keep:
                shutil.copytree(folder, os.path.join(self.options.keep, f"{call}-{number}"), dirs_exist_ok=True)
            return outcome
        finally:
            shutil.rmtree(home)

    def _command(self, folder, environment):
        try:
            result = subprocess.run(self.options.command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                                    timeout=self.options.timeout, check=False)
        except subprocess.TimeoutExpired:
            return "timeout", "", ""
        # An environment variable has no zeroes, and not room for everything.
        return result.returncode, result.stdout.replace("\0", "")[:65536], result.stderr

    @staticmethod
    def _lines(count_file):
        if not os.path.exists(count_file):
            return []
        with open(count_file, encoding="utf-8", errors="replace") as file:
            return [line.rstrip() for line in file]

    def _judge(self, outcome, folder, output, errors):
        if outcome.status == "timeout":
            return "the command did not end"
        if outcome.status < 0:
            return f"the command was ended by signal {-outcome.status}"
        environment = dict(os.environ, FAULT_STATUS=str(outcome.status), FAULT_CALL=outcome.call,
                           FAULT_N=str(outcome.number), FAULT_LINE=outcome.line, FAULT_STDOUT=output,
                           FAULT_STDERR=errors)
        if self.options.image:
            problem = check_image.check_state(self.options, folder, environment)
            if problem:
                return problem
        if self.options.check:
            return workfolder.run_check(self.options.check, folder, environment)
        return None

    def run_kind(self, call, pool):
        """All faults of one kind; the first outcome is the run without a fault."""
        outcomes = [self.run_once(call, 0)]
        if self.options.sample and outcomes[0].count > self.options.sample:
            step = outcomes[0].count / self.options.sample
            numbers = [1 + int((i + self.options.phase) * step) for i in range(self.options.sample)]
            return outcomes + list(pool.map(lambda n: self.run_once(call, n), numbers))
        number, batch = 1, outcomes[0].count
        # A fault may lead to more calls than the run without one made.
        while batch > 0:
            found = list(pool.map(lambda n: self.run_once(call, n), range(number, number + batch)))
            hit = [outcome for outcome in found if outcome.line]
            outcomes += hit
            number += batch
            batch = self.options.jobs if len(hit) == len(found) and number < self.options.limit else 0
        return outcomes


def parse_arguments():
    parser = argparse.ArgumentParser(description="Fails each call of a command in turn.")
    parser.add_argument("--files", required=True, help="images to watch, colon-separated; they may not exist yet")
    parser.add_argument("--also", default="", help="files that are only read, such as backing files")
    parser.add_argument("--calls", default=",".join(KINDS), help="kinds of calls to fail, comma-separated (all)")
    parser.add_argument("--errno", default="EIO", help="EIO, ENOSPC, EDQUOT or a number (EIO)")
    parser.add_argument("--sticky", action="store_true", help="later matching calls fail too")
    parser.add_argument("--check", help="command that gets the folder after each run; non-zero is a violation")
    parser.add_argument("--strict", action="store_true", help="a run that exits 0 is a violation")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (one a processor)")
    parser.add_argument("--timeout", type=int, default=60, help="limit for one run in seconds (60)")
    parser.add_argument("--limit", type=int, default=5000, help="most faults of one kind (5000)")
    parser.add_argument("--sample", type=int, help="so many faults of one kind, evenly spread (all)")
    parser.add_argument("--phase", type=float, default=0, help="0 to 1: which ones of those (0)")
    parser.add_argument("--keep", metavar="DIR", help="keep the folders of bad runs there")
    parser.add_argument("--workdir", default=None, help="parent of the temporary folder ($TMPDIR)")
    check_image.add_options(parser)
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    for call in options.calls.split(","):
        if call not in KINDS + LOOKS + ["any", MALLOC]:
            parser.error(f"unknown call {call}")
    check_image.absolute_references(options)
    return options


def main():
    options = parse_arguments()
    if options.keep:
        os.makedirs(options.keep, exist_ok=True)
    tried = exited_0 = bad = 0
    try:
        with workfolder.Scratch(options.workdir) as scratch, ThreadPoolExecutor(options.jobs) as pool:
            originals = workfolder.Originals(scratch, workfolder.split_list(options.files),
                                             workfolder.split_list(options.also))
            loop = Loop(options, originals, scratch)
            for call in options.calls.split(","):
                clean, *faulty = loop.run_kind(call, pool)
                if clean.status != 0 or clean.problem:
                    print(f"faultloop: without a fault: status {clean.status}, {clean.problem or 'check passed'}",
                          file=sys.stderr)
                    return 2
                for outcome in faulty:
                    tried += 1
                    where = f"{call} {outcome.number} of {outcome.count} ({outcome.line})"
                    if outcome.status == 0:
                        exited_0 += 1
                        print(f"exited 0: {where}")
                    if outcome.problem or (options.strict and outcome.status == 0):
                        bad += 1
                        print(f"BAD: {where}: status {outcome.status}: {outcome.problem or 'exited 0'}")
    except (workfolder.SetupError, OSError) as error:
        print(f"faultloop: {error}", file=sys.stderr)
        return 2
    print(f"faults: {tried} tried, {exited_0} exited 0, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
