#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg measure" against qemu-img: the same numbers.

bats_require_minimum_version 1.5.0
load lib/common

both_forms() {
    same_output measure "$@"
    same_output measure --output=json "$@"
}

@test "raw: an empty image, and one from a source" {
    both_forms --size 1G
    both_forms --size 1000 -O raw
    both_forms --size ' +1M'
    both_forms --size 0
    both_forms -o size=2M --size 1M
    truncate -s 1000 a
    both_forms -f raw a
    both_forms -O raw a
    both_forms --image-opts driver=raw,file.filename=a
}

@test "what cannot be meant" {
    truncate -s 1M a
    local args
    for args in '' '--size 1M a' 'a a' '--size 1M --image-opts' '--size 1M -f raw' '--size 1M -l s' \
        '--size 1M -O bogus' '--size 1M -O blkdebug' '--size 1M -o bogus=1' '-l s a' nosuch; do
        # shellcheck disable=SC2086 # a list
        same_output measure $args
        assert_equal "$status" 1
    done
    run -1 --separate-stderr blkimg measure --size 1M -o bogus=1
    [[ $stderr == *"'bogus'"* ]]
    assert_equal "${#stderr_lines[@]}" 1
}

@test "qcow2: an empty image" {
    need_format qcow2
    local options size
    for size in 0 1M 1G 5T; do
        both_forms --size "$size" -O qcow2
        for options in cluster_size=4k cluster_size=2M refcount_bits=1 extended_l2=on \
            preallocation=full; do
            both_forms --size "$size" -O qcow2 -o "$options"
        done
    done
}

@test "qcow2: from a source, with bitmaps and snapshots" {
    need_format qcow2
    qemu-img create -q -f qcow2 a 64M
    qemu-io -c 'write 0 1M' -c 'write -z 2M 1M' -c 'write 40M 100k' a >/dev/null
    both_forms -O qcow2 a
    both_forms -O raw a
    qemu-img bitmap --add a b0
    qemu-img snapshot -c one a
    qemu-io -c 'write 10M 3M' a >/dev/null
    both_forms -O qcow2 a
    both_forms -O qcow2 -l one a
    both_forms -O qcow2 -l snapshot.id=1 a
    same_output measure -O qcow2 -l nosuch a
    assert_equal "$status" 1
    qemu-img create -q -f qcow2 -b a -F qcow2 top 80M
    qemu-io -c 'write 20M 1M' top >/dev/null
    both_forms -O qcow2 top
}
