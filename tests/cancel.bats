#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# A command that is told to stop closes everything and leaves no unfinished target; one that is
# killed leaves none either.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    truncate -s 64M a
    fill a 0 67108864 0x21
}

# Starts a convert that would take half a minute, and waits until it copies.
start_slow() {
    spawn "$BLKIMG" convert -p -r 2M "$@"
    wait_for 20 grep -qE '\(([1-9]|[0-9]{2})\.' spawn.out
}

# The folder holds nothing but what the test put there and spawn's files.
only() {
    assert_equal "$(find . -mindepth 1 ! -name 'spawn.*' -printf '%P\n' | sort | tr '\n' ' ')" "$* "
}

@test "SIGTERM, SIGINT and SIGHUP: status 128 + n, no target" {
    local signal
    for signal in TERM INT HUP; do
        start_slow a t.raw
        kill -s "$signal" "$pid"
        finish
        assert_equal "$status" $((128 + $(kill -l "$signal")))
        assert_equal "$(wc -l <spawn.err)" 1
        grep -q "^blkimg: .*signal" spawn.err
        only a
    done
}

@test "it stops soon, in the middle of a pause" {
    spawn "$BLKIMG" convert -r 100k -m 1 a t.raw
    sleep 0.5
    local start=$SECONDS
    kill "$pid"
    finish
    assert_equal "$status" 143
    ((SECONDS - start < 5))
}

@test "a second signal does not make it worse" {
    start_slow a t.raw
    kill -TERM "$pid" || true
    kill -INT "$pid" 2>/dev/null || true
    kill -TERM "$pid" 2>/dev/null || true
    finish
    assert_equal "$status" 143
    only a
}

@test "nohup: an ignored SIGHUP stays ignored" {
    (trap '' HUP && exec "$BLKIMG" convert -r 32M a t.raw) 3>&- &
    pid=$!
    sleep 0.5
    kill -HUP "$pid"
    wait "$pid"
    cmp a t.raw
}

@test "SIGKILL: no target" {
    start_slow a t.raw
    kill -KILL "$pid"
    finish
    assert_equal "$status" 137
    only a
}

@test "a target that existed is what it was, and has its owner and mode after success" {
    fill t.raw 0 300000 0x66
    chmod 640 t.raw
    ((EUID)) || chown 12:34 t.raw
    cp -a t.raw before
    local signal
    for signal in TERM KILL; do
        start_slow a t.raw
        cmp t.raw before
        kill -s "$signal" "$pid"
        finish
        assert_equal "$status" $((128 + $(kill -l "$signal")))
        cmp t.raw before
        only a before t.raw
    done
    run blkimg convert a t.raw
    assert_success
    cmp a t.raw
    assert_equal "$(stat -c '%u %g %a' t.raw)" "$(stat -c '%u %g %a' before)"
}

@test "an existing target is not locked any more after SIGTERM" {
    truncate -s 64M t.raw
    start_slow -n a t.raw
    run blkimg convert -n a t.raw
    assert_failure 1
    kill "$pid"
    finish
    assert_equal "$status" 143
    run blkimg convert -n a t.raw
    assert_success
    cmp a t.raw
}

@test "waiting for a lock ends with the signal" {
    truncate -s 64M t.raw
    start_slow -n a t.raw
    local slow=$pid status=0
    "$BLKIMG" convert --lock-wait=60 -n a t.raw 2>waiting 3>&- &
    local waiting=$!
    sleep 0.5
    kill -TERM "$waiting"
    wait "$waiting" || status=$?
    assert_equal "$status" 143
    kill "$slow"
    wait "$slow" || true
}

@test "compare and dd stop too" {
    local endless=driver=null-co,size=100T
    spawn "$BLKIMG" compare --image-opts "$endless" "$endless"
    sleep 0.5
    kill "$pid"
    finish
    assert_equal "$status" 143
    refute_output --partial identical
    spawn "$BLKIMG" dd --image-opts bs=1M count=20k "if=$endless" of=t.raw
    sleep 0.2
    kill "$pid"
    finish
    assert_equal "$status" 143
    only a
}

@test "qcow2: no target, or one that check finds whole" {
    need_format qcow2
    start_slow -O qcow2 a t.qcow2
    kill "$pid"
    finish
    assert_equal "$status" 143
    only a
    qemu-img create -q -f qcow2 t.qcow2 64M
    local signal
    for signal in TERM KILL; do
        start_slow -n -O qcow2 a t.qcow2
        kill -s "$signal" "$pid"
        finish
        run qemu-img check t.qcow2
        [[ $status == 0 || $status == 3 ]]
    done
}

@test "SIGUSR1 ends no command, with or without -p" {
    local options
    for options in "" -p; do
        # shellcheck disable=SC2086 # an option or none
        spawn "$BLKIMG" convert $options -r 16M a t.raw
        wait_for 20 test -e /proc/"$pid"/exe -a "$(readlink -f "$BLKIMG")" -ef /proc/"$pid"/exe
        sleep 0.3
        kill -USR1 "$pid"
        sleep 0.3
        kill -USR1 "$pid"
        kill "$pid"
        finish
        assert_equal "$status" 143
        [[ $options == -p ]] || grep -qE '^    \([0-9.]+/100%\)$' spawn.err
    done
    spawn "$BLKIMG" io -f raw -c 'sleep 500' a
    sleep 0.2
    kill -USR1 "$pid"
    finish
    assert_equal "$status" 0
}
