#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Memory that is out: never a signal, never status 0 with a wrong result; no target, or the old one;
# sources whole. "make check" tries some allocations of each command, check-long all.

bats_require_minimum_version 1.5.0
load lib/common
load lib/faults

SAMPLE=${MEMORY_FAULTS:-5} # of each command, alone and from there on; or all

setup() {
    common_setup
    need qemu-img python3
    # A sanitizer's own allocator stands before the preloaded one.
    need_unsanitized "allocations cannot be made to fail"
    faults_setup
    cd "$SCENE" || return
    qemu-img create -q -f qcow2 base 1M
    qemu-io -c 'write -q -P 1 0 1M' base
    qemu-img create -q -f qcow2 -b base -F qcow2 a 1M
    qemu-io -c 'write -q -P 2 64k 128k' a
    qemu-img bitmap --add a b0
    qemu-io -c 'write -q -P 3 512k 64k' a
    cp base raw
    qemu-img convert -O raw a raw
    cd "$T" || return
}

# memory_faults FILE ARG...: fails allocations of "blkimg ARG...", each alone and from each on.
memory_faults() {
    local file=$1 names sticky allowed sample=(--sample "$SAMPLE")
    shift
    [[ $SAMPLE != all ]] || sample=()
    rm -rf result
    cp -a --sparse=always "$SCENE" result
    (cd result && exec "$BLKIMG" "$@") >result.out </dev/null || return 1
    names=$({ ls -A "$SCENE"; [[ $file == - ]] || echo "$file"; } | sort -u | sed "s|^|$SCENE/|" | paste -sd:)
    for sticky in "" --sticky; do
        allowed=${sticky:+killed}
        # shellcheck disable=SC2086 # an option or none
        FAULT_RESULT=$T/result \
            python3 "$SRCDIR/tests/tools/faultloop.py" --files "$names" --calls malloc $sticky \
            "${sample[@]}" --phase "0.$((RANDOM % 1000))" --jobs 2 --limit 20000 --workdir "$T" \
            --check "bash $SRCDIR/tests/lib/check-memory.bash $file ${allowed:--} $SCENE" \
            -- "$BLKIMG" "$@" >loop ||
            {
                printf 'command: blkimg %s\n' "$*"
                grep -v '^exited 0' loop
                return 1
            }
        FAULTS=$((FAULTS + $(sed -n 's/^faults: \([0-9]*\) tried.*/\1/p' loop)))
    done
}

teardown() {
    # The number tells that there were allocations at all.
    [[ -z $FAULTS ]] || echo "# $FAULTS allocations failed: $BATS_TEST_DESCRIPTION" >&3
    common_teardown
}

@test "commands that read" {
    memory_faults - info --output=json a
    memory_faults - info --backing-chain a
    memory_faults - map --output=json a
    memory_faults - check a
    memory_faults - measure -O qcow2 a
    memory_faults - checksum a
    FAULT_STATUSES='^[2-5]$' memory_faults - compare a raw
    memory_faults - snapshot -l a
    memory_faults - bitmap --list --output=json a
    memory_faults - io -r -c 'read -P 2 64k 64k' a
}

@test "commands that make an image" {
    memory_faults n create -f qcow2 -b base -F qcow2 n
    memory_faults n convert -O qcow2 a n
    memory_faults n convert -c -O qcow2 a n
    memory_faults raw convert -O raw base raw
    memory_faults n dd if=raw of=n bs=64k
    memory_faults n backup a n
    memory_faults n backup --bitmap=b0 a n
}

@test "commands that change an image" {
    memory_faults a bitmap --add a b1
    memory_faults a bitmap --clear a b0
    memory_faults a resize a 2M
    memory_faults a rebase -b "" a
    memory_faults base commit a
    memory_faults a snapshot -c s a
    memory_faults a amend -o compat=1.1,lazy_refcounts=on a
    memory_faults a check -r all a
    memory_faults a io -c 'write -P 9 0 64k' a
}

# popt has a line of its own, and status 1, which says here that the images differ.
@test "no memory for the options of compare" {
    local n status
    cd "$SCENE" || return
    for ((n = 1; n <= 60; n++)); do
        status=0
        LD_PRELOAD=$TEST_TOOLS/malloc-preload.so FAULT_N=$n \
            "$BLKIMG" compare -q -f qcow2 -F raw a raw 2>"$T/err" || status=$?
        assert_equal "$n: $status" "$n: 2"
        assert_equal "$(<"$T/err")" "blkimg: compare: Cannot allocate memory"
    done
}

@test "an address space that is too small" {
    local kib status
    cd "$SCENE" || return
    truncate -s 64M raw
    for ((kib = 6000; kib < 60000; kib += 1500)); do
        status=0
        (ulimit -v "$kib" && exec "$BLKIMG" convert -O qcow2 raw n) >"$T/out" 2>"$T/err" || status=$?
        # 127: the loader could not even load the libraries.
        [[ $status =~ ^(0|1|127)$ ]] || fail "$kib KiB: status $status: $(<"$T/err")"
        [[ $status != 1 || $(<"$T/err") == blkimg:*"Cannot allocate memory"* ]] ||
            fail "$kib KiB: $(<"$T/err")"
        if ((status == 0)); then rm n; else assert_file_not_exist n; fi
    done
    ((status == 0))
}

@test "the last allocations of a run that replaces a file: nothing is left beside it" {
    local preload=$TEST_TOOLS/malloc-preload.so count i
    [[ -e $preload ]] || skip "the preloaded object is not built"
    mkdir place
    cd place || return
    echo old >raw
    FAULT_COUNT_FILE=$T/count LD_PRELOAD=$preload "$BLKIMG" convert -O raw "$SCENE/base" raw
    count=$(($(stat -c %s "$T/count") / 96))
    for ((i = count - 15; i <= count + 1; i++)); do
        echo old >raw
        FAULT_N=$i LD_PRELOAD=$preload run "$BLKIMG" convert -O raw "$SCENE/base" raw
        echo "allocation $i: status $status, $(ls -A)"
        [[ $(ls -A) == raw ]]
        ((status == 0)) || [[ $(<raw) == old ]]
    done
}
