#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# What is printed about qcow2 images of all kinds, byte for byte as qemu-img prints it.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img qemu-io
    need_format qcow2
    images=0
}

teardown() {
    # Reported, so that a table that lost its rows is noticed.
    [[ -z ${images-} ]] || echo "# $images images compared" >&3
    common_teardown
}

mkimage() {
    python3 "$SRCDIR/tests/tools/mkimage.py" "$@"
}

qcow2() {
    qemu-img create -q -f qcow2 "$@"
}

# Everything that can be asked of one image. Options go to all commands.
compare_all() {
    local image=${*: -1} options=("${@:1:$#-1}")
    images=$((images + 1))
    same_output info "${options[@]}" "$image"
    same_output info --output=json "${options[@]}" "$image"
    same_output info --backing-chain "${options[@]}" "$image"
    same_output info --backing-chain --output=json "${options[@]}" "$image"
    same_output map --output=json "${options[@]}" "$image"
    same_output map "${options[@]}" "$image"
    same_output check "${options[@]}" "$image"
    same_output check --output=json "${options[@]}" "$image"
    same_output snapshot -l "${options[@]}" "$image"
    same_output measure -O qcow2 "${options[@]}" "$image"
    same_output measure -O raw --output=json "${options[@]}" "$image"
    same_output measure -O qcow2 -o cluster_size=4k --output=json "${options[@]}" "$image"
}

# Data, zeroes, holes and, where it can be, compressed clusters; some cross what a table maps.
write_mixture() {
    qio "$1" 'write -P 1 0 200k' 'write -z 300k 128k' 'write -P 2 512k 64k' 'write -P 3 900k 3k' 'discard 64k 64k'
    qio "$1" 'write -c -P 4 2M 64k' 'write -c -P 5 2176k 64k' 2>/dev/null || true
    qio "$1" 'write -P 6 4064k 96k' 'write -z -u 3M 300k'
}

@test "versions, cluster sizes and refcount widths" {
    local compat size bits
    for compat in 0.10 1.1; do
        for size in 512 4k 64k 2M; do
            qcow2 -o "compat=$compat,cluster_size=$size" a 6M
            compare_all a
            write_mixture a
            compare_all a
        done
    done
    for bits in 1 2 4 8 32 64; do
        qcow2 -o "refcount_bits=$bits,cluster_size=1k" a 6M
        write_mixture a
        compare_all a
    done
    ((images == 22))
}

@test "extended L2" {
    local size
    for size in 16k 64k 1M; do
        qcow2 -o "extended_l2=on,cluster_size=$size" a 6M
        write_mixture a
        compare_all a
        qio a 'write 2500k 2k' 'write -z 2502k 2k' 'discard 2504k 2k' 'write -z 2512k 8k'
        compare_all a
    done
}

@test "external data files" {
    local raw
    for raw in on off; do
        qcow2 -o "data_file=data.$raw,data_file_raw=$raw" a 6M
        compare_all a
        write_mixture a
        compare_all a
    done
    qcow2 -o "data_file=data.x,extended_l2=on" a 6M
    write_mixture a
    compare_all a
    qcow2 -o "data_file=data.p,preallocation=metadata" a 6M
    compare_all a
}

@test "compression types" {
    local type size
    for type in zlib zstd; do
        for size in 4k 64k; do
            rm -f source a
            head -c 700k "$(command -v qemu-img)" >source
            truncate -s 5M source
            qemu-img convert -q -f raw -c -O qcow2 -o "compression_type=$type,cluster_size=$size" source a
            compare_all a
            write_mixture a
            compare_all a
        done
    done
}

@test "preallocation and lazy refcounts" {
    local way
    for way in off metadata falloc full; do
        qcow2 -o "preallocation=$way" a 3M
        compare_all a
    done
    qcow2 -o preallocation=metadata,cluster_size=4k a 3M
    write_mixture a 2>/dev/null || true
    compare_all a
    qcow2 -o lazy_refcounts=on a 3M
    compare_all a
    # What a crash leaves: dirty, the counts not written.
    mkimage edit a 'incompatible=old|1'
    compare_all a
}

@test "sizes" {
    local size
    for size in 0 512 1M 1000000512 1T; do
        qcow2 a "$size"
        compare_all a
    done
    qcow2 -o cluster_size=2M a 2P
    same_output info a
    same_output map --output=json a
    same_output check a
    qcow2 -o preallocation=metadata a 100G
    compare_all a
}

@test "backing chains" {
    qcow2 -o cluster_size=4k base 5M
    write_mixture base
    qcow2 -b base -F qcow2 same
    compare_all same
    write_mixture same
    compare_all same
    qcow2 -b base -F qcow2 longer 9M
    qio longer 'write 8M 64k' 'write -z 1M 64k' 'discard 0 64k'
    compare_all longer
    qcow2 -b base -F qcow2 shorter 1M
    compare_all shorter
    qcow2 -b longer -F qcow2 top 7M
    compare_all top
    qio top 'write 2M 1M'
    compare_all top
    truncate -s 3M flat
    fill flat 1M 70000
    qcow2 -b flat -F raw -o cluster_size=512 overlay 4M
    compare_all overlay
    mkdir sub
    (cd sub && qcow2 -b ../top -F qcow2 -o extended_l2=on far 8M && qio far 'write 2500k 2k' 'write -z 1M 4k')
    compare_all sub/far
    # A backing file whose format the header does not name.
    qemu-img rebase -u -b base -F '' same 2>/dev/null || true
    compare_all same
}

@test "internal snapshots" {
    qcow2 a 5M
    write_mixture a
    qemu-img snapshot -c one a
    write_mixture a
    compare_all a
    qio a 'write -P 9 0 1M'
    qemu-img snapshot -c 'with blanks' a
    qemu-img resize -q a 7M
    compare_all a
    qemu-img snapshot -a one a
    qemu-img snapshot -d one a
    compare_all a
    qcow2 -o compat=0.10 b 2M
    qemu-img snapshot -c old b
    compare_all b
    # VM state, clocks, ids and names that no command gives.
    mkimage edit a 'snapshot[0].clock=987654321987654321' 'snapshot[0].vm_state_bytes_large=5<<30'
    same_output snapshot -l a
    same_output info a
    same_output info --output=json a
    mkimage new c
    mkimage snapshots c 20 id_bytes=10 name_bytes=40 extra_bytes=24
    compare_all c
}

@test "bitmaps" {
    qcow2 a 20M
    qemu-img bitmap --add a first
    qemu-img bitmap --add -g 4k a second
    write_mixture a
    qemu-img bitmap --disable a second
    compare_all a
    mkimage new b
    mkimage bitmaps b 40 flags=2 granularity_bits=20
    compare_all b
}

@test "marks, unknown features and names" {
    mkimage new a
    compare_all a
    mkimage edit a 'incompatible=old|2'
    compare_all a
    mkimage new a
    mkimage edit a 'compatible=old|0x80' 'autoclear=old|0x80'
    compare_all a
    mkimage new a
    mkimage extension a 0x12345678 40
    compare_all a
    mkimage new $'b\nc "d"'
    compare_all $'b\nc "d"'
    mkimage new 'a,b=c'
    compare_all 'a,b=c'
}

@test "leaks and wrong counts" {
    mkimage new a
    mkimage edit a 'file_bytes=old+2*cluster' 'refcount[8]=1' 'refcount[9]=5'
    compare_all a
    # A cluster that two entries share, with the count for it.
    mkimage new a
    mkimage edit a 'l2[1]=6*cluster' 'l2[0]=old+cluster&~COPIED' 'refcount[6]=2' 'refcount[5]=0'
    compare_all a
    # Truncated behind the last table.
    mkimage new a
    mkimage edit a 'file_bytes=old-cluster+512'
    compare_all a
}

# The names and types of the options; the words that describe them are our own.
option_names() {
    sed -nE 's/^  ([a-z0-9_.-]+=<[^>]*>).*/\1/p' | sort
}

@test "the options of create" {
    same_as 'qemu-img' "$BLKIMG" option_names create -f qcow2 -o help
    [[ $output == *'refcount_bits=<num>'* ]]
}
