#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Judges the backing file that a qcow2 image names after a crash or a fault: the old one or the new one.

usage: check_backing.py --image NAME --old NAME --new NAME FOLDER

After a run with faults that ended with 0 (FAULT_STATUS) it must be the new one. An empty name is none.
"""

import argparse
import os
import sys

import check_image


def judge_folder(arguments, environment):
    """Returns what is wrong, or None. Arguments and environment as of the command."""
    parser = argparse.ArgumentParser(description="Judges the name of a backing file after a crash or a fault.")
    parser.add_argument("--image", required=True)
    parser.add_argument("--old", required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("folder")
    options = parser.parse_args(arguments)
    now = check_image.backing_name(os.path.join(options.folder, options.image))
    if now not in (options.old, options.new):
        return f"the backing file is '{now}'"
    if environment.get("FAULT_STATUS") == "0" and now != options.new:
        return f"status 0, and the backing file is '{now}'"
    return None


if __name__ == "__main__":
    sys.exit(judge_folder(sys.argv[1:], os.environ))
