#!/usr/bin/env bash
# How long convert, dd and compare take beside qemu-img's, on a raw image of 4 GiB of which
# every other 64 MiB are a hole.
#
#   tests/bench/convert.sh [RUNS]      RUNS pairs a row (default 7)
#
# Environment: BLKIMG (the program), SIZE_MIB (default 4096), TMPDIR, ROWS (a pattern of row names).
#
# Both programs run alternately within one run of this script, so that whatever else the machine
# does falls on both. A row shows the median of the times and of the ratios of the pairs (below 1:
# blkimg is faster).
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
    sync
}

# seconds COMMAND...: how long it takes; the targets are removed and the disk is quiet before.
seconds() {
    local start end
    rm -f target.*
    sync
    start=${EPOCHREALTIME/./}
    "$@" >/dev/null || { echo "failed: $*" >&2; return 1; }
    end=${EPOCHREALTIME/./}
    echo "$((end - start))"
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
    : >peer.times >mine.times >ratios
    for ((i = 0; i < runs; i++)); do
        # The order changes too.
        if ((i % 2)); then
            mine=$(seconds "$BLKIMG" "$@") && peer=$(seconds qemu-img "$@")
        else
            peer=$(seconds qemu-img "$@") && mine=$(seconds "$BLKIMG" "$@")
        fi
        echo "$peer" >>peer.times
        echo "$mine" >>mine.times
        awk "BEGIN { print $mine / $peer }" >>ratios
    done
    awk -v name="$name" -v peer="$(median <peer.times)" -v mine="$(median <mine.times)" \
        -v ratio="$(median <ratios)" \
        'BEGIN { printf "%-28s %9.3f %9.3f %8.3f\n", name, peer / 1e6, mine / 1e6, ratio }'
}

make_source
printf '%-28s %9s %9s %8s\n' "$(nproc) processors, $runs pairs" qemu-img blkimg ratio
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
