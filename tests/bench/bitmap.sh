#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# CPU time and memory of loading, merging and storing dirty bitmaps beside qemu-img's: 1 TiB, granularity 64 KiB, 1 %
# of the granules dirty, scattered.
#
#   tests/bench/bitmap.sh [RUNS]      RUNS pairs (default 7)
#
# Environment: BLKIMG (the program), SIZE (default 1T), PERCENT (default 1), TMPDIR.
#
# Both programs run alternately on copies of the same image. Start-up is taken off: what each needs for the same
# command on an image of 1 MiB. The last line is the ratio of the medians; below 1 blkimg needs less.
set -eu

BLKIMG=$(realpath "${BLKIMG:-${BUILDDIR:-.}/blkimg}")
runs=${1:-7}
size=${SIZE:-1T}
percent=${PERCENT:-1}

folder=$(mktemp -d "${TMPDIR:-/tmp}/blkimg-bench.XXXXXX")
trap 'rm -rf "$folder"' EXIT
cd "$folder"

# An image of $2 bytes with bitmaps from and to; of "from" PERCENT % are dirty.
make_image() {
    qemu-img create -q -f qcow2 "$1" "$2"
    "$BLKIMG" bitmap --add -g 64k "$1" from
    "$BLKIMG" bitmap --add -g 64k "$1" to
    python3 - "$1" "$percent" <<'END'
import random, struct, sys

# The bits go in by hand: every cluster of the first bitmap gets data at the end of the file.
path, percent = sys.argv[1], float(sys.argv[2])
with open(path, "r+b") as file:
    def read(offset, form):
        file.seek(offset)
        return struct.unpack(form, file.read(struct.calcsize(form)))
    size, = read(24, ">Q")
    at, = read(100, ">I")
    while True:
        kind, length = read(at, ">II")
        if kind == 0x23852875:
            break
        at += 8 + (length + 7) // 8 * 8
    directory, = read(at + 24, ">Q")
    table, entries = read(directory, ">QI")
    bits = -(-size // 65536)
    rng = random.Random(1)
    data = bytearray(entries * 65536)
    for granule in rng.sample(range(bits), max(1, int(bits * percent / 100))):
        data[granule // 8] |= 1 << granule % 8
    file.seek(0, 2)
    end = -(-file.tell() // 65536) * 65536
    file.seek(end)
    file.write(data)
    file.seek(table)
    for index in range(entries):
        file.write(struct.pack(">Q", end + index * 65536))
END
    # Counts for the clusters that were added.
    "$BLKIMG" check -q -r all "$1" >/dev/null 2>&1 || true
    qemu-img check -q "$1"
}

# cpu COMMAND...: user and system time in microseconds, and peak memory in KiB.
cpu() {
    python3 - "$@" <<'END'
import os, re, subprocess, sys

# The peak is looked up while it runs: what wait4() tells counts this interpreter, too, before the exec.
child = subprocess.Popen(sys.argv[1:])
peak = 0
while True:
    try:
        with open(f"/proc/{child.pid}/status") as status:
            found = re.search(r"VmHWM:\s*(\d+)", status.read())
        if found and os.readlink(f"/proc/{child.pid}/exe") != os.readlink("/proc/self/exe"):
            peak = max(peak, int(found[1]))
    except OSError:
        pass
    pid, status, used = os.wait4(child.pid, os.WNOHANG)
    if pid:
        break
if status:
    sys.exit("failed: " + " ".join(sys.argv[1:]))
print(round((used.ru_utime + used.ru_stime) * 1e6), peak)
END
}

median() {
    sort -g | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

# measure NAME PROGRAM IMAGE: one merge, appended to NAME.times and NAME.memory.
measure() {
    cp --sparse=always "$3" target
    cpu "$2" bitmap --merge from -f qcow2 target to >result
    cut -d' ' -f1 result >>"$1.times"
    cut -d' ' -f2 result >>"$1.memory"
}

make_image large "$size"
make_image small 1M
for ((i = 0; i < runs; i++)); do
    measure peer-small qemu-img small
    measure mine-small "$BLKIMG" small
    measure peer qemu-img large
    measure mine "$BLKIMG" large
done
cmp <("$BLKIMG" map --bitmap from target) <("$BLKIMG" map --bitmap to target)

for name in peer mine; do
    time=$(median <$name.times) start=$(median <$name-small.times)
    memory=$(median <$name.memory) base=$(median <$name-small.memory)
    awk -v name="$name" -v time="$time" -v start="$start" -v memory="$memory" -v base="$base" 'BEGIN {
        printf "%-5s %7.1f ms CPU, %.1f ms of it start-up; %d KiB, %d more than for 1 MiB\n", name,
            time / 1000, start / 1000, memory, memory - base }'
    printf -v "$name" %s "$(awk -v time="$time" -v start="$start" 'BEGIN { print time - start }')"
done
# shellcheck disable=SC2154 # set by printf -v
awk -v mine="$mine" -v peer="$peer" 'BEGIN { printf "ratio %.3f\n", (mine > 0 ? mine : 0) / peer }'
