#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "amend" killed or cut off from power at any moment: never a corrupt image (leaks are fine), the guest's data
# untouched, and snapshots too. A changed size is wholly old or wholly new.
#
# CRASH_STATES=N tries N states of each change with each kind of image, of which there are then more (give it time:
# TEST_TIMEOUT).

bats_require_minimum_version 1.5.0
load lib/common
load lib/crash

# make_image OPTIONS [ARG...]: data, compressed pieces, zero clusters of both kinds, holes; the snapshot
# "first"; other data. Beside it raw files of what they hold.
make_image() {
    local piece='1M 64k'
    [[ $1 != *cluster_size=2M* ]] || piece='2M 1M' # a whole cluster, or up to the end
    qemu-img create -q -f qcow2 -o "$@" a 3M
    qemu-io -c 'write -P 1 0 300k' -c "write -c -P 2 $piece" -c 'write -z 1200k 64k' -c 'write -P 3 2M 700k' \
        -c 'write -z 2100k 64k' a >/dev/null
    qemu-img convert -O raw a first.raw
    qemu-img snapshot -c first a
    qemu-io -c 'write -P 4 100k 300k' -c 'write -P 5 1M 64k' -c 'write -z 2400k 64k' a >/dev/null
    qemu-img convert -O raw a now.raw
}

changes_nothing() { # AMEND-OPTIONS [ARG...]
    crashes --files a --image a --old now.raw --new now.raw --atomic --snapshot first=first.raw "${@:2}" \
        -- "$BLKIMG" amend -o "$1" a
}

clusters=(64k 512)
[[ -z ${CRASH_STATES-} ]] || clusters+=(1k 4k 2M)

@test "version down" {
    local size
    for size in "${clusters[@]}"; do
        make_image "cluster_size=$size"
        changes_nothing compat=0.10
    done
}

@test "version down above a backing file" {
    qemu-img create -q -f raw base 3M
    fill base 0 3M 9
    make_image cluster_size=4k -b base -F raw
    changes_nothing compat=0.10 --also base
}

@test "version up" {
    local size
    for size in "${clusters[@]}"; do
        make_image "cluster_size=$size,compat=0.10"
        changes_nothing compat=1.1
    done
}

@test "refcount widths" {
    local size width
    for size in "${clusters[@]}"; do
        for width in 64 8; do
            make_image "cluster_size=$size"
            changes_nothing "refcount_bits=$width"
        done
    done
}

@test "several steps" {
    make_image compat=0.10,cluster_size=4k
    changes_nothing compat=1.1,refcount_bits=32,lazy_refcounts=on
    blkimg amend -o compat=1.1,refcount_bits=32,lazy_refcounts=on a
    changes_nothing compat=0.10,refcount_bits=16
}

# The snapshot is not looked at: qemu-img reads it with the size that the disk has now.
@test "sizes" {
    local size
    for size in "${clusters[@]}"; do
        make_image "cluster_size=$size"
        cp now.raw larger.raw
        truncate -s 9M larger.raw
        crashes --files a --image a --old now.raw --new larger.raw --atomic \
            -- "$BLKIMG" amend -o size=9M a
        cp now.raw smaller.raw
        truncate -s 1M smaller.raw
        crashes --files a --image a --old now.raw --new smaller.raw \
            -- "$BLKIMG" amend -o size=1M a
    done
}

@test "a smaller size with an external data file" {
    local raw
    for raw in off on; do
        rm -f a data
        qemu-img create -q -f qcow2 -o "data_file=data,data_file_raw=$raw,cluster_size=4k" a 3M
        qemu-io -c 'write -P 1 0 3M' a >/dev/null
        qemu-img convert -O raw a now.raw
        cp now.raw smaller.raw
        truncate -s 1000k smaller.raw
        crashes --files a:data --image a --old now.raw --new smaller.raw -- "$BLKIMG" amend -o size=1000k a
    done
}

@test "single faults" {
    need_unsanitized
    local options sticky
    for options in compat=0.10 refcount_bits=64 lazy_refcounts=on size=9M; do
        make_image cluster_size=4k
        cp now.raw new.raw
        [[ $options != size=* ]] || truncate -s 9M new.raw
        for sticky in '' --sticky; do
            # shellcheck disable=SC2086 # a list
            TMPDIR=$memory python3 "$SRCDIR/tests/tools/faultloop.py" --files a --image a --old now.raw \
                --new new.raw --strict $sticky --calls write,sync,truncate,close \
                -- "$BLKIMG" amend -o $options a >fault.out 2>&1 || fail "$(tail -30 fault.out)"
            echo "# amend -o $options $sticky: $(tail -1 fault.out)" >&3
        done
    done
}
