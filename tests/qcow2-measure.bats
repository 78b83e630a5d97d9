#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "measure -O qcow2": qemu-img's numbers, to the byte.

bats_require_minimum_version 1.5.0
load lib/common

# measure_alike ARG...: both outputs of both programs, human and JSON. Counts the cases.
measure_alike() {
    same_output measure -O qcow2 "$@"
    assert_equal "$status" 0
    same_output measure --output=json -O qcow2 "$@"
    cases=$((${cases-0} + 1))
}

@test "sizes alone, with all options" {
    local size options
    for size in 0 1 512 1000 65536 65537 100M 1G 5000000000 1T 63T; do
        measure_alike --size "$size"
    done
    for options in cluster_size=4k cluster_size=128k cluster_size=2M refcount_bits=1 refcount_bits=2 \
        refcount_bits=8 refcount_bits=32 refcount_bits=64 compat=0.10 compat=1.1 extended_l2=on \
        extended_l2=on,cluster_size=16k extended_l2=on,cluster_size=2M preallocation=off preallocation=metadata \
        preallocation=falloc preallocation=full lazy_refcounts=on compression_type=zstd backing_file=none \
        data_file=none data_file_raw=on encryption=off nocow=on; do
        measure_alike --size 1G -o "$options"
        measure_alike --size 77777777777 -o "$options"
    done
    measure_alike --size 10G -o cluster_size=512
    measure_alike --size 10G -o cluster_size=512,refcount_bits=64
    measure_alike --size 1E -o cluster_size=2M
    echo "# $cases cases" >&3
    ((cases >= 60))
}

@test "source images" {
    local image options
    qemu-img create -q -f raw raw 50M
    fill raw 1M 3M 1
    fill raw 20000k 100 2
    fill raw 49M 1M 3
    qemu-img create -q -f qcow2 base 20M
    qemu-io -c 'write 0 1M' -c 'write 3M 4k' -c 'write -z 5M 1M' base >/dev/null
    qemu-img create -q -f qcow2 -b base -F qcow2 top 30M
    qemu-io -c 'write 512k 2M' -c 'write 25M 10k' -c 'write -z 3M 64k' -c 'discard 100k 100k' top >/dev/null
    qemu-img create -q -f qcow2 -o cluster_size=512 small 3M
    qemu-io -c 'write 0 512' -c 'write 1k 512' -c 'write 5k 3k' small >/dev/null
    qemu-img convert -c -O qcow2 raw compressed
    qemu-img create -q -f qcow2 -o preallocation=metadata reserved 8M
    qemu-img create -q -f qcow2 -o extended_l2=on parts 8M
    qemu-io -c 'write 0 2k' -c 'write 10k 6k' -c 'write 1M 64k' parts >/dev/null
    for image in raw base top small compressed reserved parts; do
        for options in cluster_size=64k cluster_size=512 cluster_size=4k cluster_size=2M \
            compat=0.10 extended_l2=on preallocation=full backing_file=base,backing_fmt=qcow2 refcount_bits=64; do
            measure_alike -o "$options" "$image"
        done
        measure_alike "$image"
    done
    echo "# $cases cases" >&3
    ((cases >= 60))
}

@test "bitmaps of the source" {
    qemu-img create -q -f qcow2 image 500M
    measure_alike image
    qemu-img bitmap --add image one
    measure_alike image
    qemu-img bitmap --add -g 512 image two
    qemu-img bitmap --add -g 64M --disable image "$(printf 'a long name %0200d' 1)"
    measure_alike image
    measure_alike -o cluster_size=4k image
    measure_alike -o cluster_size=2M image
    same_output measure -O qcow2 -o compat=0.10 image
    qemu-img create -q -f qcow2 -o compat=0.10 old 10M
    measure_alike old
}

@test "a snapshot of the source" {
    qemu-img create -q -f qcow2 image 10M
    qemu-io -c 'write 0 1M' image >/dev/null
    qemu-img snapshot -c one image
    qemu-io -c 'write 2M 5M' image >/dev/null
    measure_alike image
    measure_alike -l one image
    measure_alike -l snapshot.id=1 image
}

@test "what both refuse" {
    local options
    for options in cluster_size=1000 refcount_bits=3 compat=3 preallocation=some extended_l2=on,cluster_size=8k \
        encrypt.format=luks bogus=1; do
        same_output measure -O qcow2 --size 1G -o "$options"
        assert_equal "$status" 1
    done
    same_output measure -O qcow2 --size 10P
    assert_equal "$status" 1
    same_output measure -O qcow2 --size 1T -o cluster_size=512
    assert_equal "$status" 1
}
