# SPDX-License-Identifier: MIT
# For tests with an image that another program has open. To be loaded after lib/common.
# shellcheck shell=bash

# hold PROGRAM...: a program that has an image open until it is released; $holder is its process.
hold() {
    mkfifo hold.in
    "$@" <hold.in >/dev/null 2>&1 &
    holder=$!
    exec 8>hold.in
}

release() {
    exec 8>&-
    wait "$holder" || true
    rm -f hold.in
}

# held FILE: the bytes that others hold, as the kernel lists them.
held() {
    local inode
    inode=$(stat -c %i "$1")
    awk -v inode="$inode" '$2 == "OFDLCK" && $6 ~ ":" inode "$" {
        for (byte = $7; byte <= $8; byte++) print byte }' /proc/locks | sort -n | xargs
}

is_held() {
    [[ $(held "$1") == "$2" ]]
}

# The bytes held by a program that writes to a qcow2 image and allows no other writer.
# shellcheck disable=SC2034 # for the tests
writer='100 101 103 201 203'

# hold_writable IMAGE: qemu-io has it open until release. A test that polled by taking the lock
# would sometimes take it from qemu-io.
hold_writable() {
    hold qemu-io "$1"
    wait_for 10 is_held "$1" "$writer"
}
