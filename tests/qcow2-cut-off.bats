#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Files that were cut off: what lies past their end is an error where it was data, and only there.

bats_require_minimum_version 1.5.0
load lib/common

@test "a qcow2 image whose file was cut off is not read as zeroes" {
    local size at command
    qemu-img create -q -f qcow2 -o cluster_size=4k whole 64M
    qemu-io -c 'write -P 1 0 8M' -c 'write -P 2 32M 8M' whole >/dev/null
    size=$(stat -c %s whole)
    for at in $((size - 5000)) $((size / 2)) $((size / 2 + 600)) 20480 12288 8192 4096; do
        cp whole a
        truncate -s "$at" a
        cp a before
        for command in "convert -O raw a new" "convert -O qcow2 -W -m 4 a new" "checksum a" \
            "dd if=a of=new -f qcow2 -O raw"; do
            # shellcheck disable=SC2086 # a command line
            run -1 --separate-stderr blkimg $command
            [[ $stderr == *'cut short at '* || $stderr == *'past the end of the file'* ]] || fail "$at: $command: $stderr"
            assert_not_exists new
            cmp a before
        done
        run blkimg compare a whole
        ((status >= 2))
        # Nothing that is left is written over for want of the counts that are lost.
        qemu-img convert -f qcow2 -O raw a expected
        run blkimg resize -q a 128M
        run blkimg io -c 'write 60M 1M' a
        qemu-img convert -f qcow2 -O raw a got
        cmp -n 60M expected got
        run -0 blkimg info a
    done
}

@test "the last cluster of an image need not be whole" {
    qemu-img create -q -f qcow2 a 1M
    qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 64k 512' a >/dev/null
    truncate -s $(($(stat -c %s a) - 65536 + 512)) a
    qemu-img convert -O raw a expected
    blkimg convert -O raw a new
    cmp expected new
}

@test "a table past the end shows that the last cluster was cut off, and a repair keeps that proof" {
    local table
    for table in 'bitmap --add a b' 'snapshot -c s a'; do
        rm -f a new
        qemu-img create -q -f qcow2 a 1M
        qemu-io -c 'write -P 7 0 1M' a >/dev/null
        # shellcheck disable=SC2086 # a command line
        qemu-img $table
        truncate -s 1320000 a
        run -1 blkimg convert -O raw a new
        assert_not_exists new
        run -1 blkimg checksum a
        run -2 blkimg check a
        run -2 blkimg check -r all a
        run -2 blkimg check a
        run -1 blkimg convert -O raw a new
        assert_not_exists new
    done
}
