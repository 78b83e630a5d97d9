#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# A machine's state (read -b, write -b of io) in qcow2, with qemu-io on the other side.
# shellcheck disable=SC2154 # set by run

load lib/common

# What read and write print does not matter here: -q, and a pattern that must fit.
mine() {
    local -a words=()
    local word
    for word in "${@:2}"; do
        words+=(-c "$word")
    done
    run "$BLKIMG" io -f qcow2 "${words[@]}" "$1"
    assert_success
    refute_output
}

# qemu-io 7.2 exits 0 where a pattern differs.
peer() {
    local -a words=()
    local word
    for word in "${@:2}"; do
        words+=(-c "$word")
    done
    run qemu-io -f qcow2 "${words[@]}" "$1"
    assert_success
    refute_output
}

# state_table CREATE-OPTIONS: each side writes what the other reads, past several L1 entries.
state_table() {
    need qemu-io
    qemu-img create -q -f qcow2 -o "$1" image 1M
    mine image 'write -qP 5 0 1M' 'write -b -qP 7 0 64k' 'write -b -qP 8 100k 1k' \
        'write -b -qP 9 40M 512' 'read -b -qP 8 100k 1k' 'read -b -qP 0 101k 1k'
    peer image 'read -b -qP 7 0 64k' 'read -b -qP 8 100k 1k' 'read -b -qP 0 101k 1k' \
        'read -b -qP 9 40M 512' 'read -b -qP 0 50M 4k' 'read -qP 5 0 1M' \
        'write -b -qP 17 1k 512' 'write -b -qP 19 80M 4k'
    mine image 'read -b -qP 7 0 1k' 'read -b -qP 17 1k 512' 'read -b -qP 7 1536 1k' \
        'read -b -qP 19 80M 4k' 'read -b -qP 0 90M 4k' 'read -qP 5 0 1M'
    run qemu-img check image
    assert_success
    run "$BLKIMG" check image
    assert_success
}

@test "what one writes the other reads" {
    state_table compat=1.1
    state_table compat=0.10
    state_table cluster_size=4k
    state_table extended_l2=on
    state_table cluster_size=512,refcount_bits=1
}

@test "snapshots keep the state that was there" {
    local tool
    need qemu-io
    for tool in blkimg qemu-img; do
        [[ $tool == qemu-img ]] || tool=$BLKIMG
        qemu-img create -q -f qcow2 image 1M
        mine image 'write -b -qP 1 0 128k'
        "$tool" snapshot -c one image
        # Parts of shared clusters: what surrounds them is copied.
        mine image 'write -b -qP 2 4k 4k' 'read -b -qP 1 0 4k' 'read -b -qP 1 8k 120k'
        "$tool" snapshot -c two image
        peer image 'read -b -qP 2 4k 4k' 'read -b -qP 1 8k 120k'
        "$tool" snapshot -a one image
        mine image 'read -b -qP 1 0 128k'
        peer image 'read -b -qP 1 0 128k'
        "$tool" snapshot -a two image
        mine image 'read -b -qP 1 0 4k' 'read -b -qP 2 4k 4k' 'read -b -qP 1 8k 120k'
        qemu-img check -q image
    done
}

@test "the backing file and the disk do not show in the state, nor the state in them" {
    need qemu-io
    qemu-img create -q -f qcow2 base 1G
    qemu-io -c 'write -qP 6 512M 1M' base
    qemu-img create -q -f qcow2 -b base -F qcow2 image 1M
    mine image 'read -b -qP 0 0 1M' 'write -b -qP 3 1k 1k' 'read -b -qP 0 0 1k' \
        'read -b -qP 0 2k 62k'
    peer image 'read -b -qP 3 1k 1k' 'read -b -qP 0 2k 62k'
    run "$BLKIMG" map --output=json image
    assert_success
    refute_output --partial '"data": true'
}

@test "the state stays while its place does" {
    need qemu-io
    qemu-img create -q -f qcow2 image 4M
    mine image 'write -b -qP 3 0 64k'
    "$BLKIMG" resize -q image 8M
    mine image 'read -b -qP 3 0 64k'
    peer image 'read -b -qP 3 0 64k'
    "$BLKIMG" resize -q --shrink image 1M
    mine image 'read -b -qP 3 0 64k'
    # Where the disk goes the state must go, and not become the disk.
    "$BLKIMG" resize -q image 1G
    mine image 'read -qP 0 0 1G' 'read -b -qP 0 0 64k'
    qemu-img check -q image
}

@test "where there is no place for it" {
    truncate -s 1M raw
    run "$BLKIMG" io -f raw -c 'write -b 0 512' -c 'read -b 0 512' raw
    assert_failure 1
    assert_output 'write failed: Operation not supported
read failed: Operation not supported'
    qemu-img create -q -f qcow2 image 1M
    run "$BLKIMG" io -r -c 'write -b 0 512' image
    assert_failure 1
    assert_output --partial 'read-only'
    # Through a filter, and with a format below another.
    mine blkdebug::image 'write -b -qP 4 0 512' 'read -b -qP 4 0 512'
    run "$BLKIMG" io -c 'read -b -qP 4 0 512' -c 'write -b -qP 5 0 512' --image-opts \
        driver=raw,file.driver=qcow2,file.file.filename=image
    assert_success
    mine image 'read -b -qP 5 0 512'
}
