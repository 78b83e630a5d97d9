# SPDX-License-Identifier: MIT
"""Runs commands and measures them. A process of its own, so that it stays small: a child counts the memory of the
process that it was forked from as its own peak, so a large parent would hide what the command needs.

Reads jobs and writes results, a line of JSON each, until stdin ends:

    {"argv": [...], "cwd": DIR, "stdout": FILE or null, "seconds": LIMIT}
    {"wall": SECONDS, "cpu": SECONDS, "peak_kib": N, "status": N, "stderr": TEXT}
"""

import json
import os
import signal
import sys
import time


def run(job):
    out = os.open(job["stdout"] or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    err = os.memfd_create("stderr")
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(job["cwd"])
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.execv(job["argv"][0], job["argv"])
        except OSError as problem:
            os.write(2, f"{job['argv'][0]}: {problem.strerror}\n".encode())
        os._exit(127)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(job["seconds"])
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - start
    signal.alarm(0)
    os.close(out)
    text = os.pread(err, 2000, 0).decode(errors="replace")
    os.close(err)
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_kib": usage.ru_maxrss,
            "status": os.waitstatus_to_exitcode(status), "stderr": text}


for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
