#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Zeroes written to parts of clusters: where the rest reads as zeroes the cluster becomes a zero
# cluster, as with qemu-io, and elsewhere data is written. Map, allocation and content are compared.
# shellcheck disable=SC2154 # set by run

load lib/common

# What a layer has: depth, presence and data, however the file system keeps it.
layout() {
    qemu-img map --output=json "$1" | jq -c '[.[] | {s: .start, e: (.start + .length), k: [.depth,
        .present, (.data or .zero), .data]}] | reduce .[] as $x ([]; if length > 0 and
        .[-1].k == $x.k then .[-1].e = $x.e else . + [$x] end) | .[]'
    qemu-img check "$1" | grep allocated | cut -d, -f1
}

# zeroes OPTIONS BACKING SIZE COMMAND...: both programs on the same image.
zeroes() {
    local options=$1 backing=$2 size=$3 tool word
    local -a words=()
    for word in "${@:4}"; do
        words+=(-c "$word")
    done
    for tool in peer mine; do
        rm -f "$tool"
        if [[ $backing == - ]]; then
            qemu-img create -q -f qcow2 -o "$options" "$tool" "$size"
        else
            qemu-img create -q -f qcow2 -o "$options" -b "${backing#*:}" -F "${backing%%:*}" \
                "$tool" "$size"
        fi
    done
    qemu-io "${words[@]}" peer
    run "$BLKIMG" io "${words[@]}" mine
    assert_success
    refute_output
    diff -u --label "qemu-io: $*" --label blkimg <(layout peer) <(layout mine)
    qemu-img compare -q peer mine
    qemu-img check -q mine
}

@test "parts of unallocated clusters, with and without what is behind them" {
    need qemu-io
    local options backing
    truncate -s 700k holes
    qemu-io -f raw -c 'write -q -P 1 100k 30k' holes
    qemu-img create -q -f qcow2 short 300k
    qemu-img create -q -f qcow2 long 2M
    for backing in short long; do
        qemu-io -c 'write -q -P 1 100k 30k' -c 'write -q -z 150k 70k' -c 'write -q -P 2 250k 10k' \
            "$backing"
    done
    for options in cluster_size=64k cluster_size=4k extended_l2=on,cluster_size=64k; do
        for backing in - raw:holes qcow2:short qcow2:long; do
            zeroes "$options" "$backing" 1M 'write -qz 4k 4k' 'write -qz 100k 1k' \
                'write -qz 131k 1k' 'write -qz 160k 100k' 'write -qzu 259k 30k' \
                'write -qz 299k 5k' 'write -qzu 650001 77' 'write -qz 900k 70k'
        done
        # The end of a disk that is no whole cluster.
        zeroes "$options" qcow2:long 1048064 'write -qz 1047552 512' 'write -qz 1000001 1000'
    done
}

@test "parts of clusters with data, of zero clusters and of shared ones" {
    need qemu-io
    local options
    for options in cluster_size=64k extended_l2=on,cluster_size=64k; do
        zeroes "$options" - 1M 'write -qP 3 0 128k' 'write -qz 10k 5k' 'write -qz 100k 60k' \
            'write -qz 256k 64k' 'write -qz 257k 1k' 'write -qzu 258k 1k' 'discard -q 64k 64k' \
            'write -qz 65k 1k'
    done
    zeroes preallocation=metadata - 1M 'write -qz 10k 5k' 'write -qzu 70k 5k' 'write -qz 128k 64k'
    for tool in peer mine; do
        qemu-img snapshot -c s "$tool"
    done
    qemu-io -c 'write -qz 20k 1k' -c 'write -qzu 192k 100k' peer
    run "$BLKIMG" io -c 'write -qz 20k 1k' -c 'write -qzu 192k 100k' mine
    refute_output
    diff -u <(layout peer) <(layout mine)
    qemu-img check -q mine
}
