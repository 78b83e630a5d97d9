#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "snapshot" killed or cut off from power at any moment: never a corrupt image (leaks are fine), guest data
# wholly old or wholly new, the list of snapshots too, and what the others hold untouched.
#
# CRASH_STATES=N tries N states of each command with each kind of image, of which there are then more (give it time:
# TEST_TIMEOUT).

bats_require_minimum_version 1.5.0
load lib/common
load lib/crash

# An image with data, compressed pieces, zeroes and holes; the snapshot "first"; then other data. Beside it
# raw files of what they hold: first.raw and now.raw.
make_image() {
    qemu-img create -q -f qcow2 -o "$1" a 3M
    qemu-io -c 'write -P 1 0 300k' -c 'write -c -P 2 1M 64k' -c 'write -z 1200k 64k' -c 'write -P 3 2M 700k' a >/dev/null
    qemu-img convert -O raw a first.raw
    qemu-img snapshot -c first a
    qemu-io -c 'write -P 4 100k 300k' -c 'write -P 5 1M 64k' -c 'discard 2M 64k' -c 'write -P 6 2900k 32k' a >/dev/null
    qemu-img convert -O raw a now.raw
}

options=(cluster_size=64k 'cluster_size=4k,refcount_bits=8' 'cluster_size=512,refcount_bits=64')
[[ -z ${CRASH_STATES-} ]] || options+=('compat=0.10,cluster_size=1k' 'extended_l2=on,cluster_size=16k')

@test "snapshot -c" {
    local o
    for o in "${options[@]}"; do
        make_image "$o"
        crashes --files a --image a --old now.raw --new now.raw --atomic --snapshot first=first.raw \
            --snapshot second=now.raw --snapshots first --snapshots first,second -- "$BLKIMG" snapshot -c second a
    done
}

@test "snapshot -a" {
    local o
    for o in "${options[@]}"; do
        make_image "$o"
        crashes --files a --image a --old now.raw --new first.raw --atomic --kept --snapshot first=first.raw \
            --snapshots first -- "$BLKIMG" snapshot -a first a
    done
}

@test "snapshot -d" {
    local o
    for o in "${options[@]}"; do
        make_image "$o"
        qemu-img snapshot -c second a
        qemu-io -c 'write -P 7 500k 100k' a >/dev/null
        qemu-img convert -O raw a later.raw
        crashes --files a --image a --old later.raw --new later.raw --atomic --snapshot second=now.raw \
            --snapshot first=first.raw --snapshots first,second --snapshots second -- "$BLKIMG" snapshot -d first a
    done
}

@test "single faults" {
    need_unsanitized
    make_image cluster_size=4k
    local action sticky
    for action in '-c second' '-a first' '-d first'; do
        for sticky in '' --sticky; do
            local new=now.raw
            [[ $action != -a* ]] || new=first.raw
            # shellcheck disable=SC2086 # a list
            TMPDIR=$memory python3 "$SRCDIR/tests/tools/faultloop.py" --files a --image a --old now.raw \
                --new $new --strict $sticky --calls write,sync,truncate,close \
                -- "$BLKIMG" snapshot $action a >fault.out 2>&1 || fail "$(tail -30 fault.out)"
            echo "# snapshot $action $sticky: $(tail -1 fault.out)" >&3
        done
    done
}
