#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Every write, flush, truncate, close and naming that a backup does to its target and its source fails in turn, and the
# run is killed or cut off from power at any moment: no status 0, no disk that changed, no target that is not
# complete, no bitmap that lost a bit whose data is not in a good target (tests/tools/check_backup.py).
#
# BACKUP_FAULTS=all tries every mode with every --bitmap-sync, and ENOSPC, and faults that stay; CRASH_STATES=N
# tries N states of each (give it time: TEST_TIMEOUT).

bats_require_minimum_version 1.5.0
load lib/common
load lib/crash

export states=40

setup() {
    common_setup
    need qemu-img python3
    [[ -z $SANITIZERS ]] || skip 'the preloaded object and sanitizers exclude each other'
    FAULTS=0
}

# make_disk DISK FULL: with a bitmap b that counts from the backup FULL.
make_disk() {
    qemu-img create -q -f qcow2 -b low -F raw "$1" 2M
    blkimg io -c 'write -P 1 0 300k' -c 'write -z 512k 64k' "$1" >out
    blkimg backup --new-bitmap=b "$1" "$2"
    blkimg io -c 'write -P 2 100k 100k' -c 'write -z 600k 1k' -c 'write -P 3 1M 1' -c 'discard 0 64k' "$1" >out
    qemu-img convert -O raw "$1" "$1.raw"
}

scene() {
    rm -f disk* full* inc*
    fill low 0 1M 9
    make_disk disk full
}

check() {
    echo "python3 $SRCDIR/tests/tools/check_backup.py --blkimg $BLKIMG"
}

# faults FILES ALSO CHECK-ARGS ARG...: each call of "blkimg backup ARG..." on the files fails in turn.
faults() {
    local files=$1 also=$2 judge=$3 errno sticky
    shift 3
    # shellcheck disable=SC2086 # no word or one
    for errno in EIO ${all:+ENOSPC}; do
        for sticky in "" ${all:+--sticky}; do
            TMPDIR=$memory python3 "$SRCDIR/tests/tools/faultloop.py" --files "$files" --also "$also" \
                --errno "$errno" $sticky --jobs 2 --check "$(check) $judge" \
                -- "$BLKIMG" backup "$@" >loop 2>&1 || fail "backup $*: $(tail -40 loop)"
            FAULTS=$((FAULTS + $(sed -n 's/^faults: \([0-9]*\) tried.*/\1/p' loop)))
        done
    done
}

report() {
    echo "# $FAULTS faults tried: $BATS_TEST_DESCRIPTION" >&3
    ((FAULTS > 0))
}

# backup_crashes FILES ALSO JUDGE ARG...
backup_crashes() {
    local files=$1 also=$2 judge=$3
    shift 3
    crashes --files "$files" --also "$also" --check "$(check) $judge" -- "$BLKIMG" backup "$@"
}

all=${BACKUP_FAULTS-}
one="disk=inc=full:disk.raw"

@test "faults: full" {
    scene
    faults disk:inc full:disk.raw:low "--disk $one" --mode=full --bitmap=b disk inc
    report
}

@test "faults: incremental" {
    scene
    faults disk:inc full:disk.raw:low "--disk $one --bitmap-mode" --bitmap=b --base=full --verify disk inc
    report
}

@test "faults: incremental, --bitmap-sync=always" {
    scene
    faults disk:inc:inc.partial full:disk.raw:low "--disk $one" \
        --bitmap=b --base=full --bitmap-sync=always --keep-failed -m 1 disk inc
    report
}

@test "faults: the own layer" {
    scene
    faults disk:inc full:disk.raw:low "--disk $one" --mode=top --bitmap=b --base=low -F raw disk inc
    report
}

@test "faults: in place" {
    scene
    cp full inc
    faults disk:inc full:disk.raw:low "--disk $one --in-place" -n --bitmap=b disk inc
    report
}

@test "faults: two disks" {
    scene
    make_disk disk2 full2
    faults disk:disk2:inc:inc2 full:full2:disk.raw:disk2.raw:low "--disk $one --disk disk2=inc2=full2:disk2.raw --bitmap-mode" \
        --bitmap=b --base=full --base=full2 --disk disk=inc --disk disk2=inc2
    report
}

@test "faults: all modes and all of --bitmap-sync" {
    [[ -n $all ]] || skip 'BACKUP_FAULTS=all'
    local mode sync extra base
    for mode in full top bitmap; do
        for sync in on-success never always; do
            for extra in "" "--new-bitmap=c" "-c --checksum"; do
                scene
                base='' # of words
                [[ $mode != bitmap ]] || base=--base=full
                [[ $mode != top ]] || base='--base=low -F raw'
                [[ $sync != always ]] || extra+=' --keep-failed'
                # shellcheck disable=SC2086 # lists
                faults disk:inc:inc.partial full:disk.raw:low "--disk $one" --mode="$mode" --bitmap=b \
                    --bitmap-sync="$sync" $base $extra disk inc
            done
        done
    done
    report
}

@test "killed: incremental" {
    scene
    backup_crashes disk:inc full:disk.raw:low "--disk $one" --bitmap=b --base=full disk inc
}

@test "killed: full, with a new bitmap" {
    scene
    backup_crashes disk:inc full:disk.raw:low "--disk $one" --mode=full --bitmap=b --new-bitmap=c disk inc
}

@test "killed: --bitmap-sync=always" {
    scene
    backup_crashes disk:inc.partial:inc full:disk.raw:low "--disk $one" --bitmap=b --base=full --bitmap-sync=always \
        --keep-failed disk inc
}

@test "killed: in place" {
    scene
    cp full inc
    backup_crashes disk:inc full:disk.raw:low "--disk $one --in-place" -n --bitmap=b disk inc
}

@test "killed: two disks" {
    scene
    make_disk disk2 full2
    backup_crashes disk:disk2:inc:inc2 full:full2:disk.raw:disk2.raw:low \
        "--disk $one --disk disk2=inc2=full2:disk2.raw" \
        --bitmap=b --base=full --base=full2 --disk disk=inc --disk disk2=inc2
}
