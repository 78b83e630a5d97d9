#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "pivot" and "mirror --pivot" killed or cut off from power at any moment, or failing at any call, in a chain of
# three with two overlays at its end: the guest's views stay, no overlay names a file that does not hold the same, witness
# and headers agree, and recovery brings all to one side.
#
# CRASH_STATES=N tries N states of each (give it time: TEST_TIMEOUT).

bats_require_minimum_version 1.5.0
load lib/common
load lib/crash

export states=36

# make_chain OPTIONS: base <- mid <- one and two; "other" shows what mid shows. Beside them what each shows.
make_chain() {
    local name
    rm -f ./*
    qemu-img create -q -f qcow2 -o "$1" base 2M
    qemu-io -c 'write -P 1 0 300k' -c 'write -P 2 1M 700k' base >/dev/null
    qemu-img create -q -f qcow2 -o "$1" -b base -F qcow2 mid
    qemu-io -c 'write -P 3 100k 500k' -c 'write -z 1100k 100k' mid >/dev/null
    qemu-img convert -O raw mid mid.raw
    qemu-img convert -O qcow2 -o "$1" mid other
    for name in one two; do
        qemu-img create -q -f qcow2 -o "$1" -b mid -F qcow2 "$name"
        qemu-io -c "write -P ${#name} 200k 70k" -c 'write -z 300k 64k' "$name" >/dev/null
        qemu-img convert -O raw "$name" "$name.raw"
    done
}

# judge NEW [ARG...]: the judge of a state, as a command; what each image shows is in this folder.
judge() {
    echo "python3 $SRCDIR/tests/tools/check_pivot.py --before $T --new $*"
}

# switch_crashes NEW FILES ALSO ARG...
switch_crashes() {
    local new=$1 files=$2 also=$3
    shift 3
    crashes --files "$files" --also "$also" --check "$(judge "$new" --witness witness)" \
        -- "$BLKIMG" "$@" --witness witness
}

# faults NEW FILES CALLS ARG...
faults() {
    local new=$1 files=$2 calls=$3 witness
    shift 3
    need_unsanitized
    for witness in witness ''; do
        TMPDIR=$memory python3 "$SRCDIR/tests/tools/faultloop.py" --files "$files${witness:+:witness}" --strict \
            ${FAULT_STICKY:+--sticky} --calls "$calls" --check "$(judge "$new" ${witness:+--witness witness})" \
            -- "$BLKIMG" "$@" ${witness:+--witness witness} >fault.out 2>&1 || fail "$(tail -40 fault.out)"
        echo "# $* ${FAULT_STICKY:+sticky}: $(tail -1 fault.out)" >&3
    done
}

@test "pivot, by crash states" {
    local options
    for options in cluster_size=64k cluster_size=512 compat=0.10; do
        make_chain "$options"
        switch_crashes other one:two:witness base:mid:other pivot one two --to other
    done
}

@test "mirror with pivot, by crash states" {
    make_chain cluster_size=64k
    switch_crashes new one:two:witness:new base:mid mirror --pivot=one --pivot=two -O qcow2 mid new
    make_chain cluster_size=4k
    switch_crashes new one:two:witness:new base:mid mirror --mode=top --pivot=one --pivot=two mid new
    make_chain cluster_size=64k
    switch_crashes new one:two:witness:new base:mid mirror --pivot=one --pivot=two -O raw mid new
}

@test "recovery, by crash states" {
    local way
    for way in '' --undo; do
        make_chain cluster_size=64k
        printf '%s\n' "{\"state\":\"begin\",\"overlays\":[{\"file\":\"one\",\"old-backing\":\"mid\",\"old-format\":\"qcow2\",\"new-backing\":\"other\",\"new-format\":\"qcow2\"},{\"file\":\"two\",\"old-backing\":\"mid\",\"old-format\":\"qcow2\",\"new-backing\":\"other\",\"new-format\":\"qcow2\"}]}" >witness
        qemu-img rebase -u -b other -F qcow2 one
        # shellcheck disable=SC2086 # nothing, or an option
        crashes --files one:two:witness --also base:mid:other \
            --check "$(judge other --witness witness ${way:+--either})" \
            -- "$BLKIMG" pivot --recover witness $way
    done
}

@test "pivot, by single faults" {
    local sticky
    for sticky in '' 1; do
        make_chain cluster_size=64k
        FAULT_STICKY=$sticky faults other base:mid:other:one:two write,sync,truncate,close,fallocate \
            pivot one two --to other
    done
}

@test "mirror with pivot, by single faults" {
    local sticky
    for sticky in '' 1; do
        make_chain cluster_size=64k
        FAULT_STICKY=$sticky faults new base:mid:one:two:new write,sync,truncate,close,fallocate,link,rename \
            mirror --mode=top --pivot=one --pivot=two mid new
    done
}
