# SPDX-License-Identifier: MIT
"""What the drivers of both preloaded objects share: fresh directories and the object itself."""

import filecmp
import importlib
import os
import shlex
import shutil
import subprocess
import tempfile

import check_image
import crashlog

HERE = os.path.dirname(os.path.abspath(__file__))


class SetupError(Exception):
    """The tool cannot do its work; says nothing about the command under test."""


def split_list(text):
    return [name for name in text.split(":") if name] if text else []


def find_preload(name, scratch):
    """The built object: of the test build, beside the source, or compiled now."""
    sources = [name + ".c", "preload.h", "preload-calls.h"]
    newest = max(os.path.getmtime(os.path.join(HERE, source)) for source in sources)
    for folder in filter(None, (os.environ.get("TEST_TOOLS"), HERE)):
        path = os.path.join(folder, name + ".so")
        if os.path.exists(path) and os.path.getmtime(path) >= newest:
            return os.path.abspath(path)
    target = os.path.join(scratch, name + ".so")
    command = [os.environ.get("CC", "cc"), "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC",
               "-o", target, os.path.join(HERE, name + ".c"), "-ldl"]
    if subprocess.run(command, check=False).returncode != 0:
        raise SetupError(f"cannot compile {name}.c")
    return target


def preload_environment(library):
    environment = dict(os.environ)
    others = environment.get("LD_PRELOAD")
    environment["LD_PRELOAD"] = library + (":" + others if others else "")
    return environment


def run_check(check, folder, environment, timeout=None):
    """Runs a --check on the folder; returns what is wrong, or None.

    A tool of this directory that has judge_folder() is called here and not run as a program: an
    interpreter that starts costs more than what it is to judge.
    """
    words = shlex.split(check)
    if len(words) > 1 and words[0] == "python3" and os.path.dirname(os.path.abspath(words[1])) == HERE:
        module = importlib.import_module(os.path.basename(words[1])[:-3])
        if hasattr(module, "judge_folder"):
            return module.judge_folder(words[2:] + [folder], environment)
    try:
        result = subprocess.run(words + [folder], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"the check did not end in {timeout} s"
    if result.returncode != 0:
        return f"check status {result.returncode}: {check_image.first_lines(result.stdout, 4)}"
    return None


class Originals:
    """Copies of the command's files, from which fresh folders are made.

    files may be missing: then the command is to make them. also are files that
    the command only reads; folders get hard links to one copy of them.
    """

    def __init__(self, scratch, files, also):
        self.before = os.path.join(scratch, "before")
        self.also_folder = os.path.join(scratch, "also")
        os.makedirs(self.before)
        os.makedirs(self.also_folder)
        self.names = [os.path.basename(path) for path in files]
        self.also = [os.path.basename(path) for path in also]
        if len(set(self.names + self.also)) != len(self.names) + len(self.also):
            raise SetupError("two files have the same name; all files go into one folder")
        for path in files:
            if os.path.exists(path):
                crashlog.copy_sparse(path, os.path.join(self.before, os.path.basename(path)))
        for path in also:
            crashlog.copy_sparse(path, os.path.join(self.also_folder, os.path.basename(path)))

    def link_also(self, folder):
        for name in self.also:
            os.link(os.path.join(self.also_folder, name), os.path.join(folder, name))

    def lay_out(self, folder):
        """A fresh folder to run the command in, with files of its own."""
        os.makedirs(folder)
        for name in os.listdir(self.before):
            crashlog.copy_sparse(os.path.join(self.before, name), os.path.join(folder, name))
        for name in self.also:
            crashlog.copy_sparse(os.path.join(self.also_folder, name), os.path.join(folder, name))

    def assert_also_unchanged(self, folder):
        for name in self.also:
            if not filecmp.cmp(os.path.join(folder, name), os.path.join(self.also_folder, name), shallow=False):
                raise SetupError(f"the command changed {name}: list it with --files")


class Scratch:
    """A temporary folder that goes away with the block that uses it."""

    def __init__(self, parent):
        self.path = tempfile.mkdtemp(prefix="blkimg-states-", dir=parent)

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)
