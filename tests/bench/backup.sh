#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What a backup costs: a full one beside "convert" of the same image, and an incremental one of 1 % of a
# virtual disk of 100 GiB beside a copy of that 1 % alone.
#
#   tests/bench/backup.sh [RUNS]      RUNS pairs a row (default 5)
#
# Environment: BLKIMG (the program), SIZE_MIB (of the full one, default 1024), DISK_GIB (default 100), TMPDIR.
#
# Both commands of a row run alternately, so that whatever else the machine does falls on both. A row shows
# the medians of the times, of the ratios of the pairs, and the largest memory of the backup in MiB.
set -eu

BLKIMG=$(realpath "${BLKIMG:-${BUILDDIR:-.}/blkimg}")
runs=${1:-5}
size_mib=${SIZE_MIB:-1024}
disk_gib=${DISK_GIB:-100}

folder=$(mktemp -d "${TMPDIR:-/tmp}/blkimg-bench.XXXXXX")
trap 'rm -rf "$folder"' EXIT
cd "$folder"

# measured ARG...: microseconds and KiB of one run of blkimg; the targets are removed and the disk is quiet before.
measured() {
    rm -f target.*
    sync
    python3 -c '
import resource, subprocess, sys, time
start = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(int((time.monotonic() - start) * 1e6), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
' "$BLKIMG" "$@"
}

median() {
    sort -g | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

# row NAME: runs the commands in the arrays peer and mine.
row() {
    local i a b
    rm -f peer.times mine.times ratios memory
    for ((i = 0; i < runs; i++)); do
        # The order changes too.
        if ((i % 2)); then
            b=$(measured "${mine[@]}") && a=$(measured "${peer[@]}")
        else
            a=$(measured "${peer[@]}") && b=$(measured "${mine[@]}")
        fi
        echo "${a% *}" >>peer.times
        echo "${b% *}" >>mine.times
        awk "BEGIN { print ${b% *} / ${a% *} }" >>ratios
        echo "${b#* }" >>memory
    done
    awk -v name="$1" -v peer="$(median <peer.times)" -v mine="$(median <mine.times)" \
        -v ratio="$(median <ratios)" -v memory="$(sort -n memory | tail -1)" \
        'BEGIN { printf "%-28s %9.3f %9.3f %8.3f %6.1f\n", name, peer / 1e6, mine / 1e6, ratio, memory / 1024 }'
}

# Every other 32 MiB are a hole.
make_full_source() {
    local at
    head -c 32M /dev/urandom >block
    "$BLKIMG" create -q -f qcow2 source.qcow2 "${size_mib}M"
    for ((at = 0; at < size_mib; at += 64)); do
        echo "write -q -s block ${at}M 32M"
    done | "$BLKIMG" io source.qcow2 >/dev/null
    rm block
}

# 1 % of the disk in pieces of 1 MiB, evenly spread, is dirty. part.qcow2 has that 1 % and nothing else.
make_incremental_source() {
    local i
    head -c 1M /dev/urandom >block
    "$BLKIMG" create -q -f qcow2 disk.qcow2 "${disk_gib}G"
    "$BLKIMG" create -q -f qcow2 part.qcow2 "$((disk_gib * 1024 / 100))M"
    "$BLKIMG" backup --new-bitmap=b disk.qcow2 base.qcow2
    for ((i = 0; i < disk_gib * 1024 / 100; i++)); do
        echo "write -q -s block $((i * 100))M 1M"
    done | "$BLKIMG" io disk.qcow2 >/dev/null
    for ((i = 0; i < disk_gib * 1024 / 100; i++)); do
        echo "write -q -s block ${i}M 1M"
    done | "$BLKIMG" io part.qcow2 >/dev/null
    rm block
}

printf '%-28s %9s %9s %8s %6s\n' "$(nproc) processors, $runs pairs" other backup ratio MiB
make_full_source
peer=(convert -f qcow2 -O qcow2 source.qcow2 target.qcow2)
mine=(backup -f qcow2 source.qcow2 target.qcow2)
row "full, beside convert"
mine=(backup -f qcow2 --checksum source.qcow2 target.qcow2)
row "full with --checksum"
rm source.qcow2
make_incremental_source
peer=(convert -f qcow2 -O qcow2 part.qcow2 target.qcow2)
mine=(backup -f qcow2 --bitmap=b --bitmap-sync=never --base=base.qcow2 disk.qcow2 target.qcow2)
row "1 % of $disk_gib GiB, beside itself"
