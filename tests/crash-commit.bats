#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Kills and power cuts at any moment of a commit: the view through the overlay never changes, the base is old or new
# sector by sector, and no bitmap of the base is valid that misses a write. CRASH_STATES=3000 tries more states a
# command, SEED=... repeats a run.

bats_require_minimum_version 1.5.0
load lib/common
load lib/crash

export states=40

setup() {
    common_setup
    need qemu-img python3
    mkdir scene after
}

# crash ARG...: states of "blkimg commit ARG..." with base and top.
crash() {
    local tools=$SRCDIR/tests/tools
    rm -rf after && cp -a scene after
    (cd after && "$BLKIMG" commit -q "$@") || return 1
    qemu-img convert -O raw scene/base old.raw
    qemu-img convert -O raw after/base new.raw
    qemu-img convert -O raw scene/top view.raw
    truncate -s "$(stat -c %s new.raw)" old.raw
    qemu-img convert -O raw scene/base base.raw
    crashes --files "$T/scene/base:$T/scene/top" --jobs 2 \
        --check "python3 $tools/check_bitmaps.py --image base --before $T/scene/base --after $T/after/base \
            --old $T/base.raw" \
        --check "python3 $tools/check_bitmaps.py --image top --before $T/scene/top --after $T/after/top" \
        --check "python3 $tools/check_image.py --image top --old $T/view.raw --new $T/view.raw \
            ${SNAPSHOT:+--snapshot s=$T/snapshot.raw}" \
        ${CONTENT:+--image base --old "$T/old.raw" --new "$T/new.raw"} -- "$BLKIMG" commit -q "$@"
}

scene() { # SIZE-OF-TOP [OPTIONS]
    qemu-img create -q -f qcow2 -o cluster_size=4k scene/base 4M
    blkimg io -c 'write -P 1 0 256k' scene/base >out
    blkimg bitmap --add -g 4k scene/base b0
    blkimg io -c 'write -P 2 128k 16k' scene/base >out
    (cd scene && qemu-img create -q -f qcow2 -o "${2:-cluster_size=4k}" -b base -F qcow2 top "$1")
    blkimg bitmap --add scene/top t0
    blkimg io -c 'write -P 3 130k 30k' -c 'write -P 4 2M 5k' -c 'write -z 0 8k' scene/top >out
}

@test "commit, the overlay emptied" {
    CONTENT=yes
    scene 4M
    crash top
}

@test "commit -d" {
    CONTENT=yes
    scene 4M
    crash -d top
}

@test "commit --bitmaps" {
    CONTENT=yes
    scene 4M
    crash --bitmaps top
}

@test "commit into a base that grows" {
    scene 5M
    crash top
}

# Small clusters: several refcount blocks, which move too.
@test "commit, the overlay emptied and cut" {
    scene 4M cluster_size=512
    blkimg io -c 'write -P 5 1M 300k' -c 'write -c -P 6 3M 64k' scene/top >out
    crash top
    # Up to its bitmap.
    assert [ "$(stat -c %s after/top)" -lt 50000 ]
}

@test "commit, the overlay emptied beside a snapshot" {
    SNAPSHOT=yes
    scene 4M
    # All of it: what shows through from the base may change.
    blkimg io -c 'write -P 7 512k 3M' -c 'write -P 8 0 512k' -c 'write -P 8 3584k 512k' scene/top >out
    blkimg snapshot -c s scene/top
    qemu-img convert -l s -O raw scene/top snapshot.raw
    blkimg io -c 'write -P 5 100k 100k' -c 'write -P 6 2M 300k' scene/top >out
    crash top
}

# A data file is named as seen from where the command runs.
@test "commit, an external data file punched out" {
    cd scene
    qemu-img create -q -f qcow2 -o cluster_size=4k base 4M
    qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=off,cluster_size=4k -b base -F qcow2 top
    qemu-io -c 'write -P 3 130k 30k' -c 'write -P 4 2M 500k' -c 'write -z 0 8k' top >/dev/null
    qemu-img convert -O raw top ../view.raw
    crashes --files base:top:data --image top --old ../view.raw --new ../view.raw -- "$BLKIMG" commit -q top
    blkimg commit -q top
    # qemu-img create writes the first block.
    assert [ "$(stat -c %b data)" -le 8 ]
}
