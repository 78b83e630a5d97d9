# SPDX-License-Identifier: MIT
# A command stopped in the middle of making its target.
# shellcheck shell=bash

has_unnamed_file() {
    [[ $(readlink /proc/"$1"/fd/* 2>/dev/null) == *" (deleted)"* ]]
}

# start_target FILE: creates a large preallocated image and stops (SIGSTOP) while it is being
# written. The process is $target_pid; the file system must have unnamed files.
start_target() {
    "$BLKIMG" create -q -f raw -o preallocation=full "$1" 16G &
    target_pid=$!
    wait_for 20 has_unnamed_file "$target_pid"
    kill -STOP "$target_pid"
}
