#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Holds a writer's locks on all the given files, as QEMU does, until stdin ends.

Prints "ready" when it has them. Usage: holdlocks.py FILE...
"""
import fcntl
import os
import struct
import sys

F_OFD_SETLK = 37
WRITER = (100, 101, 103, 201, 203)


def hold(name):
    fd = os.open(name, os.O_RDWR)
    for byte in WRITER:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(fd, F_OFD_SETLK, lock)


for path in sys.argv[1:]:
    hold(path)
print("ready", flush=True)
sys.stdin.read()
