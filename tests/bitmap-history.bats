#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The history that loses writes where bitmaps are not followed through reopening: base has bitmap
# b0; an external snapshot makes base read-only; commit makes it writable again and must record
# what it writes in b0; the next incremental backup must contain that. Each step is read by QEMU too.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img qemu-io qemu-nbd nbdinfo jq
}

qemu_extents() {
    nbdinfo --json --map="qemu:dirty-bitmap:$2" -- [ qemu-nbd -r -f qcow2 -B "$2" "$1" ] |
        jq -r '.[] | select(.type == 1) | "\(.offset) \(.length)"'
}

# dirty IMAGE BITMAP EXTENT...: both programs say so, and none calls it in use.
dirty() {
    local image=$1 bitmap=$2 expected
    shift 2
    expected=$(printf '%s\n' "$@")
    assert_equal "$(blkimg map --bitmap "$bitmap" --output=json "$image" |
        jq -r '.[] | "\(.start) \(.length)"')" "$expected"
    assert_equal "$(qemu_extents "$image" "$bitmap")" "$expected"
    qemu-img info --output=json "$image" |
        jq -e --arg b "$bitmap" \
            '."format-specific".data.bitmaps[] | select(.name == $b) | .flags == ["auto"]' >out
    qemu-img check -q "$image"
}

# What an incremental backup copies, by bitmap b0, from the image $1 over the last one, $2.
incremental() {
    local start length
    qemu-img convert -O raw "$1" current
    while read -r start length; do
        dd if=current of="$2" bs=64k skip=$((start / 65536)) seek=$((start / 65536)) \
            count=$(((length + 65535) / 65536)) conv=notrunc status=none
    done < <(blkimg map --bitmap b0 --output=json "$1" | jq -r '.[] | "\(.start) \(.length)"')
}

history() {
    qemu-img create -q -f qcow2 base 16M
    qemu-io -c 'write -P 1 0 4M' base >out

    # A full backup, and a bitmap that records from then on.
    qemu-img convert -O raw base backup
    blkimg bitmap --add base b0
    dirty base b0

    # The guest writes.
    blkimg io -c 'write -P 2 1M 128k' base >out
    dirty base b0 "1048576 131072"

    # An external snapshot: base is only read from now on, b0 stored and kept.
    "$BLKIMG" create -q -f qcow2 -b base -F qcow2 top
    local before
    before=$(sha256sum <base)
    blkimg io -c 'write -P 3 2M 64k' -c 'write -P 4 5M 64k' -c 'write -z 3M 64k' top >out
    assert_equal "$(sha256sum <base)" "$before"
    dirty base b0 "1048576 131072"

    # Commit: b0 comes back and records.
    blkimg commit -q top
    dirty base b0 "1048576 131072" "2097152 65536" "3145728 65536" "5242880 65536"
    qemu-img compare -q base top

    # The next incremental backup has it all.
    incremental base backup
    qemu-img compare -q -f qcow2 -F raw base backup
}

@test "base, external snapshot, commit, incremental backup" {
    history
}

@test "again, twice over, with qemu-io as the guest between" {
    history
    blkimg bitmap --clear base b0
    dirty base b0
    qemu-img create -q -f qcow2 -b base -F qcow2 second
    qemu-io -c 'write -P 7 9M 100k' second >out
    blkimg commit -d -q second
    dirty base b0 "9437184 131072"
    incremental base backup
    qemu-img compare -q -f qcow2 -F raw base backup
    # QEMU records on in what we stored.
    qemu-io -c 'write -P 8 15M 1' base >out
    dirty base b0 "9437184 131072" "15728640 65536"
}

@test "the same in one process: read-only and writable in turn" {
    qemu-img create -q -f qcow2 base 16M
    blkimg bitmap --add base b0
    blkimg io -c 'write -P 1 0 1' -c 'reopen -r' -c 'read 0 64k' -c 'reopen -w' \
        -c 'write -P 2 1M 1' -c 'reopen -r' -c 'reopen -w' -c 'reopen -r' base >out
    dirty base b0 "0 65536" "1048576 65536"
    # Read-only in the end: nothing is left to store.
    blkimg io -r -c 'reopen -w' -c 'write -P 3 2M 1' base >out
    dirty base b0 "0 65536" "1048576 65536" "2097152 65536"
}

@test "in between the image is what it says: stored while read-only, in use while recording" {
    qemu-img create -q -f qcow2 base 16M
    blkimg bitmap --add base b0
    mkfifo commands
    "$BLKIMG" io base <commands >replies 2>&1 3>&- &
    exec 7>commands
    echo 'reopen -r' >&7
    echo 'reopen -w' >&7
    echo 'read 0 1' >&7
    wait_for 10 grep -q 'read 1/1' replies
    # Nothing tracked: left alone.
    qemu-img info -U --output=json base | jq -e '."format-specific".data.bitmaps[0].flags == ["auto"]'
    echo 'write 0 64k' >&7
    wait_for 10 grep -q wrote replies
    qemu-img info -U --output=json base | jq -e '."format-specific".data.bitmaps[0].flags == ["in-use", "auto"]'
    echo 'reopen -r' >&7
    echo 'read 0 2' >&7
    wait_for 10 grep -q 'read 2/2' replies
    qemu-img info -U --output=json base | jq -e '."format-specific".data.bitmaps[0].flags == ["auto"]'
    cp base copy
    dirty copy b0 "0 65536"
    echo 'reopen -w' >&7
    echo 'write 1M 64k' >&7
    wait_for 10 bash -c '(($(grep -c wrote replies) == 2))'
    kill -KILL $!
    exec 7>&-
    wait $! || true
    run -1 blkimg bitmap --clear base b0
    qemu-img info --output=json base | jq -e '."format-specific".data.bitmaps[0].flags == ["in-use", "auto"]'
    # Clusters that were set aside for the store leak, nothing else is wrong.
    run -3 qemu-img check base
}
