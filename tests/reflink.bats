#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# On a file system with reflinks, convert and backup share blocks instead of copying them.

load lib/common

# new_space COMMAND...: the bytes that the command takes from the file system x.
new_space() {
    local before after
    sync -f x
    before=$(df --output=used -B1 x | tail -n 1)
    "$@" || return
    sync -f x
    after=$(df --output=used -B1 x | tail -n 1)
    echo $((after - before))
}

# A raw disk of 64 MiB with 24 MiB of data, of which 8 MiB are zeroes that were written.
make_disk() {
    loop_xfs 600M x
    truncate -s 64M x/disk
    blkimg io -f raw -c "write -P 1 0 8M" -c "write -P 2 20M 8M" -c "write -P 0 40M 8M" x/disk
    qemu-img convert -f raw -O qcow2 x/disk x/disk.qcow2
}

@test "convert shares blocks between raw and qcow2" {
    make_disk
    local from to
    for from in raw:disk qcow2:disk.qcow2; do
        for to in raw qcow2; do
            space=$(new_space blkimg convert -q -f "${from%:*}" -O "$to" "x/${from#*:}" "x/$from.$to")
            ((space < 2 << 20)) || fail "$from to $to took $space bytes"
            run -0 qemu-img compare -f raw -F "$to" x/disk "x/$from.$to"
            [[ $to == raw ]] || run -0 qemu-img check "x/$from.$to"
        done
    done
    run -0 qemu-img map --output=json -f raw x/raw:disk.raw
    assert_equal "$(jq -c '[.[] | select(.data) | [.start, .length]]' <<<"$output")" \
        '[[0,8388608],[20971520,8388608],[41943040,8388608]]'
}

@test "who gives -S gets holes, and what is compressed is no copy" {
    make_disk
    space=$(new_space blkimg convert -q -S 4k -f raw -O raw x/disk x/sparse)
    ((space >= 16 << 20)) || fail "$space bytes"
    assert_equal "$(stat -c %b x/sparse)" $((16 << 11))
    blkimg convert -q -c -f raw -O qcow2 x/disk x/c.qcow2
    run -0 qemu-img compare -f raw -F qcow2 x/disk x/c.qcow2
}

@test "what does not end at a block is copied" {
    loop_xfs 600M x
    head -c $((5 * 1048576 + 1536)) /dev/urandom >x/odd
    space=$(new_space blkimg convert -q -f raw -O raw x/odd x/odd2)
    ((space < 3 << 20)) || fail "$space bytes"
    run -0 cmp x/odd x/odd2
    # Clusters of 512 bytes lie where the file system has no blocks of its own.
    blkimg convert -q -f raw -O qcow2 -o cluster_size=512 x/odd x/small.qcow2
    blkimg convert -q -f qcow2 -O raw x/small.qcow2 x/odd3
    run -0 cmp x/odd x/odd3
    run -0 qemu-img check x/small.qcow2
}

@test "backup shares blocks, full and incremental" {
    make_disk
    blkimg bitmap --add x/disk.qcow2 b
    space=$(new_space blkimg backup -q --mode=full --bitmap=b x/disk.qcow2 x/full.qcow2)
    ((space < 2 << 20)) || fail "full: $space bytes"
    blkimg io -c "write -P 7 24M 4M" x/disk.qcow2
    space=$(new_space blkimg backup -q --bitmap=b --base=x/full.qcow2 x/disk.qcow2 x/inc.qcow2)
    ((space < 2 << 20)) || fail "incremental: $space bytes"
    run -0 qemu-img compare x/disk.qcow2 x/inc.qcow2
    # The disk goes on: what is shared stays as it was.
    blkimg io -c "write -P 9 0 64M" x/disk.qcow2
    blkimg io -c "read -q -P 1 0 8M" -c "read -q -P 7 24M 4M" -c "read -q -P 2 20M 4M" x/inc.qcow2
    # A digest needs all bytes: they are read, and written.
    blkimg backup -q --checksum --mode=full x/disk.qcow2 x/sum.qcow2
    run -0 qemu-img compare x/disk.qcow2 x/sum.qcow2
}

@test "where blocks cannot be shared they are copied" {
    make_disk
    blkimg convert -q -f raw -O qcow2 x/disk here.qcow2
    run -0 qemu-img compare -f raw -F qcow2 x/disk here.qcow2
}
