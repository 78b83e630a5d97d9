#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg map" against qemu-img: the same extents in the same words.

bats_require_minimum_version 1.5.0
load lib/common

both_forms() {
    same_output map "$@"
    same_output map --output=json "$@"
}

@test "raw images: holes, data, sizes that are no multiple of a sector" {
    local size
    for size in 0 1 511 512 1000 10M; do
        truncate -s "$size" "i$size"
        both_forms -f raw "i$size"
    done
    fill i10M 1M 192k
    fill i10M $((5 * 1048576)) 4096
    both_forms i10M
    both_forms "$PWD/i10M"
    printf x >one
    both_forms -f raw one
    head -c 5000 /dev/zero >zeroes
    both_forms -f raw zeroes
}

@test "a part of the image" {
    truncate -s 10M a
    fill a 1M 192k
    both_forms -f raw --start-offset=1M --max-length=64k a
    both_forms -f raw -s 1048000 -l 2k a
    both_forms -f raw --start-offset=100 --max-length=100 a
    both_forms -f raw --start-offset=20M a
    both_forms -f raw --max-length=0 a
    both_forms -f raw --max-length=1G a
}

@test "raw with offset and size" {
    truncate -s 10M a
    fill a 1M 192k
    both_forms --image-opts driver=raw,offset=1M,size=4M,file.filename=a
}

@test "qcow2: data, zeroes, compressed, chains" {
    need_format qcow2
    qemu-img create -q -f qcow2 base 10M
    qemu-io -c 'write 1M 1M' -c 'write -z 3M 1M' base >/dev/null
    both_forms base
    qemu-img create -q -f qcow2 -b base -F qcow2 top 12M
    qemu-io -c 'write 7M 128k' -c 'write -z 1M 64k' top >/dev/null
    both_forms top
    qemu-img create -q -f qcow2 -b top -F qcow2 short 2M
    qemu-img create -q -f qcow2 -b short -F qcow2 tall 4M
    both_forms tall
    qemu-io -c 'write -c 5M 64k' top >/dev/null
    same_output map --output=json top
    # The human form cannot show it; what comes before is printed all the same.
    same_output map top
    assert_equal "$status" 1
    assert_equal "$(wc -l <<<"$output")" 2
}
