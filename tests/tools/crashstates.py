#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs a command under crash-preload and checks what a crash at any moment may leave.

usage: crashstates.py run --files A:B [--also C:D] (--check CMD | --image NAME ...) [options] -- COMMAND

The files are copied into one directory under their own names and the command runs
there. From its log two kinds of states are rebuilt, for moments after each
event (a "prefix" of the log):

  kill   all that the kernel was given is there: every event of the prefix.
  power  what a completed sync covers is there. A write is covered by a sync of
         its own file that started after the write had returned (or was
         synced itself, O_DSYNC). Of the rest any sectors of 512 bytes may be
         there or not, each in any version it had since the last sync.

How the rest is modelled:
- Zeroing and punching by fallocate loses sectors as writes do.
- Sizes set by truncate are kept up to some point and lost after it, in order,
  as a journal does it. A write that extends the file extends it as far as its
  kept sectors, or to its end with zeroes in the place of what is lost.
- Names likewise, in order; a sync of the directory covers them. A sync of a file
  also covers the creation of its name, but no link and no rename.
- sync_file_range promises nothing about the medium and so covers nothing.
- Calls that were in progress at that moment (threads) may have happened or not.

Before anything is checked, the replay of the whole log must equal what the
command left; otherwise the recorder missed something and the run is refused.

A state is random, but fixed by the seed, its index, --states and the log.
"""

import argparse
import filecmp
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import check_image
import crashlog
import workfolder
from crashlog import (FLAG_EVERYTHING, FLAG_FOLDER, FLAG_SYNCED, LINK, MADE, RENAME, SECTOR, SYNC, TRUNCATE,
                      UNLINK, UNSUPPORTED)

RETRIES = 8          # tries to find a state that was not there yet
TAIL = 6             # events shown of the prefix of a bad state
SHOWN = 10           # bad states described in full
SLICE = 50           # states that one process tries in a row, at least
MAX_SLICES = 64
MAX_CHOICES = 16     # more open choices than this count as enough for any number of states


@dataclass
class State:
    """A state to try. prefix counts the operations that had ended."""

    index: int
    kind: str
    prefix: int


@dataclass
class Verdict:
    """A state that failed its check."""

    state: State
    problem: str
    detail: list = field(default_factory=list)


# ---- which states ---------------------------------------------------------------


def changes_names(operation):
    return operation.kind in (MADE, LINK, RENAME, UNLINK)


def open_choices(operations):
    """For each prefix how many yes-or-no choices a power cut leaves: one for each sector
    or name that no sync covers."""
    waiting, counts = [], [0]
    for operation in operations:
        if operation.kind == SYNC:
            everything = operation.flags & FLAG_EVERYTHING
            waiting = [(other, choices) for other, choices in waiting
                       if other.end > operation.start
                       or not (everything or (operation.flags & FLAG_FOLDER if changes_names(other)
                                              else other.file == operation.file))]
        elif operation.is_data() and not operation.flags & FLAG_SYNCED:
            waiting.append((operation, max(sector_count(operation), 1)))
        elif operation.kind == TRUNCATE or changes_names(operation):
            waiting.append((operation, 1))
        counts.append(sum(choices for _, choices in waiting))
    return counts


def share(wanted, capacities):
    """Shares out a number evenly, giving no place more than its capacity."""
    shares = [0] * len(capacities)
    places = sorted(range(len(capacities)), key=lambda place: capacities[place])
    for done, place in enumerate(places):
        # The remainder goes to the places that can take most.
        shares[place] = min(capacities[place], wanted // (len(places) - done))
        wanted -= shares[place]
    return shares


def plan(operations, wanted, exhaustive):
    """Spreads the wanted number of states over the prefixes; returns them in order of prefix."""
    count = len(operations)
    kills = count + 1 if exhaustive else min(count + 1, max(1, wanted // 3))
    powers = max(wanted - kills, count + 1 if exhaustive else 1)
    states = [("kill", number * count // max(kills - 1, 1)) for number in range(kills)]
    capacities = [1 << min(choices, MAX_CHOICES) for choices in open_choices(operations)]
    for prefix, number in enumerate(share(powers, capacities)):
        states += [("power", prefix)] * (max(number, 1) if exhaustive else number)
    states.sort(key=lambda state: state[1])
    return [State(index, kind, prefix) for index, (kind, prefix) in enumerate(states)]


# ---- what is kept of one operation -----------------------------------------------


def random_runs(rng, sectors):
    """Random kept runs (first, count) of an operation's sectors, neither none nor all."""
    style = rng.randrange(4)
    if style == 0:
        return ((0, rng.randrange(1, sectors)),)
    if style == 1:
        first = rng.randrange(1, sectors)
        return ((first, sectors - first),)
    if sectors <= 128 and style == 2:
        edges = [at for at in range(1, sectors) if rng.random() < 0.5]
    else:
        edges = sorted(rng.sample(range(1, sectors), min(sectors - 1, rng.randrange(1, 32))))
    edges = [0] + edges + [sectors]
    odd = rng.randrange(2)
    runs = tuple((edges[i], edges[i + 1] - edges[i]) for i in range(len(edges) - 1) if i % 2 == odd)
    return runs or ((0, sectors - 1),)


def sector_count(operation):
    return sum(piece.length for piece in operation.pieces) // SECTOR


# How likely each data operation is kept whole, torn; the rest is lost. The first entries
# leave one operation out, or keep one only: what most often shows a missing barrier.
STYLES = ["without-one", "only-one", "none", "half", "torn", "late", "early", "most"]


def choose_data(rng, operations):
    """What the medium has of each data operation: True, False or kept runs."""
    style = rng.choice(STYLES)
    count = len(operations)
    special = rng.randrange(count) if count else 0
    choices = []
    for number, operation in enumerate(operations):
        if style == "without-one":
            kept = number != special
        elif style == "only-one":
            kept = number == special
        elif style == "none":
            kept = False
        elif style == "late":
            kept = number >= special
        elif style == "early":
            kept = number < special
        elif style == "most":
            kept = rng.random() < 0.9
        else:
            kept = rng.random() < 0.5
        may_tear = style == "torn" or number == special
        if may_tear and sector_count(operation) > 1 and rng.random() < 0.5:
            kept = random_runs(rng, sector_count(operation))
        choices.append(kept)
    return choices


def random_cut(rng, least, most):
    """How many operations of an ordered list are kept; its ends are as likely as the rest."""
    return rng.choice((least, most, rng.randint(least, most)))


# ---- the files of a state ---------------------------------------------------------


class Replay:
    """Two sets of files at a prefix that only moves forward: live (all that the kernel
    was given) and medium (what syncs cover). Owns the folder."""

    def __init__(self, log, folder):
        self.log = log
        self.folder = folder
        self.prefix = 0
        self.file_operations = [[] for _ in range(log.file_count)]
        self.name_operations = []
        for operation in log.operations:
            if changes_names(operation):
                self.name_operations.append(operation)
            elif operation.is_data() or operation.kind == TRUNCATE:
                self.file_operations[operation.file].append(operation)
        self.stable = [0] * log.file_count      # log position that syncs of the file cover
        self.stable_names = 0                   # and of the folder
        self.on_medium = [0] * log.file_count   # operations applied to medium
        self.names_on_medium = 0
        self.medium_names = crashlog.Names(log.initial)
        self.live_names = crashlog.Names(log.initial)
        for part in ("live", "medium"):
            log.lay_out(os.path.join(folder, part))

    def path(self, part, number):
        return os.path.join(self.folder, part, str(number))

    def _apply(self, part, operation):
        with open(self.path(part, operation.file), "r+b") as file:
            crashlog.apply_whole(file.fileno(), self.log.bytes, operation)

    def advance(self, prefix):
        """Moves to a later prefix."""
        for operation in self.log.operations[self.prefix:prefix]:
            if operation.is_data() or operation.kind == TRUNCATE:
                self._apply("live", operation)
            elif operation.kind == SYNC:
                self._note_sync(operation)
            self.live_names.apply(operation)
        self.prefix = prefix
        for number, operations in enumerate(self.file_operations):
            at = self.on_medium[number]
            while at < len(operations) and operations[at].end <= self.stable[number]:
                self._apply("medium", operations[at])
                at += 1
            self.on_medium[number] = at
        while (self.names_on_medium < len(self.name_operations)
               and self.name_operations[self.names_on_medium].end <= self.stable_names):
            self.medium_names.apply(self.name_operations[self.names_on_medium])
            self.names_on_medium += 1

    def _note_sync(self, sync):
        everything = sync.flags & FLAG_EVERYTHING
        if everything or sync.flags & FLAG_FOLDER:
            self.stable_names = max(self.stable_names, sync.start)
        for number in range(self.log.file_count):
            if everything or number == sync.file:
                self.stable[number] = max(self.stable[number], sync.start)

    def moment(self):
        """The log position of the prefix."""
        return self.log.operations[self.prefix - 1].end if self.prefix else 0

    def _under_way(self, operation):
        return operation.start < self.moment() < operation.end

    def open_operations(self, operations, first):
        """Operations after the stable ones that had at least started."""
        moment = self.moment()
        return [operation for operation in operations[first:]
                if operation.end <= moment or self._under_way(operation)]

    def choose_kill(self, rng):
        """Returns (names, {file: [(operation, choice)]}, key): what to put on top of live."""
        extra = {}
        for number, operations in enumerate(self.file_operations):
            chosen = [(operation, True) for operation in operations
                      if self._under_way(operation) and rng.random() < 0.5]
            if chosen:
                extra[number] = chosen
        done = [sum(operation.end <= self.moment() for operation in operations)
                for operations in self.file_operations + [self.name_operations]]
        key = ("kill", tuple(done), tuple(operation.end for chosen in extra.values() for operation, _ in chosen))
        return crashlog.Names(self.live_names.names), extra, key

    def choose_power(self, rng):
        """As choose_kill, on top of medium."""
        extra, key = {}, ["power", self.names_on_medium]
        for number, operations in enumerate(self.file_operations):
            waiting = self.open_operations(operations, self.on_medium[number])
            if waiting:
                extra[number] = self._choose_file(rng, waiting)
            key.append((self.on_medium[number], tuple((operation.end, choice)
                                                      for operation, choice in extra.get(number, ()) if choice)))
        waiting = self.open_operations(self.name_operations, self.names_on_medium)
        least = 0
        for number, operation in enumerate(waiting):
            if operation.kind == MADE and operation.end <= self.stable[operation.file]:
                least = number + 1
        kept = random_cut(rng, least, len(waiting))
        key.append(kept)
        names = crashlog.Names(self.medium_names.names)
        for operation in waiting[:kept]:
            names.apply(operation)
        return names, extra, tuple(key)

    def _choose_file(self, rng, waiting):
        data = [operation for operation in waiting if operation.kind != TRUNCATE]
        sizes = [operation for operation in waiting if operation.kind == TRUNCATE]
        kept_sizes = random_cut(rng, 0, len(sizes))
        choices = dict(zip((operation.end for operation in data), choose_data(rng, data)))
        for number, operation in enumerate(sizes):
            choices[operation.end] = number < kept_sizes
        for operation in data:
            if operation.flags & FLAG_SYNCED and operation.end <= self.moment():
                choices[operation.end] = True
            elif choices[operation.end] is not True and operation.size_after >= 0 and rng.random() < 0.25:
                choices[operation.end] = ("size", choices[operation.end])
        return [(operation, choices[operation.end]) for operation in waiting]

    def materialise(self, target, part, names, extra):
        """Makes the state's files in the folder target."""
        made = {}
        for name, number in names.names.items():
            path = os.path.join(target, name)
            if number in made:
                os.link(made[number], path)
                continue
            made[number] = path
            crashlog.copy_sparse(self.path(part, number), path)
            if number in extra:
                with open(path, "r+b") as file:
                    for operation, choice in extra[number]:
                        self._apply_choice(file.fileno(), operation, choice)

    def _apply_choice(self, fd, operation, choice):
        sized = isinstance(choice, tuple) and choice and choice[0] == "size"
        if sized:
            choice = choice[1]
        if choice is True:
            crashlog.apply_whole(fd, self.log.bytes, operation)
        elif choice:
            self._apply_runs(fd, operation, choice)
        if sized and os.fstat(fd).st_size < operation.size_after:
            os.ftruncate(fd, operation.size_after)

    def _apply_runs(self, fd, operation, runs):
        limit = max(os.fstat(fd).st_size, operation.size_after)
        base = 0
        for piece in operation.pieces:
            for first, count in runs:
                start = max(first * SECTOR - base, 0)
                end = min((first + count) * SECTOR - base, piece.length)
                if start < end:
                    crashlog.put(fd, self.log.bytes, piece, start, end - start, limit)
            base += piece.length


def headline(verdict, log, seed):
    state = verdict.state
    return (f"BAD state {state.index} ({state.kind}, prefix {state.prefix} of {len(log.operations)},"
            f" seed {seed}): {verdict.problem}")


# ---- trying states ------------------------------------------------------------------


def fingerprint(folder, names):
    """Stands for the names and the content of these files."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name in sorted(names):
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(b"%b\0%d\0" % (os.fsencode(name), os.fstat(file.fileno()).st_size))
            while piece := file.read(1 << 16):
                digest.update(piece)
    return digest.digest()


class Trial:
    """What the worker processes need; made before they are forked."""

    def __init__(self, options, log, originals, scratch, status):
        self.options = options
        self.log = log
        self.originals = originals
        self.scratch = scratch
        self.status = status
        self.judged = {}    # what check_image said of a state

    def check_image(self, folder, names, environment):
        """Different choices often make the same files, where a lost sector had the same content before: then the
        answer is that of the first time. The files of --also are the same for all states."""
        key = (fingerprint(folder, names), environment["STATE_FINAL"])
        if key not in self.judged:
            self.judged[key] = check_image.check_state(self.options, folder, environment)
        return self.judged[key]

    def judge(self, state, folder, names):
        """Runs the check; returns the problem or None."""
        final = state.prefix == len(self.log.operations) and self.status == 0
        environment = dict(os.environ, STATE_INDEX=str(state.index), STATE_KIND=state.kind,
                           STATE_PREFIX=str(state.prefix), STATE_FINAL="1" if final else "0")
        if self.options.image:
            problem = self.check_image(folder, names, environment)
            if problem:
                return problem
        for check in self.options.check:
            problem = workfolder.run_check(check, folder, environment, self.options.timeout)
            if problem:
                return problem
        return None

    def describe(self, state, extra):
        operations = self.log.operations
        lines = [f"  {number + 1:5} {operations[number].describe()}"
                 for number in range(max(0, state.prefix - TAIL), state.prefix)]
        if state.kind == "power":
            for chosen in extra.values():
                for operation, choice in chosen[-24:]:
                    fate = "kept" if choice is True else "torn" if choice and choice != ("size", False) else "lost"
                    lines.append(f"        {fate}: {operation.describe()}")
        return lines

    def try_states(self, states):
        """Tries states of ascending prefixes; returns (tried, [Verdict])."""
        home = os.path.join(self.scratch, f"part-{states[0].index}")
        replay = Replay(self.log, os.path.join(home, "base"))
        seen, verdicts, tried = set(), [], 0
        for state in states:
            replay.advance(state.prefix)
            choice = self._new_choice(replay, state, seen)
            if choice is None:
                continue
            if self.options.only not in (None, state.index):
                continue
            names, extra = choice
            folder = os.path.join(home, f"state-{state.index}")
            os.makedirs(folder)
            replay.materialise(folder, "live" if state.kind == "kill" else "medium", names, extra)
            self.originals.link_also(folder)
            tried += 1
            problem = self.judge(state, folder, names.names)
            if problem:
                verdicts.append(Verdict(state, problem, self.describe(state, extra)))
                if self.options.keep:
                    self._keep(folder, verdicts[-1])
            shutil.rmtree(folder)
        shutil.rmtree(home)
        return tried, verdicts

    def _keep(self, folder, verdict):
        target = os.path.join(self.options.keep, f"state-{verdict.state.index}")
        shutil.copytree(folder, target, dirs_exist_ok=True)
        with open(target + ".txt", "w", encoding="utf-8") as note:
            note.write("\n".join([headline(verdict, self.log, self.options.seed)] + verdict.detail) + "\n")

    def _new_choice(self, replay, state, seen):
        final = state.prefix == len(self.log.operations)
        for attempt in range(RETRIES):
            rng = random.Random(f"{self.options.seed}:{state.index}:{attempt}")
            names, extra, key = replay.choose_kill(rng) if state.kind == "kill" else replay.choose_power(rng)
            if (key, final) not in seen:
                seen.add((key, final))
                return names, extra
        return None


trial = None


def try_states(states):
    """Entry of a worker process; trial came to it by fork."""
    return trial.try_states(states)


def slices(states):
    """Consecutive runs of states. Their size does not depend on --jobs: duplicates are known
    within a slice only, and the same seed shall give the same states anywhere."""
    size = max(SLICE, -(-len(states) // MAX_SLICES))
    return [states[at:at + size] for at in range(0, len(states), size)]


# ---- recording -----------------------------------------------------------------------


def record(options, originals, scratch):
    """Runs the command under the recorder; returns (log, exit status)."""
    work = os.path.join(scratch, "work")
    log_path = os.path.join(scratch, "log")
    originals.lay_out(work)
    open(log_path, "wb").close()
    environment = workfolder.preload_environment(workfolder.find_preload("crash-preload", scratch))
    environment["CRASH_LOG"] = log_path
    environment["CRASH_FILES"] = ":".join(os.path.join(work, name) for name in originals.names)
    output = subprocess.DEVNULL if options.quiet else None
    status = subprocess.run(options.command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                            check=False).returncode
    originals.assert_also_unchanged(work)
    log = crashlog.Log(log_path, originals.before, work)
    if any(operation.kind == UNSUPPORTED for operation in log.operations):
        raise crashlog.LogError("the command maps an image writable: its writes cannot be recorded")
    verify(log, log.normalise(os.path.join(scratch, "replayed")), os.path.join(scratch, "replayed"), work, originals)
    return log, status


def verify(log, names, replayed, work, originals):
    """The log must explain what the command left, or the states would be fiction."""
    left = set(os.listdir(work)) - set(originals.also)
    if left != set(names.names):
        raise crashlog.LogError("the log does not explain the names that the command left: "
                                + ", ".join(sorted(left ^ set(names.names))))
    for name, number in names.names.items():
        if not filecmp.cmp(os.path.join(work, name), os.path.join(replayed, str(number)), shallow=False):
            raise crashlog.LogError(f"the log does not explain the content of {name}")


def parse_arguments():
    parser = argparse.ArgumentParser(description="Checks what a crash of a command may leave.")
    actions = parser.add_subparsers(required=True)
    run = actions.add_parser("run", help="record a command and check its crash states")
    run.add_argument("--files", required=True, help="images to watch, colon-separated; they may not exist yet")
    run.add_argument("--also", default="", help="files that are only read, such as backing files")
    run.add_argument("--check", action="append", default=[],
                     help="command that gets a state's folder; non-zero status is a violation; may be given again")
    run.add_argument("--states", type=int, default=1000, help="how many states (1000)")
    run.add_argument("--exhaustive-prefix", action="store_true", help="every prefix, whatever --states says")
    run.add_argument("--seed", type=int, default=None, help="seed (random, printed)")
    run.add_argument("--only", type=int, metavar="INDEX", help="try this state only (same seed, states, command)")
    run.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one a processor)")
    run.add_argument("--timeout", type=int, default=60, help="limit for one check in seconds (60)")
    run.add_argument("--keep", metavar="DIR", help="keep bad states there")
    run.add_argument("--workdir", default=None, help="parent of the temporary folder ($TMPDIR)")
    run.add_argument("--quiet", action="store_true", help="hide the command's standard output")
    run.add_argument("--expect-status", type=int, default=0, help="exit status that the command must have (0)")
    check_image.add_options(run)
    run.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    if not options.check and not options.image:
        parser.error("--check or --image is needed")
    check_image.absolute_references(options)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    return options


def main():
    global trial
    options = parse_arguments()
    if options.keep:
        os.makedirs(options.keep, exist_ok=True)
    started = time.monotonic()
    with workfolder.Scratch(options.workdir) as scratch:
        try:
            originals = workfolder.Originals(scratch, workfolder.split_list(options.files),
                                             workfolder.split_list(options.also))
            log, status = record(options, originals, scratch)
        except (workfolder.SetupError, crashlog.LogError, OSError) as error:
            print(f"crashstates: {error}", file=sys.stderr)
            return 2
        if status != options.expect_status:
            print(f"crashstates: the command ended with {status}", file=sys.stderr)
            return 2
        states = plan(log.operations, options.states, options.exhaustive_prefix)
        trial = Trial(options, log, originals, scratch, status)
        tried, verdicts = 0, []
        with ProcessPoolExecutor(options.jobs) as pool:
            for future in as_completed([pool.submit(try_states, part) for part in slices(states)]):
                part_tried, part_verdicts = future.result()
                tried += part_tried
                verdicts += part_verdicts
    verdicts.sort(key=lambda verdict: verdict.state.index)
    for verdict in verdicts[:SHOWN]:
        print(headline(verdict, log, options.seed))
        print("\n".join(verdict.detail))
    if len(verdicts) > SHOWN:
        print(f"and {len(verdicts) - SHOWN} more")
    left_out = "" if options.only is not None else f" duplicates left out: {len(states) - tried};"
    print(f"events: {len(log.operations)};{left_out}"
          f" {time.monotonic() - started:.1f} s")
    print(f"crash states: {tried} tried, {len(verdicts)} bad (seed {options.seed})")
    return 1 if verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
