#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg compare" beside qemu-img: the same output, the same status.

bats_require_minimum_version 1.5.0
load lib/common

make_images() {
    truncate -s 1M empty data
    truncate -s 2M longer
    fill data 70000 5000 0x21
    fill data 1000000 5 0x21
    cp data other && fill other 200000 1
    cp data last && fill last 1048575 1
    cp data first && fill first 0 1
    cp --sparse=never data full
    cp --sparse=never empty zeroes
    cp longer longer-data && fill longer-data 1500000 10
    cp longer longer-zeroes && fill longer-zeroes 1310720 65536 0
    cp data both && truncate -s 2M both && fill both 200000 1 && fill both 1500000 1
}

@test "all pairs" {
    make_images
    local a b
    for a in *; do
        for b in *; do
            same_output compare "$a" "$b"
        done
    done
}

@test "strict mode" {
    make_images
    same_output compare -s data data
    same_output compare -s data full
    same_output compare -s empty zeroes
    same_output compare -s empty longer
    same_output compare -s data other
    same_output compare -s full other
    same_output compare -q -s empty longer
    same_output compare -q -s data full
}

@test "options" {
    make_images
    same_output compare -q data other
    same_output compare -q data full
    same_output compare -f raw -F raw data full
    same_output compare -U data full
    same_output compare -T none data full
    same_output compare -T unsafe data full
    same_output compare -p -q data full
    same_output compare --object secret,id=s,data=x data full
    same_output compare --image-opts driver=raw,file.filename=data driver=raw,file.filename=other
    same_output compare data full -q
}

@test "what cannot be compared" {
    make_images
    mkdir folder
    same_output compare data missing
    same_output compare missing data
    same_output compare data folder
    same_output compare -f foo data full
    same_output compare -F foo data full
    same_output compare -T foo data full
    local data=driver=raw,file.filename=data
    same_output compare --image-opts -f raw "$data" "$data"
}

@test "a usage error is 2, as 1 says that the images differ" {
    make_images
    local arguments
    for arguments in "" data "data full empty" "--foo data full" "-U=1 data full" "--lock-wait=x data data"; do
        # shellcheck disable=SC2086 # a list
        run -2 --separate-stderr blkimg compare $arguments
        assert_equal "${#stderr_lines[@]}" 1
    done
    fill data 0 512 0x77
    run -1 blkimg compare data full
}

@test "sizes that are no multiple of a sector" {
    local a b
    for a in 0 1 512 1000 1024 1025; do
        truncate -s "$a" "s$a"
        ((a == 0)) || { cp "s$a" "d$a" && fill "d$a" $((a - 1)) 1; }
    done
    for a in *; do
        for b in *; do
            same_output compare "$a" "$b"
            same_output compare -s "$a" "$a"
        done
    done
}

@test "a backing file that is longer than the shorter image" {
    need_format qcow2
    need qemu-img
    local longer
    qemu-img create -q -f qcow2 b 1M
    blkimg io -f qcow2 -c "write -q -P 1 512k 64k" b
    qemu-img create -q -f qcow2 -F qcow2 -b b short 64k
    truncate -s 1M empty data
    fill data 524288 65536 1
    for longer in empty data; do
        same_output compare -f raw -F qcow2 "$longer" short
        same_output compare -f qcow2 -F raw short "$longer"
        same_output compare -s -f raw -F qcow2 "$longer" short
        same_output compare -s -f qcow2 -F raw short "$longer"
    done
    same_output compare -f qcow2 -F qcow2 b short
    run -1 blkimg compare -f qcow2 -F raw short data
    assert_output --partial "Content mismatch at offset 524288!"
}

@test "-p: the progress in the form that scripts read" {
    make_images
    run blkimg compare -p data full
    assert_success
    [[ $output == *"(0.00/100%)"*"(100.00/100%)"*"Images are identical."* ]]
    # The last step is less than what is shown of the others.
    fill odd 0 3000000
    cp odd odd2
    run blkimg compare -p odd odd2
    assert_success
    [[ $output == *"(100.00/100%)"*"Images are identical."* ]]
}

@test "the first of several differences is the one that is told" {
    local i at
    truncate -s 32M a
    fill a 0 33554432 0x11
    for ((i = 0; i < 10; i++)); do
        cp a b
        at=$((i * 3000000 + 5000))
        fill b 33000000 1
        fill b $((at + 700000)) 1
        fill b "$at" 1
        same_output compare a b
    done
}

@test "an error that comes after a difference does not hide it, one that comes before does" {
    truncate -s 8M a
    fill a 0 8388608 0x11
    cp a b
    fill b 4194304 1
    printf '[inject-error]\nevent = "read_aio"\nsector = "12000"\n' >late
    printf '[inject-error]\nevent = "read_aio"\nsector = "1000"\n' >early
    run blkimg compare blkdebug:late:a b
    assert_failure 1
    assert_output "Content mismatch at offset 4194304!"
    run blkimg compare blkdebug:early:a b
    assert_failure 4
    assert_output --partial "reading"
    cp a b
    run blkimg compare b blkdebug:late:a
    assert_failure 4
}

@test "qcow2: layers, compression and allocation" {
    need_format qcow2
    make_images
    qemu-img convert -O qcow2 data q
    qemu-img convert -c -O qcow2 data c
    qemu-img convert -O qcow2 -o preallocation=metadata data p
    qemu-img create -q -f qcow2 -b data -F raw top
    qemu-io -c 'write -P 5 300000 1000' top >/dev/null
    qemu-img create -q -f qcow2 -b top -F qcow2 above
    qemu-img create -q -f qcow2 -b data -F raw larger 3M
    local a b
    for a in data q c p top above larger longer; do
        for b in q c p top above larger; do
            same_output compare "$a" "$b"
            same_output compare -s "$a" "$b"
        done
    done
}
