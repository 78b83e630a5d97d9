#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg snapshot" against qemu-img.

bats_require_minimum_version 1.5.0
load lib/common

@test "formats that have no snapshots" {
    truncate -s 1M a
    cp a before
    same_output snapshot -l a
    assert_equal "$output" ''
    local action
    for action in -c -a -d; do
        same_output snapshot "$action" one a
        assert_equal "$status" 1
        run -1 --separate-stderr blkimg snapshot "$action" one a
        [[ $stderr == *"'one' of 'a'"*"no snapshots"* && ${#stderr_lines[@]} == 1 ]]
    done
    cmp a before
}

@test "what cannot be meant" {
    truncate -s 1M a
    local args
    for args in '' 'a a' '-l nosuch' '-c' '-l -c x a' '-a x -d x a' '-U -c x a'; do
        # shellcheck disable=SC2086 # a list
        same_output snapshot $args
        assert_equal "$status" 1
    done
}

@test "qcow2: the list" {
    need_format qcow2
    qemu-img create -q -f qcow2 a 10M
    same_output snapshot -l a
    qemu-img snapshot -c one a
    qemu-img snapshot -c 'a longer name than the column' a
    same_output snapshot -l a
    same_output snapshot -q -l a
    same_output snapshot -U -l a
    same_output snapshot a
}

@test "qcow2: make, apply, delete" {
    need_format qcow2
    blkimg create -q -f qcow2 a 10M
    qemu-io -c 'write -P 1 0 64k' a >/dev/null
    blkimg snapshot -c one a
    qemu-io -c 'write -P 2 0 128k' a >/dev/null
    blkimg snapshot -q -c two a
    qemu-io -c 'write -P 3 0 64k' a >/dev/null
    qemu-img check -q a
    blkimg snapshot -a one a
    qemu-img check -q a
    qemu-io -c 'read -P 1 0 64k' -c 'read -P 0 64k 64k' a >out
    [[ $(<out) != *verification* ]]
    blkimg snapshot -a 2 a
    qemu-io -c 'read -P 2 0 128k' a >out
    [[ $(<out) != *verification* ]]
    blkimg snapshot -d one a
    qemu-img check -q a
    assert_equal "$(qemu-img snapshot -l a | tail -n +3 | awk '{ print $2 }')" two
    run -1 --separate-stderr blkimg snapshot -d one a
    [[ $stderr == *"'one'"* && ${#stderr_lines[@]} == 1 ]]
    run -1 --separate-stderr blkimg snapshot -a nosuch a
    [[ $stderr == *"'nosuch'"* && ${#stderr_lines[@]} == 1 ]]
}
