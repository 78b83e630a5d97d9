# SPDX-License-Identifier: MIT
# QEMU's locks: a running VM (here qemu-io) and this program exclude each other, in both directions.

bats_require_minimum_version 1.5.0
load lib/common
load lib/target
load lib/locks

setup() {
    common_setup
    truncate -s 1M a
}

# --- what is held ----------------------------------------------------------------------------

@test "a writer holds what qemu-io holds of qcow2" {
    hold "$BLKIMG" io -f raw a
    wait_for 10 is_held a "100 101 103 201 203"
    release
    is_held a ""
}

@test "a reader holds the shared bytes, with -U only one" {
    hold "$BLKIMG" io -r -f raw a
    wait_for 10 is_held a "100 201 203"
    release
    hold "$BLKIMG" io -r -U -f raw a
    wait_for 10 is_held a "100"
    release
}

@test "qemu-io holds what is expected of it" {
    need qemu-io qemu-img
    qemu-img create -q -f qcow2 q 1M
    hold qemu-io -f qcow2 q
    wait_for 10 is_held q "100 101 103 201 203"
    release
    hold qemu-io -r -f qcow2 q
    wait_for 10 is_held q "100 201 203"
    release
}

# --- qemu-io first ---------------------------------------------------------------------------

@test "what qemu-io writes to is refused, with its name" {
    need qemu-io
    hold qemu-io -f raw a
    wait_for 10 is_held a "100 101"
    run -1 blkimg io -r -f raw -c "read 0 512" a
    assert_output --partial "'a'"
    assert_output --partial 'Failed to get shared "write" lock'
    assert_output --partial "process $holder (qemu-io)"
    run -1 blkimg io -f raw -c "write 0 512" a
    assert_output --partial 'Failed to get "write" lock'
    assert_output --partial "process $holder (qemu-io)"
    run -1 blkimg resize -q -f raw a 2M
    run -1 blkimg create -q -f raw a 2M
    assert_equal "$(stat -c %s a)" 1048576
    run -0 blkimg io -r -U -f raw -c "read 0 512" a
    run -0 blkimg io --image-opts -c "read 0 512" driver=raw,file.filename=a,file.locking=off
    run -0 blkimg info -f raw a
    assert_output --partial "in use"
    release
    run -0 blkimg io -f raw -c "write 0 512" a
}

@test "what qemu-io reads as qcow2 can be read, not written" {
    need qemu-io qemu-img
    qemu-img create -q -f qcow2 q 1M
    hold qemu-io -r -f qcow2 q
    wait_for 10 is_held q "100 201 203"
    run -0 blkimg io -r -f raw -c "read 0 512" q
    run -1 blkimg io -f raw -c "write 0 512" q
    assert_output --partial 'Failed to get "write" lock'
    release
}

@test "what another writes to can become a backing file" {
    need qemu-io qemu-img
    qemu-img create -q -f qcow2 q 3M
    hold_writable q
    run -0 blkimg create -q -f qcow2 -b q -F qcow2 over
    run -0 blkimg create -q -f qcow2 -b q -F qcow2 small 1M
    run -1 blkimg create -q -f qcow2 -b over -F qcow2 q
    run -1 blkimg create -q -f qcow2 -b a -F raw q
    assert_output --partial 'Failed to get "write" lock'
    is_held q "$writer"
    release
    run -0 blkimg info over
    assert_output --partial "virtual size: 3 MiB"
    run -0 blkimg info small
    assert_output --partial "virtual size: 1 MiB"
    run -0 qemu-img check q
}

# --- blkimg first ----------------------------------------------------------------------------

@test "what we write to is refused by qemu-io and qemu-img" {
    need qemu-io qemu-img
    qemu-img create -q -f qcow2 q 1M
    hold "$BLKIMG" io -f raw q
    wait_for 10 is_held q "100 101 103 201 203"
    run -1 qemu-io -f raw -c "write 0 512" q
    assert_output --partial 'Failed to get "write" lock'
    run -1 qemu-io -f qcow2 -c "write 0 512" q
    assert_output --partial 'Failed to get "write" lock'
    run -1 qemu-img info q
    assert_output --partial 'Failed to get shared "write" lock'
    run -0 qemu-img info -U q
    release
    run -0 qemu-img info q
}

@test "what we read is not written by qemu-io, but read" {
    need qemu-io
    hold "$BLKIMG" io -r -f raw a
    wait_for 10 is_held a "100 201 203"
    run -1 qemu-io -f raw -c "write 0 512" a
    assert_output --partial 'Failed to get "write" lock'
    run -0 qemu-io -r -f raw -c "read 0 512" a
    release
}

# --- options ---------------------------------------------------------------------------------

@test "locking=off takes and asks for nothing" {
    hold "$BLKIMG" io --image-opts driver=raw,file.filename=a,file.locking=off
    sleep 0.3
    is_held a ""
    run -0 blkimg io -f raw -c "write 0 512" a
    release
    run -1 blkimg io --image-opts -c quit driver=raw,file.filename=a,file.locking=maybe
    assert_output --partial "locking=maybe"
}

@test "lock-wait waits, and gives up" {
    hold "$BLKIMG" io -f raw a
    wait_for 10 is_held a "100 101 103 201 203"
    (sleep 0.7; exec 8>&-; kill -TERM $holder) &
    run -0 blkimg io --image-opts -c "write 0 512" driver=raw,file.filename=a,file.lock-wait=20
    release
    hold "$BLKIMG" io -f raw a
    wait_for 10 is_held a "100 101 103 201 203"
    start=${EPOCHREALTIME/./}
    run -1 blkimg io --image-opts -c "write 0 512" driver=raw,file.filename=a,file.lock-wait=1
    ((${EPOCHREALTIME/./} - start >= 900000))
    assert_output --partial 'Failed to get "write" lock'
    release
}

@test "a failed lock says what qemu-img says, how long was waited and what to do" {
    need qemu-img
    qemu-img create -q -f qcow2 q 1M
    hold "$BLKIMG" io q
    wait_for 10 is_held q "$writer"
    local name="process $holder (blkimg)"

    run -1 --separate-stderr blkimg convert -O raw q out
    assert_equal "$stderr" "blkimg: Could not open 'q': Failed to get shared \"write\" lock: $name \
has it open and may write to it. Is another process using the image [q]? \
(--lock-wait=SECONDS waits for it, -U reads it as it is)"
    run -1 --separate-stderr blkimg resize --lock-wait=1 q 2M
    assert_equal "$stderr" "blkimg: Could not open 'q': Failed to get \"write\" lock: $name \
does not let others write to it. Is another process using the image [q]? \
(waited 1 s; a longer --lock-wait may help)"
    # Every line that qemu-img prints is a part of ours.
    run -1 --separate-stderr qemu-img check q
    local theirs=$stderr line
    run -1 --separate-stderr blkimg check q
    while read -r line; do
        [[ $stderr == *"${line#qemu-img: }"* ]] || fail "no \"$line\" in: $stderr"
    done <<<"$theirs"
    # -U is not named where it is of no use: the base of what is written.
    qemu-img create -q -f qcow2 -b q -F qcow2 -u over 1M
    for command in "commit over" "bench -w over" "io -c quit over" "rebase -b q -F qcow2 over"; do
        # shellcheck disable=SC2086 # words
        run -1 --separate-stderr blkimg $command
        [[ $stderr == *"Failed to get shared"*"(--lock-wait=SECONDS waits for it)" ]] ||
            fail "$command: $stderr"
    done
    release
}

@test "who waits is not in the way of others" {
    hold "$BLKIMG" io -r -f raw a
    wait_for 10 is_held a "100 201 203"
    spawn "$BLKIMG" resize -q -f raw --lock-wait=60 a 2M 8>&-
    for _ in {1..20}; do
        run -0 blkimg io -r -f raw -c "read 0 512" a
    done
    release
    finish
    assert_equal "$status" 0
}

@test "a signal ends the waiting" {
    hold "$BLKIMG" io -f raw a
    wait_for 10 is_held a "100 101 103 201 203"
    "$BLKIMG" io --image-opts -c "write 0 512" driver=raw,file.filename=a,file.lock-wait=60 2>log &
    waiting=$!
    sleep 0.5
    kill -TERM $waiting
    status=0
    wait $waiting || status=$?
    assert_equal $status 143
    release
}

# --- a target --------------------------------------------------------------------------------

@test "a target that is being made excludes another writer of the old file" {
    start_target a
    run -1 blkimg io -f raw -c "write 0 512" a
    assert_output --partial 'Failed to get "write" lock'
    run -1 blkimg create -q -f raw a 2M
    assert_output --partial "(blkimg)"
}
