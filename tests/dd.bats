#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg dd" beside qemu-img: the same status, the same output image.

bats_require_minimum_version 1.5.0
load lib/common

make_image() {
    truncate -s 1M "$1"
    fill "$1" 0 1000 0x21
    fill "$1" 70000 130000 0x42
    fill "$1" 1048064 512 0x17
}

# Both programs copy with these operands: same stdout, same status, same file "o".
same_dd() {
    local peer_status=0 mine_status=0
    rm -rf peer mine
    cp -a given peer
    cp -a given mine
    (cd peer && qemu-img dd "$@") >peer.out 2>peer.err || peer_status=$?
    (cd mine && blkimg dd "$@") >mine.out 2>mine.err || mine_status=$?
    diff -u peer.out mine.out || fail "dd $*"
    [[ $peer_status == "$mine_status" ]] || fail "dd $*: $peer_status, $mine_status: $(<mine.err)"
    [[ -s peer.err ]] && [[ ! -s mine.err ]] && fail "dd $*: nothing said"
    [[ ! -s peer.err ]] && [[ -s mine.err ]] && fail "dd $*: $(<mine.err)"
    if ((mine_status)); then
        assert_equal "$(ls mine)" "$(ls given)"
    else
        cmp peer/o mine/o || fail "dd $*"
    fi
}

refuses() {
    local text=$1 status=0 before message
    shift
    before=$(stat -c '%n %s %a %i' -- *)
    message=$(blkimg dd "$@" 2>&1 >/dev/null </dev/null) || status=$?
    assert_equal "$status" 1
    [[ $message != *$'\n'* && $message == blkimg:*"$text"* ]] || fail "dd $*: $message"
    assert_equal "$(stat -c '%n %s %a %i' -- *)" "$before"
}

@test "blocks, count and skip" {
    mkdir given
    make_image given/r
    same_dd if=r of=o
    same_dd bs=1M if=r of=o
    same_dd of=o bs=100 if=r
    same_dd if=r of=o count=3 bs=100
    same_dd if=r of=o count=0
    same_dd if=r of=o bs=1k count=5000
    same_dd if=r of=o bs=1k skip=70
    same_dd if=r of=o bs=777 skip=91
    same_dd if=r of=o bs=1k skip=1023
    same_dd if=r of=o bs=1k skip=1024
    same_dd if=r of=o bs=1k skip=1k
    same_dd if=r of=o bs=0x200 count=1k
    same_dd if=r of=o bs=1.5k count=2
    same_dd if=r if=r of=o count=4 count=5
    # qemu-img counts from the start of the input, skipped blocks included.
    same_dd if=r of=o bs=1k skip=3 count=70
    same_dd if=r of=o bs=1k skip=3 count=3
}

@test "skipping more than there is: an empty image, and a warning" {
    mkdir given
    make_image given/r
    same_dd if=r of=o bs=1k skip=1025
    same_dd if=r of=o bs=1k skip=4 count=2
    same_dd if=r of=o bs=1M skip=7E
    assert_equal "$(stat -c %s mine/o)" 0
}

@test "formats and ways to name the input" {
    mkdir given
    make_image given/r
    same_dd -f raw -O raw if=r of=o
    same_dd -O file if=r of=o
    same_dd -U if=r of=o
    same_dd --image-opts if=driver=raw,file.filename=r of=o
    same_dd --object secret,id=s,data=x if=r of=o
    same_dd 'if=json:{"driver": "raw", "file": {"driver": "file", "filename": "r"}}' of=o
    blkimg --help | grep -Eq "^Supported formats:.* qcow2( |$)" || return 0
    qemu-img convert -O qcow2 given/r given/q
    same_dd if=q of=o
    (cd given && blkimg dd -f qcow2 -O qcow2 bs=64k skip=1 if=q of=p)
    qemu-img dd bs=64k skip=1 if=given/r of=expected
    qemu-img compare given/p expected
}

@test "sizes that are no multiple of a sector" {
    mkdir given
    local size
    for size in 0 1 511 1000; do
        truncate -s "$size" given/r
        [[ $size == 0 ]] || fill given/r $((size - 1)) 1
        same_dd if=r of=o
        same_dd if=r of=o bs=1 skip=1
    done
}

@test "seek: where in the output the data begins" {
    make_image r
    run blkimg dd if=r of=o bs=1k seek=3
    assert_success
    assert_output ""
    cmp o <(head -c 3072 /dev/zero; cat r)
    run blkimg dd if=r of=o bs=100 seek=7 skip=1 count=3
    assert_success
    cmp o <(head -c 700 /dev/zero; head -c 300 r | tail -c 200; head -c 124 /dev/zero)
    refuses "large" if=r of=o bs=1k seek=7E
}

@test "wrong operands" {
    mkdir given
    make_image given/r
    same_dd if=r of=o foo
    same_dd if=r of=o conv=notrunc
    same_dd if=r of=o iflag=direct
    same_dd if=r of=o bs=0
    same_dd if=r of=o bs=3G
    same_dd if=r of=o bs=-1
    same_dd if=r of=o bs=
    same_dd if=r of=o bs=1.5.2k
    same_dd if=r of=o count=-1
    same_dd if=r of=o count=x
    same_dd if=r of=o skip=-1
    same_dd if=r
    same_dd of=o
    same_dd
    same_dd if=missing of=o
    same_dd if=r of=missing/o
    same_dd if=r of=
    same_dd -O foo if=r of=o
    same_dd -f foo if=r of=o
    same_dd -n if=r of=o
}

@test "the output is not the input" {
    make_image r
    ln r hard
    refuses "same file" if=r of=r
    refuses "same file" if=r of=hard
    refuses "same file" -U if=r of=./r
}

@test "an output that exists is replaced when all is done, with owner and mode" {
    make_image r
    fill o 0 3000000 0x55
    chmod 604 o
    run blkimg dd if=r of=o bs=64k
    assert_success
    cmp r o
    assert_equal "$(stat -c %a o)" 604
    truncate -s 0 rules
    cp o before
    printf '[inject-error]\nevent = "read_aio"\nsector = "1000"\n' >rules
    fill r 0 1048576 0x11
    run blkimg dd bs=64k if=blkdebug:rules:r of=o
    assert_failure 1
    cmp o before
}

@test "zeroes stay holes, whatever the input and the output are" {
    qemu-img create -q -f qcow2 empty.q 8T
    truncate -s 8T empty.r
    local input format
    for input in empty.q empty.r; do
        for format in raw qcow2; do
            run blkimg dd -O $format bs=1M if=$input of=o
            assert_success
            assert_output ""
            (($(stat -c %b o) < 2048)) || fail "$input to $format: $(stat -c %b o) blocks"
            run blkimg compare -f "$(qemu-img info "$input" | sed -n 's/^file format: //p')" -F $format \
                "$input" o
            assert_success
        done
    done
    # Zeroes that are written in the input too.
    fill z 0 8M 0
    fill z 4000000 100 0x11
    run blkimg dd -f raw if=z of=o
    assert_success
    cmp z o
    (($(stat -c %b o) < 64)) || fail "$(stat -c %b o) blocks"
}

@test "zeroes are written where the output cannot be known to be zero" {
    make_image r
    truncate -s 1M dev
    fill dev 0 1048576 0x99
    loop_device dev
    run blkimg dd -f raw if=r of="$LOOP" bs=1M
    assert_success
    cmp -n 1048576 r dev
}
