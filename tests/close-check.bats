#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg close-check": every step of a close is reported, and its status is the truth.

bats_require_minimum_version 1.5.0
load lib/common

@test "a raw image: each node and step, status 0" {
    truncate -s 1M a
    run --separate-stderr blkimg close-check -f raw a
    assert_success
    assert_equal "$stderr" ""
    assert_line "a (raw): flush: ok"
    assert_line "a (raw): release: ok"
    assert_line "a (file): flush: ok"
    assert_line "a (file): release: ok"
    refute_output --partial failed
    run blkimg close-check -q -f raw a
    assert_success
    assert_output ""
}

@test "the same as JSON" {
    need jq
    truncate -s 1M a
    blkimg close-check -f raw --output=json a >report
    assert_equal "$(jq -r .clean report)" true
    assert_equal "$(jq -r .filename report)" a
    local steps='.close[] | [.node, .driver, .step, .outcome] | join(" ")'
    assert_equal "$(jq -r "$steps" report | sort)" \
        "$(printf 'a %s ok\n' 'file flush' 'file release' 'raw flush' 'raw release')"
}

@test "nothing is changed" {
    truncate -s 1M a
    fill a 1000 50000
    cp a before
    blkimg close-check -f raw a
    cmp a before
    assert_equal "$(stat -c %b a)" "$(stat -c %b before)"
}

@test "a flush that fails: status 5, the step is named, the rest is still done" {
    truncate -s 1M a
    printf '[inject-error]\niotype = "flush"\nerrno = "5"\nevent = "none"\n' >rules
    run --separate-stderr blkimg close-check -f raw blkdebug:rules:a
    assert_failure 5
    assert_line --partial "flush: failed: "
    assert_line "a (file): release: ok"
    [[ $stderr == *flush*"Input/output error"* ]]
    # Once is enough: a retry proves nothing.
    printf '[inject-error]\niotype = "flush"\nerrno = "5"\nevent = "none"\nonce = "on"\n' >rules
    run --separate-stderr blkimg close-check -f raw blkdebug:rules:a
    assert_failure 5
}

@test "a close that fails: status 5" {
    truncate -s 1M a
    printf '[inject-error]\niotype = "close"\nerrno = "28"\nevent = "none"\n' >rules
    run --separate-stderr blkimg close-check -f raw blkdebug:rules:a
    assert_failure 5
    assert_line --partial "release: failed: "
    assert_line "a (file): release: ok"
    need jq
    blkimg close-check --output=json -f raw blkdebug:rules:a >report || true
    assert_equal "$(jq -r .clean report)" false
    assert_equal "$(jq -r '[.close[] | select(.outcome == "failed")][0] | .errno' report)" 28
}

@test "what cannot be opened for writing: status 1" {
    need qemu-io
    run blkimg close-check missing
    assert_failure 1
    run blkimg close-check .
    assert_failure 1
    run blkimg close-check
    assert_failure 1
    truncate -s 1M a
    run blkimg close-check a b
    assert_failure 1
    run blkimg close-check --output=xml a
    assert_failure 1
    coproc qemu-io -f raw a
    local holder=$COPROC_PID
    echo 'read 0 512' >&"${COPROC[1]}"
    wait_for 10 test -n "$(head -c 1 <&"${COPROC[0]}")"
    run blkimg close-check -f raw a
    assert_failure 1
    assert_output --partial lock
    echo quit >&"${COPROC[1]}"
    wait "$holder"
}

@test "--read-only: a format without a mark cannot tell, status 1" {
    truncate -s 1M a
    chmod 444 a
    run blkimg close-check --read-only -f raw a
    assert_failure 1
    assert_output --partial "this format does not record it"
}

@test "stdout that is full is a failure" {
    truncate -s 1M a
    run bash -c '"$BLKIMG" close-check a >/dev/full'
    assert_failure 1
}

@test "qcow2, --read-only: the dirty bit decides" {
    need_format qcow2
    qemu-img create -q -f qcow2 -o lazy_refcounts=on q 1M
    chmod 444 q
    run --separate-stderr blkimg close-check --read-only q
    assert_success
    assert_output "q: closed cleanly"
    chmod 644 q
    # Bit 0 of incompatible_features.
    printf '\1' | dd of=q bs=1 seek=79 conv=notrunc status=none
    cp q before
    run --separate-stderr blkimg close-check --read-only q
    assert_failure 2
    assert_output "q: not closed cleanly: its dirty bit is set"
    need jq
    blkimg close-check --read-only --output=json q >report || true
    assert_equal "$(jq -r .clean report)" false
    cmp q before
}

@test "qcow2, --read-only: bitmaps that were in use" {
    need_format qcow2
    need qemu-io
    qemu-img create -q -f qcow2 q 1M
    qemu-img bitmap --add q kept
    run blkimg close-check --read-only q
    assert_success
    coproc qemu-io q
    local holder=$COPROC_PID
    echo 'write 0 512' >&"${COPROC[1]}"
    wait_for 10 test -n "$(head -c 1 <&"${COPROC[0]}")"
    kill -KILL "$holder"
    wait "$holder" || true
    run blkimg close-check --read-only q
    assert_failure 2
    assert_output "q: not closed cleanly: bitmap 'kept' was in use"
}

@test "qcow2: steps of the format and of its file, the backing chain read-only" {
    need_format qcow2
    qemu-img create -q -f qcow2 base 1M
    qemu-img create -q -f qcow2 -b base -F qcow2 top
    chmod 444 base
    run --separate-stderr blkimg close-check top
    assert_success
    assert_line "top (qcow2): flush: ok"
    assert_line "top (qcow2): store: ok"
    assert_line "base (qcow2): release: ok"
    refute_line "base (qcow2): flush: ok"
    qemu-img check -q top
}
