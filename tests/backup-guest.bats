#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# --guest-io: a guest writes to the disk while it is backed up. The backup is the disk of the moment at which it
# began; the bitmaps mark what the guest did, for the next one.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img python3 jq
    MIB=${SANITIZERS:+16}
    MIB=${MIB:-32}
    WRITES=${SANITIZERS:+2000}
    WRITES=${WRITES:-10000}
}

# guest_commands: random writes, four at a time; some are zeroes and discards.
guest_commands() {
    awk -v n="$WRITES" -v bytes=$((MIB * 1048576)) -v seed="$RANDOM" 'BEGIN {
        srand(seed)
        for (i = 1; i <= n; i++) {
            length_ = int(rand() * 12 + 1) * 512
            at = int(rand() * (bytes - length_) / 512) * 512
            what = rand() < 0.9 ? "aio_write -q -P " int(rand() * 255) : rand() < 0.5 ? "aio_write -q -z" : "discard -q"
            print what, at, length_
            if (i % 4 == 0) print "aio_flush"
        }
    }' >guest
}

# make_disk: with data, a full backup, and changes since that bitmap b marks; its content is frozen.raw.
make_disk() {
    rm -f disk full inc next
    blkimg create -q -f qcow2 disk "${MIB}M"
    blkimg io -c "write -q -P 1 0 ${MIB}M" disk
    blkimg backup --new-bitmap=b disk full
    blkimg io -c "write -q -P 2 1M $((MIB - 4))M" -c 'write -q -z 70k 100k' disk
    qemu-img convert -O raw disk frozen.raw
}

# The next backup is right, on the base given.
next_is_right() {
    rm -f next
    blkimg backup --bitmap=b --bitmap-sync=never "--base=$1" disk next
    qemu-img compare -q disk next || fail "the bitmap lost what the guest wrote, or what was dirty before"
    qemu-img check -q disk
}

@test "the backup is of the moment it began, and the next one has what the guest wrote" {
    local mode
    for mode in full bitmap; do
        make_disk
        guest_commands
        local base=()
        [[ $mode == full ]] || base=(--base=full)
        run -0 --separate-stderr blkimg backup --guest-io=guest --mode=$mode --bitmap=b "${base[@]}" -r 12M disk inc
        assert_equal "$output$stderr" ''
        qemu-img compare -f qcow2 -F raw inc frozen.raw
        run -1 qemu-img compare -q -f qcow2 -F raw disk frozen.raw
        next_is_right inc
        qemu-img check -q inc
    done
}

@test "the own layer of a disk, and --new-bitmap" {
    make_disk
    qemu-img create -q -f qcow2 -b disk -F qcow2 top
    blkimg io -c 'write -q -P 3 5M 3M' top
    qemu-img convert -O raw top frozen.raw
    guest_commands
    blkimg backup --guest-io=guest --mode=top --base=disk --new-bitmap=n -r 2M top inc >out
    qemu-img compare -f qcow2 -F raw inc frozen.raw
    blkimg backup --bitmap=n --base=inc top next
    qemu-img compare top next
}

# random_faults: a target "inc" over "full", of which some writes fail; its options are in $target.
random_faults() {
    rm -f inc
    qemu-img create -q -f qcow2 -b full -F qcow2 inc "${MIB}M"
    awk -v seed="$RANDOM" 'BEGIN {
        srand(seed)
        for (i = 0; i < 1 + int(rand() * 4); i++)
            printf "[inject-error]\niotype = \"write\"\nnth = \"%d\"\n", 2 + int(rand() * 300)
    }' >rules
    target=driver=qcow2,file.driver=blkdebug,file.config=rules,file.image.filename=inc
}

# try_faults MODE: leaves the status, and what the guest said in $T/out.
try_faults() {
    make_disk
    guest_commands
    random_faults
    status=0
    "$BLKIMG" backup -n --target-image-opts --guest-io=guest --on-cbw-error="$1" --bitmap=b -r 12M disk "$target" \
        >out 2>err || status=$?
    if ((status == 0)); then
        qemu-img compare -q -f qcow2 -F raw inc frozen.raw || fail "status 0, and it is not the frozen moment"
        next_is_right inc
    else
        assert_file_contains err "its bitmaps mark what they did before and what the guest wrote, do not use"
        next_is_right full
    fi
}

@test "random faults of the target, break-guest-write" {
    local i good=0 refused=0
    for i in $(seq "${BACKUP_GUEST_RUNS:-5}"); do
        try_faults break-guest-write
        ((status)) || good=$((good + 1))
        ! grep -q failed out || refused=$((refused + 1))
    done
    echo "# of $i backups $good were good, in $refused a guest's write failed" >&3
}

@test "random faults of the target, break-snapshot: no guest write fails" {
    local i good=0
    for i in $(seq "${BACKUP_GUEST_RUNS:-5}"); do
        try_faults break-snapshot
        assert_equal "$(<out)" ''
        ((status)) || good=$((good + 1))
    done
    echo "# of $i backups $good were good" >&3
}

@test "a guest does not resize or close its disk; a file of commands that is not there" {
    make_disk
    local before
    before=$(sha256sum <disk)
    run -1 --separate-stderr blkimg backup --guest-io=nothing --bitmap=b disk inc
    [[ $stderr == *"nothing"*"No such file"* ]]
    assert_equal "$(sha256sum <disk)" "$before"
    local command
    for command in 'truncate 1M' 'c' ' close' 'nonsense 1'; do
        printf '%s\n' 'write 0 512' "$command" >guest
        run -1 --separate-stderr blkimg backup --guest-io=guest --bitmap=b --base=full disk inc
        [[ $stderr == *"'${command# }' in the guest's commands 'guest': "* ]] || fail "$stderr"
        assert_equal "$(sha256sum <disk)" "$before"
        assert_file_not_exist inc
    done
    # From a FIFO a bad line is said and passed over.
    mkfifo fifo
    printf '%s\n' 'truncate 1M' 'write -P 7 0 512' >fifo &
    run -0 --separate-stderr blkimg backup --guest-io=fifo --bitmap=b --base=full disk inc
    [[ $stderr == *"'truncate 1M' in the guest's commands: a guest cannot run it"* ]]
}

@test "a signal ends both; the bitmap is right" {
    make_disk
    guest_commands
    spawn "$BLKIMG" backup --guest-io=guest --bitmap=b --base=full -r 4M disk inc
    sleep 1
    kill -TERM "$pid"
    finish
    assert_equal "$status" 143
    [[ ! -e inc ]]
    next_is_right full
}

@test "a kill costs the bitmap, and that is noticed" {
    make_disk
    guest_commands
    spawn "$BLKIMG" backup --guest-io=guest --bitmap=b --base=full -r 4M disk inc
    sleep 1
    kill -KILL "$pid"
    finish
    [[ ! -e inc ]]
    run -1 --separate-stderr blkimg backup --bitmap=b --base=full disk inc
    [[ $stderr == *"bitmap 'b'"* ]]
    blkimg backup -q --bitmap=b --on-broken-bitmap=full disk inc
    qemu-img compare -q disk inc
}
