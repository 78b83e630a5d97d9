#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# How long commands take beside qemu-img's, and how much memory: convert, dd and compare on a raw
# image of 4 GiB of which every other 64 MiB are a hole, check and map of an image of 1 TiB with
# preallocated metadata, info of small ones.
#
#   tests/bench/convert.sh [RUNS]      RUNS pairs a row (default 7)
#
# Needs GNU time. Environment: BLKIMG (the program), SIZE_MIB (default 4096), TMPDIR, ROWS (a pattern of row names).
#
# Both programs run alternately within one run of this script, so that whatever else the machine
# does falls on both. A row shows the medians of the times in seconds, of the ratios of the pairs
# (below 1: blkimg is faster) and of the peak memory of each.
set -eu

BLKIMG=$(realpath "${BLKIMG:-${BUILDDIR:-.}/blkimg}")
runs=${1:-7}
size_mib=${SIZE_MIB:-4096}
rows=${ROWS:-*}

folder=$(mktemp -d "${TMPDIR:-/tmp}/blkimg-bench.XXXXXX")
trap 'rm -rf "$folder"' EXIT
cd "$folder"

make_source() {
    truncate -s "${size_mib}M" source.raw
    head -c 64M /dev/urandom >block
    for ((at = 0; at < size_mib; at += 128)); do
        dd if=block of=source.raw bs=1M seek="$at" conv=notrunc status=none
    done
    rm block
    cp --sparse=always --reflink=never source.raw copy.raw
    qemu-img convert -O qcow2 source.raw source.qcow2
    # Text compresses as the files of a guest do.
    find /usr -xdev -type f -size +20k -print0 2>/dev/null | sort -z |
        xargs -0 cat 2>/dev/null | head -c 128M >text.raw || :
    truncate -s 256M text.raw
    qemu-img create -q -f qcow2 -o preallocation=metadata large.qcow2 1T
    truncate -s 1M small.raw
    qemu-img create -q -f qcow2 small.qcow2 1G
    sync
}

# measured COMMAND...: the microseconds and KiB that it takes; the targets are removed and the disk is quiet before.
measured() {
    local start end
    rm -f target.*
    sync
    start=${EPOCHREALTIME/./}
    /usr/bin/time -o memory -f %M "$@" >/dev/null || { echo "failed: $*" >&2; return 1; }
    end=${EPOCHREALTIME/./}
    echo "$((end - start)) $(<memory)"
}

median() {
    sort -g | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

# row NAME ARG...: the command line of both programs.
row() {
    local name=$1 i peer mine
    shift
    # shellcheck disable=SC2053 # a pattern
    [[ $name == $rows ]] || return 0
    : >pairs
    for ((i = 0; i < runs; i++)); do
        # The order changes too.
        if ((i % 2)); then
            mine=$(measured "$BLKIMG" "$@") && peer=$(measured qemu-img "$@")
        else
            peer=$(measured qemu-img "$@") && mine=$(measured "$BLKIMG" "$@")
        fi
        echo "$peer $mine" >>pairs
    done
    printf '%-24s %9.3f %9.3f %8.3f %8.1f %8.1f\n' "$name" \
        "$(awk '{ print $1 / 1e6 }' pairs | median)" "$(awk '{ print $3 / 1e6 }' pairs | median)" \
        "$(awk '{ print $3 / $1 }' pairs | median)" \
        "$(awk '{ print $2 / 1024 }' pairs | median)" "$(awk '{ print $4 / 1024 }' pairs | median)"
}

make_source
printf '%-24s %9s %9s %8s %8s %8s\n' "$(nproc) processors, $runs pairs" 'qemu-img' 'blkimg' ratio 'MiB' 'MiB'
row raw-raw-writeback convert -t writeback -f raw -O raw source.raw target.raw
row raw-raw-unsafe convert -t unsafe -f raw -O raw source.raw target.raw
row raw-raw-none convert -t none -T none -f raw -O raw source.raw target.raw
row raw-raw-no-sparse convert -t unsafe -S 0 -f raw -O raw source.raw target.raw
row raw-qcow2-writeback convert -t writeback -f raw -O qcow2 source.raw target.qcow2
row qcow2-raw-writeback convert -t writeback -f qcow2 -O raw source.qcow2 target.raw
row qcow2-qcow2-writeback convert -t writeback -f qcow2 -O qcow2 source.qcow2 target.qcow2
row text-compressed convert -c -t writeback -f raw -O qcow2 text.raw target.qcow2
row text-compressed-W convert -c -W -t writeback -f raw -O qcow2 text.raw target.qcow2
row compare-raw-qcow2 compare -f raw -F qcow2 source.raw source.qcow2
row compare-same compare -f raw -F raw source.raw copy.raw
row dd-1M dd bs=1M -f raw -O raw if=source.raw of=target.raw
row check-1T check large.qcow2
row map-1T map --output=json large.qcow2
row info-raw info -f raw small.raw
row info-qcow2 info -f qcow2 small.qcow2
