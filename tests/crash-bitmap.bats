#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Kills and power cuts at any moment of commands that change bitmaps: no bitmap is valid that misses a write, none is
# lost but those in use, the image is sound (tests/tools/crashstates.py, check_bitmaps.py).
# CRASH_STATES=3000 tries more states a command, SEED=... repeats a run.

bats_require_minimum_version 1.5.0
load lib/common
load lib/crash

export states=40

setup() {
    common_setup
    need qemu-img python3
    mkdir scene after
}

# crash ARG...: states of "blkimg ARG..." on the image a.
crash() {
    rm -rf after && cp -a scene after
    (cd after && "$BLKIMG" "$@" >"$T/out") || return 1
    qemu-img convert -O raw scene/a old.raw
    qemu-img convert -O raw after/a new.raw
    crashes --files "$T/scene/a" --jobs 2 ${CONTENT:+--image a --old "$T/old.raw" --new "$T/new.raw"} \
        --check "python3 $SRCDIR/tests/tools/check_bitmaps.py --image a --before $T/scene/a \
            --after $T/after/a --old $T/old.raw ${USABLE:+--usable}" -- "$BLKIMG" "$@"
}

scene() {
    qemu-img create -q -f qcow2 -o cluster_size=4k scene/a 4M
    blkimg io -c 'write -P 1 0 256k' scene/a >out
    blkimg bitmap --add -g 512 scene/a b0
    blkimg bitmap --add --disable -g 64k scene/a b1
    blkimg io -c 'write -P 2 128k 64k' -c 'write -P 2 3M 1k' scene/a >out
}

@test "bitmap --add, --merge, --clear, --remove: never in use, wholly before or after" {
    USABLE=yes
    scene
    crash bitmap --add -g 512 a new
    crash bitmap --merge b0 a b1
    crash bitmap --clear --disable a b0
    crash bitmap --remove a b0
    crash bitmap --add --merge b0 --disable a b2
}

@test "recorded writes" {
    scene
    crash io -c 'write -P 3 1M 8k' -c flush -c 'write -P 4 2M 4k' -c 'write -z 128k 4k' a
}

@test "reopening read-only and writable in turn" {
    scene
    crash io -c 'write -P 3 1M 8k' -c 'reopen -r' -c 'reopen -w' -c 'write -P 4 2M 4k' -c 'reopen -r' \
        -c 'read 0 4k' -c 'reopen -w' a
}

@test "resize and shrink" {
    scene
    crash resize -q a 6M
    crash resize -q --shrink a 2M
}

@test "applying a snapshot" {
    scene
    blkimg snapshot -c s scene/a
    blkimg io -c 'write -P 5 1M 64k' -c 'write -z 0 16k' scene/a >out
    blkimg bitmap --clear scene/a b0
    crash snapshot -a s a
}

@test "amend" {
    USABLE=yes
    scene
    crash amend -o refcount_bits=64,lazy_refcounts=on a
}
