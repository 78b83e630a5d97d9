#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Storing bitmaps fails, at every write, sync, truncate and close in turn: the exit status is never
# 0, the bitmap is named, and the next open finds it in use or as it was (tests/tools/check_bitmaps.py).

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img python3 jq
    mkdir scene after
    FAULTS=0
}

# faults FILES IMAGE NAME ARG...: each call of "blkimg ARG..." on the files fails in turn; IMAGE is judged, and
# bitmap NAME must be named.
faults() {
    local files=$1 image=$2 name=$3 file paths=
    shift 3
    rm -rf after && cp -a scene after
    (cd after && "$BLKIMG" "$@" >"$T/out") || return 1
    qemu-img convert -O raw scene/"$image" old.raw
    for file in ${files//:/ }; do
        paths+=:$T/scene/$file
    done
    python3 "$SRCDIR/tests/tools/faultloop.py" --files "${paths#:}" ${ALSO:+--also "$ALSO"} \
        --calls write,sync,truncate,close --strict --jobs 2 --errno "${FAULT_ERRNO:-EIO}" ${STICKY:+--sticky} \
        --check "python3 $SRCDIR/tests/tools/check_bitmaps.py --image $image --before $T/scene/$image \
            --after $T/after/$image --old $T/old.raw ${name:+--names $name}" \
        -- "$BLKIMG" "$@" >loop || {
        echo "blkimg $*"
        cat loop
        return 1
    }
    FAULTS=$((FAULTS + $(sed -n 's/^faults: \([0-9]*\) tried.*/\1/p' loop)))
}

report() {
    echo "# $FAULTS faults tried: $BATS_TEST_DESCRIPTION" >&3
    ((FAULTS > 0))
}

scene_image() { # NAME: with data, and two bitmaps of which b0 is dirty
    qemu-img create -q -f qcow2 scene/"$1" 8M
    blkimg io -c 'write -P 1 0 1M' scene/"$1" >out
    blkimg bitmap --add scene/"$1" b0
    blkimg bitmap --add --disable -g 512 scene/"$1" b1
    blkimg io -c 'write -P 2 512k 64k' scene/"$1" >out
}

@test "bitmap --add, --merge, --clear, --remove, --enable" {
    scene_image a
    faults a a new bitmap --add a new
    faults a a b1 bitmap --merge b0 a b1
    faults a a b0 bitmap --clear a b0
    faults a a b0 bitmap --disable a b0
    faults a a b0 bitmap --remove a b0
    faults a a b2 bitmap --add --merge b0 --disable a b2
    report
}

@test "the first and the last bitmap" {
    qemu-img create -q -f qcow2 scene/a 8M
    faults a a b0 bitmap --add a b0
    blkimg bitmap --add scene/a b0
    faults a a b0 bitmap --remove a b0
    report
}

@test "writes that are recorded, and close-check" {
    scene_image a
    faults a a "" io -c 'write -P 3 2M 200k' a
    faults a a "" io -c 'write -P 3 2M 64k' -c 'reopen -r' -c 'reopen -w' -c 'write -P 4 5M 1' a
    faults a a "" close-check a
    report
}

@test "merge from another image" {
    scene_image a
    scene_image src
    faults a:src a b1 bitmap --merge b0 -b src -F qcow2 a b1
    report
}

@test "commit" {
    scene_image base
    qemu-img create -q -f qcow2 -b base -F qcow2 -u scene/top 9M
    blkimg io -c 'write -P 3 2M 100k' -c 'write -P 4 8M 64k' scene/top >out
    blkimg bitmap --add scene/top t
    blkimg io -c 'write -P 5 3M 64k' scene/top >out
    faults base:top base "" commit top
    faults base:top base "" commit -d --bitmaps top
    report
}

@test "resize and snapshots" {
    scene_image a
    faults a a "" resize -q a 12M
    faults a a "" resize -q --shrink a 6M
    blkimg snapshot -c s scene/a
    blkimg io -c 'write -P 3 2M 200k' scene/a >out
    blkimg bitmap --clear scene/a b0
    faults a a "" snapshot -a s a
    report
}

@test "disk full, for good" {
    FAULT_ERRNO=ENOSPC STICKY=yes
    scene_image a
    faults a a new bitmap --add a new
    faults a a b1 bitmap --merge b0 a b1
    faults a a "" io -c 'write -P 3 2M 200k' a
    report
}

@test "convert --bitmaps: no target, or a finished one" {
    scene_image a
    local n
    for ((n = 1; n < 200; n++)); do
        rm -rf run && cp -a scene run
        printf '[inject-error]\niotype = "write"\nnth = "%d"\nerrno = "5"\nstats = "%s"\n' $n "$T/stats" >rules
        status=0
        (cd run && "$BLKIMG" convert --bitmaps -O qcow2 a "blkdebug:$T/rules:new") >out 2>err || status=$?
        [[ $(sed -n 's/errors injected: //p' stats) != 0 ]] || break
        ((status != 0)) || fail "write $n: status 0"
        assert_file_not_exist run/new
        FAULTS=$((FAULTS + 1))
    done
    ((status == 0))
    assert_equal "$(blkimg map --bitmap b0 run/new)" "$(blkimg map --bitmap b0 scene/a)"
    report
}

@test "blkdebug: the store fails, close says 5 and the bitmap's name" {
    local n
    scene_image a
    for ((n = 1; n < 100; n++)); do
        rm -rf run && cp -a scene run
        printf '[inject-error]\niotype = "write"\nnth = "%d"\nerrno = "28"\nstats = "%s"\n' $n "$T/stats" >rules
        status=0
        (cd run && "$BLKIMG" bitmap --add "blkdebug:$T/rules:a" new) >out 2>err || status=$?
        [[ $(sed -n 's/errors injected: //p' stats) != 0 ]] || break
        assert_equal "$status" 5
        grep -q "'new'" err
        grep -q "No space left" err
        # The old ones are there; the new one too, if it was what it replaced that could not be freed.
        diff <(blkimg bitmap --list run/a | grep -v '^new: .* 0 bytes') <(blkimg bitmap --list scene/a)
        FAULTS=$((FAULTS + 1))
    done
    ((status == 0))
    report
}

@test "very many bitmaps that cannot be stored are one line" {
    local i
    blkimg create -q -f qcow2 many 1G
    for i in {1..40}; do
        blkimg bitmap --add -g 64k many "bitmap-$i"
    done
    printf '[inject-error]\niotype = "write"\nonce = "off"\nerrno = "ENOSPC"\n' >rules
    run -5 --separate-stderr blkimg bitmap --disable "blkdebug:$T/rules:many" bitmap-3
    [[ ${#stderr_lines[@]} == 1 && $stderr == *"bitmap-1 and 39 more: "*"No space left"* ]] || fail "$stderr"
}
