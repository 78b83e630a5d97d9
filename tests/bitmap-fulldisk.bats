#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# A file system that is filled to the last block, with 0, 1, 2 ... blocks left: what fails leaves every earlier
# bitmap usable, and what succeeds is complete.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img python3 jq
    need_root
    mkdir scene after
}

# leaves_usable IMAGE LEFT-BLOCKS ARG...: runs the command for each number of free 4 KiB blocks, and judges IMAGE.
leaves_usable() {
    local image=$1 most=$2 left size failed=0 ok=0
    shift 2
    rm -rf after && cp -a scene after
    (cd after && "$BLKIMG" "$@" >"$T/out") || return 1
    qemu-img convert -O raw scene/"$image" old.raw
    size=$(du -k --apparent-size scene | tail -1 | cut -f1)
    for ((left = 0; left <= most; left++)); do
        mkdir -p full
        mount -t tmpfs -o size=$((size + 4096))k blkimg-test full || skip "cannot mount a tmpfs here"
        cp --sparse=always scene/* full/
        fill_up full "$left"
        status=0
        (cd full && "$BLKIMG" "$@") >out 2>err || status=$?
        rm -f full/filler full/filler2
        FAULT_STATUS=$status FAULT_N=0 python3 "$SRCDIR/tests/tools/check_bitmaps.py" --image "$image" \
            --before scene/"$image" --after after/"$image" --old old.raw --usable full >verdict ||
            fail "$left blocks left: blkimg $*: status $status, $(<err): $(<verdict)"
        if ((status)); then
            failed=$((failed + 1))
            [[ -s err || -s out ]]
        else
            ok=$((ok + 1))
        fi
        umount full
        ((!ok || ok < 3)) || break
    done
    echo "# $*: $failed failed, then it fits" >&3
    ((failed > 0 && ok > 0))
}

# Leaves so many blocks of 4 KiB.
fill_up() {
    local free
    sync -f "$1"
    free=$(stat -f -c %a "$1")
    ((free > $2)) || return 0
    head -c $(((free - $2) * 4096)) /dev/zero >"$1/filler" 2>/dev/null || true
    while (($(stat -f -c %a "$1") > $2)); do
        head -c 4096 /dev/zero >>"$1/filler2" || break
    done
}

scene_image() {
    qemu-img create -q -f qcow2 -o cluster_size=4k scene/"$1" 8M
    blkimg io -c 'write -P 1 0 256k' scene/"$1" >out
    blkimg bitmap --add -g 512 scene/"$1" b0
    blkimg bitmap --add --disable -g 4k scene/"$1" b1
    blkimg io -c 'write -P 2 128k 64k' scene/"$1" >out
}

@test "bitmap --add, --merge, --clear, --remove" {
    scene_image a
    leaves_usable a 60 bitmap --add -g 512 a new
    leaves_usable a 60 bitmap --merge b0 a b1
    leaves_usable a 60 bitmap --clear a b0
    leaves_usable a 60 bitmap --remove a b0
}

@test "commit" {
    scene_image base
    (cd scene && qemu-img create -q -f qcow2 -o cluster_size=4k -b base -F qcow2 top)
    blkimg io -c 'write -P 3 1M 40k' -c 'write -P 4 5M 30k' -c 'write -P 5 7M 4k' scene/top >out
    leaves_usable base 120 commit -d top
    leaves_usable base 120 commit top
}

@test "recorded writes and resize" {
    scene_image a
    leaves_usable a 60 io -c 'write -P 3 1M 40k' -c 'write -P 3 7M 4k' a
    leaves_usable a 60 resize -q a 12M
}

@test "resize --shrink" {
    local left size ended failed=0 ok=0
    qemu-img create -q -f qcow2 scene/a 4M
    blkimg bitmap --add -g 4k scene/a b
    qemu-io -c 'write -P 3 0 64k' -c 'write -P 3 640k 2M' scene/a >out
    size=$(du -k --apparent-size scene | tail -1 | cut -f1)
    for ((left = 0; left < 80; left += left < 20 ? 1 : 10)); do
        mkdir -p full
        mount -t tmpfs -o size=$((size + 4096))k blkimg-test full || skip "cannot mount a tmpfs here"
        cp --sparse=always scene/a full/a
        fill_up full "$left"
        ended=0
        blkimg resize -q --shrink full/a 1M >out 2>err || ended=$?
        rm -f full/filler full/filler2
        run -0 blkimg bitmap --list full/a
        refute_output --partial "in use"
        qemu-img check -q full/a
        if ((ended)); then
            failed=$((failed + 1))
            [[ -s err ]]
            (($(blkimg info --output=json full/a | jq '."virtual-size"') == 4 * 1048576))
            qemu-img compare -q full/a scene/a
        else
            ok=$((ok + 1))
        fi
        umount full
    done
    echo "# resize --shrink: $failed failed, $ok done" >&3
    ((failed > 0 && ok > 0))
}
