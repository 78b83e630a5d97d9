#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Under the names qemu-img and qemu-io the program says those names, and what scripts look for.

bats_require_minimum_version 1.5.0
load lib/common
load lib/locks

setup() {
    common_setup
    mkdir bin
    ln -s "$BLKIMG" bin/qemu-img
    ln -s "$BLKIMG" bin/qemu-io
    blkimg create -q -f qcow2 x 1M
}

@test "--version and --help begin with a line that version checks understand" {
    local name
    for name in qemu-img qemu-io; do
        "bin/$name" --version >out
        grep -qE "^$name version [0-9]+\.[0-9]+\.[0-9]+ \(blkimg [0-9.]+\)$" <(head -n 1 out)
    done
    bin/qemu-img --help >out
    grep -q '^qemu-img version 7\.' <(head -n 1 out)
    grep -qE '^\s+bitmap (.+) filename bitmap' out
    grep -q -- --target-is-zero out
    blkimg --version >out
    grep -qE '^blkimg version [0-9.]+$' <(head -n 1 out)
}

@test "help and version read only in part are no failure there, lost output is one" {
    need qemu-img
    local name line
    # The reader is gone before anything is written.
    mkfifo fifo
    unread() {
        exec 8<>fifo 7>fifo 8<&-
        "$@" >&7 7>&-
    }
    while read -r name line; do
        run -0 --separate-stderr unread "bin/$name" $line
        assert_equal "$name $line: $stderr" "$name $line: "
        run -1 --separate-stderr eval "bin/$name $line >/dev/full"
        assert_equal "$stderr" "$name: writing to standard output: No space left on device"
        [[ $name != qemu-img ]] || run -0 --separate-stderr unread qemu-img $line
    done <<'END'
qemu-img --help
qemu-img --version
qemu-img convert --help
qemu-img create -f qcow2 -o help
qemu-img amend -f qcow2 -o help
qemu-io --help
END
    # What is no help is still lost.
    run -1 --separate-stderr unread bin/qemu-img info x
    assert_equal "$stderr" "qemu-img: writing to standard output: Broken pipe"
    run -1 --separate-stderr unread bin/qemu-img map --output=json x
    run -1 --separate-stderr unread blkimg --help
    bash -c 'set -o pipefail; bin/qemu-img --help | head -n 1' >out
    assert_equal "$(wc -l <out)" 1
}

@test "messages have that name" {
    run -1 --separate-stderr bin/qemu-img info nosuch
    [[ $stderr == "qemu-img: "*"No such file or directory"* ]]
    run -1 --separate-stderr bin/qemu-img bogus
    [[ $stderr == "qemu-img: Command not found: bogus"* ]]
    run -1 --separate-stderr bin/qemu-img info
    [[ $stderr == "qemu-img: info: "*"(see 'qemu-img info --help')" ]]
    run -1 --separate-stderr bin/qemu-io nosuch
    [[ $stderr == "qemu-io: "* ]]
    run -1 --separate-stderr bin/qemu-io --nosuch
    [[ $stderr == "qemu-io: "*"(see 'qemu-io --help')" ]]
    run -1 --separate-stderr blkimg info nosuch
    [[ $stderr == "blkimg: "* ]]
}

@test "qemu-io takes io's command line" {
    bin/qemu-io -c 'write -P 7 0 4k' x >out
    bin/qemu-io -r -c 'read -P 7 0 4k' x >out
    grep -q 'read 4096/4096 bytes at offset 0' out
    echo 'read -P 7 0 4k' | bin/qemu-io -f qcow2 x >out
    grep -q 'read 4096/4096 bytes at offset 0' out
}

@test "info of an image in use: 0, but qemu-img's is a probe" {
    need qemu-io
    hold_writable x
    blkimg info x >out
    grep -q 'in use' out
    run -1 --separate-stderr bin/qemu-img info x
    [[ -z $output && $stderr == "qemu-img: "*'Failed to get shared "write" lock'* ]]
    run -1 --separate-stderr bin/qemu-img info --output=json --backing-chain x
    [[ -z $output ]]
    bin/qemu-img info -U x >out
    grep -q '^file format: qcow2$' out
    release
}
