#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg resize" against qemu-img.

bats_require_minimum_version 1.5.0
load lib/common

# Both programs resize a copy of "image": same output and status, same content.
same_resize() {
    local peer_status=0 mine_status=0
    rm -rf peer mine
    mkdir peer mine
    cp --sparse=always image peer/a
    cp --sparse=always image mine/a
    (cd peer && qemu-img resize "$@") >peer.out 2>peer.err || peer_status=$?
    (cd mine && blkimg resize "$@") >mine.out 2>mine.err || mine_status=$?
    diff -u peer.out mine.out || fail "resize $*"
    [[ $peer_status == "$mine_status" ]] || fail "resize $*: $peer_status, $mine_status: $(<mine.err)"
    if ((mine_status)); then
        [[ $(wc -l <mine.err) == 1 ]] || fail "resize $*: $(<mine.err)"
        cmp image mine/a
    else
        assert_file_empty mine.err
    fi
    diff <(qemu-img info peer/a | grep '^virtual') <(qemu-img info mine/a | grep '^virtual')
    qemu-img compare -q peer/a mine/a
}

@test "raw: larger, smaller, by a difference" {
    truncate -s 10M image
    fill image 1M 1M
    local size
    for size in 10M 20M +1M +0 -0 13333333 +1000; do
        same_resize -f raw a "$size"
    done
    for size in 5M -2M 1000 1; do
        same_resize -f raw --shrink a "$size"
    done
    same_resize -f raw -q a +1M
    same_resize --image-opts driver=raw,file.filename=a 20M
}

@test "raw: white space and a second plus sign" {
    truncate -s 10M image
    local size
    for size in ' 12M' '+ 2M' '++2M' '+ +2M' ' +12M' '+ 0'; do
        same_resize -f raw a "$size"
    done
    for size in '- 512k' '-+512k'; do
        same_resize -f raw --shrink -- a "$size"
    done
    for size in '+++2M' '12M ' '+ ' '+ -2M' '12 M'; do
        same_resize -f raw a "$size"
        assert_equal "$(wc -l <mine.err)" 1
    done
}

@test "raw: refused" {
    truncate -s 10M image
    fill image 1M 1M
    local size
    for size in 5M -2M 0 x 1.5.2G 16E 8E +8E +-1M '' 7E; do
        same_resize -f raw a "$size"
        assert_equal "$(wc -l <mine.err)" 1
    done
    same_resize -f raw --shrink a -10M
    same_resize -f raw --shrink a -100M
    same_resize -f raw a
    same_resize
    same_resize -f qcow2 a 20M
    same_resize -f raw nosuch 20M
    same_resize -f raw --preallocation=lots a 20M
    same_resize -f raw --preallocation=metadata a 20M
    same_resize -f raw --preallocation=full --shrink a 1M
}

@test "raw: preallocation of what is new" {
    truncate -s 1M image
    local mode
    for mode in off falloc full; do
        same_resize -f raw --preallocation=$mode a +2M
    done
    (($(stat -c %b mine/a) * 512 >= 2097152))
}

@test "options and a negative size in any order" {
    truncate -s 10M a
    run -0 blkimg resize a -1M --shrink -f raw
    assert_output 'Image resized.'
    [[ $(stat -c %s a) == $((9 * 1048576)) ]]
}

@test "an image in use is refused by name" {
    qemu-img create -q -f raw a 1M
    coproc qemu-io -f raw a
    echo 'write 0 512' >&"${COPROC[1]}"
    wait_for 10 test -n "$(head -c 1 <&"${COPROC[0]}")"
    run -1 --separate-stderr blkimg resize -f raw a 2M
    [[ $stderr == *"'a'"*lock* ]] || fail "$stderr"
    [[ $(stat -c %s a) == 1048576 ]]
    # It ends while we wait.
    blkimg resize -f raw --lock-wait=20 a 2M &
    echo quit >&"${COPROC[1]}"
    wait $!
    [[ $(stat -c %s a) == 2097152 ]]
}

@test "qcow2" {
    need_format qcow2
    qemu-img create -q -f qcow2 image 10M
    qemu-io -c 'write 1M 1M' -c 'write 9M 1M' image >/dev/null
    local size
    for size in 20M +1M +0 11111111 5G; do
        same_resize a "$size"
        qemu-img check -q mine/a
    done
    for size in 5M 1000k -64k; do
        same_resize --shrink a "$size"
        qemu-img check -q mine/a
    done
    for size in 5M -1M; do
        same_resize a "$size"
    done
    for size in metadata falloc full; do
        same_resize --preallocation=$size a 20M
        qemu-img check -q mine/a
    done
}

# with_data_file COMMAND...: says how long the data file is after that and what it has, and again after growing.
with_data_file() {
    rm -rf t && mkdir t
    (
        cd t || exit
        qemu-img create -q -f qcow2 -o "data_file=data,data_file_raw=$raw" a 4M
        qemu-io -c 'write -P 1 0 4M' a >/dev/null
        "$@" >/dev/null
        qemu-img check -q a
        stat -c %s data
        sha256sum <data
        blkimg resize -q a 6M
        stat -c %s data
        # What was cut off does not come back.
        qemu-io -c 'read -P 1 0 1000k' -c 'read -P 0 1000k 5144k' a | grep -v ' ops; '
    )
}

@test "external data files are cut" {
    need_format qcow2
    local raw arguments
    for raw in off on; do
        for arguments in 'resize --shrink a 1000k' 'amend -o size=1000k a'; do
            # shellcheck disable=SC2086 # a list
            with_data_file qemu-img $arguments >theirs
            # shellcheck disable=SC2086
            with_data_file blkimg $arguments >ours
            diff theirs ours
        done
        with_data_file qemu-io -c 'truncate 1000k' a >theirs
        with_data_file blkimg io -c 'truncate 1000k' a >ours
        diff theirs ours
    done
}

# Clusters that are free inside the file, not only at its end.
@test "--shrink gives disk space back" {
    need qemu-img qemu-io
    qemu-img create -q -f qcow2 a 16M
    # The part that stays is written last: it lies at the end of the file.
    qemu-io -c 'write -P 2 8M 8M' -c 'write -P 1 0 1M' a >/dev/null
    local before
    before=$(stat -c %b a)
    run -0 blkimg resize --shrink a 4M
    (($(stat -c %b a) < before / 4)) || fail "$before blocks before, $(stat -c %b a) now"
    run -0 blkimg check a
    qemu-io -r -c 'read -P 1 0 1M' -c 'read -P 0 1M 3M' a | grep -c 'read [0-9]*/' | grep -qx 2
    # What a snapshot has stays.
    qemu-img create -q -f qcow2 b 16M
    qemu-io -c 'write -P 2 8M 8M' b >/dev/null
    qemu-img snapshot -c one b
    qemu-io -c 'write -P 1 0 1M' b >/dev/null
    qemu-img convert -l one -O raw b one
    run -0 blkimg resize --shrink b 4M
    run -0 blkimg check b
    qemu-img snapshot -a one b
    qemu-img convert -O raw b again
    cmp one again
}

# An image with the name $2, of whose events $1 the N-th ($3) fails.
failing() {
    printf '[inject-error]\nevent = "%s"\nerrno = "5"\nnth = "%s"\n' "$1" "$3" >faults
    echo "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"blkdebug\",\"config\":\"faults\",
          \"image\":{\"driver\":\"file\",\"filename\":\"$2\"}}}"
}

@test "shrink: an L2 table of which a part cannot be read keeps what it maps" {
    blkimg create -q -f qcow2 -o cluster_size=2M a 1T
    blkimg io -c 'write 0 64k' -c 'write 520G 64k' a >/dev/null
    local n hits=0
    for n in 2 33 34 35 36 37; do
        cp --sparse=always a b
        run -1 --separate-stderr blkimg resize --shrink "$(failing l2_load b "$n")" 1G
        [[ $stderr != *"reading 65536 bytes"* ]] || hits=$((hits + 1))
        run qemu-img check b
        ((status == 0 || status == 3)) || fail "read $n: $output"
    done
    ((hits >= 4))
}
