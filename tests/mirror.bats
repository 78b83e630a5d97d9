#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "mirror": the target is a proven copy, the source is never touched, and overlays move only to what was proven.

bats_require_minimum_version 1.5.0
load lib/common
load lib/locks

# make_chain: base <- mid <- one and two. Beside them what mid, one and two show.
make_chain() {
    rm -f ./*
    qemu-img create -q -f qcow2 base 3M
    qemu-io -c 'write -P 1 0 1M' base >/dev/null
    qemu-img create -q -f qcow2 -b base -F qcow2 mid 4M
    qemu-io -c 'write -P 2 500k 1M' -c 'write -z 100k 100k' mid >/dev/null
    qemu-img convert -O raw mid mid.raw
    local name
    for name in one two; do
        qemu-img create -q -f qcow2 -b mid -F qcow2 $name
        qemu-io -c "write -P ${#name} 2M 64k" $name >/dev/null
        qemu-img convert -O raw $name $name.raw
    done
    sha256sum base mid one two >sums
}

# unchanged IMAGE...
unchanged() {
    local image
    for image; do
        grep " $image$" sums | sha256sum --quiet -c -
    done
}

# shows IMAGE RAW
shows() {
    qemu-img convert -U -O raw "$1" now.raw
    cmp now.raw "$2"
}

# backing_is NAME FORMAT IMAGE; an empty name: there is none.
backing_is() {
    run -0 qemu-img info -U "$3"
    if [[ -n $1 ]]; then
        assert_line "backing file: $1"
        assert_line "backing file format: $2"
    else
        refute_line --partial 'backing file'
    fi
}

@test "a copy of the whole chain, or of the top" {
    local options
    make_chain
    for options in '' '-O raw' '-O file' '-o cluster_size=512' '-c' '-o extended_l2=on' '-t none -T none' '-m 1' '-o compat=0.10'; do
        # shellcheck disable=SC2086 # a list
        run -0 blkimg mirror $options mid copy
        assert_output ''
        unchanged base mid one two
        [[ $options == '-O '* ]] && cmp copy mid.raw && continue
        qemu-img check -q copy
        shows copy mid.raw
        backing_is '' '' copy
        # shellcheck disable=SC2086
        blkimg mirror --mode=top $options mid copy
        unchanged base mid one two
        qemu-img check -q copy
        shows copy mid.raw
        backing_is base qcow2 copy
    done
    # What is below is not copied.
    blkimg mirror --mode=top one copy
    (($(stat -c %s copy) < 600000))
    backing_is mid qcow2 copy
    mkdir -p far
    blkimg mirror --mode=top one far/copy
    backing_is "$PWD/mid" qcow2 far/copy
    shows far/copy one.raw
    run -1 blkimg mirror --mode=top -O raw one copy2
    assert_file_not_exist copy2
}

@test "a raw source that looks like another format" {
    qemu-img create -q -f qcow2 inner 1M
    qemu-img create -q -f raw disk 1M
    dd if=inner of=disk conv=notrunc status=none
    blkimg mirror -f raw disk copy
    cmp disk copy
    # An overlay that reads it as raw can be moved; what reads it as qcow2 sees something else.
    qemu-img create -q -f qcow2 -b disk -F raw raw-user
    qemu-img create -q -f qcow2 -b disk -F qcow2 qcow2-user
    qemu-img convert -O raw raw-user raw-user.raw
    cp qcow2-user kept
    run -1 blkimg mirror -f raw --pivot=raw-user --pivot=qcow2-user disk copy2
    assert_output --partial 'qcow2-user'
    cmp qcow2-user kept
    assert_file_not_exist copy2
    blkimg mirror -f raw --pivot=raw-user disk copy2
    shows raw-user raw-user.raw
    backing_is copy2 raw raw-user
}

@test "two overlays move" {
    local mode name
    make_chain
    for mode in full top; do
        make_chain
        run -0 --separate-stderr blkimg mirror --mode=$mode --pivot=one --pivot=two --witness=w mid new
        [[ -z $output && -z $stderr ]]
        unchanged base mid
        for name in one two; do
            backing_is new qcow2 $name
            qemu-img check -q $name
            shows $name $name.raw
        done
        [[ $(wc -l <w) == 2 ]]
    done
    # The copy alone is enough.
    rm mid
    shows one one.raw
}

@test "what one overlay lacks stops all, before anything is copied" {
    local case
    make_chain
    qemu-img create -q -f qcow2 -b base -F qcow2 other
    for case in '--pivot=other' '--pivot=base' '--pivot=mid' '--pivot=one' '--pivot=missing' '--pivot=mid.raw' \
        '--guest-io=g --pivot=two' '--mode=half' '-m 0' '-m 17' '-U --pivot=two' '--pivot=two --witness=one'; do
        # shellcheck disable=SC2086 # a list
        run -1 --separate-stderr blkimg mirror --pivot=one $case mid new
        # shellcheck disable=SC2154 # run sets it
        [[ -n $stderr ]] || fail "$case"
        unchanged base mid one two
        assert_file_not_exist new
    done
    run -1 blkimg mirror --pivot=one mid one
    run -1 blkimg mirror mid mid
    run -1 blkimg mirror mid base
    run -1 blkimg mirror mid
    run -1 blkimg mirror --witness=w mid new
    run -1 blkimg mirror -c --guest-io=/dev/null mid new
    run -1 blkimg mirror --guest-io=missing mid new
    assert_file_not_exist new
    unchanged base mid one two

    hold_writable two
    run -1 blkimg mirror --pivot=one --pivot=two --witness=w mid new
    assert_output --partial "two"
    release
    unchanged base mid one two
    assert_file_not_exist new
    assert_file_not_exist w
}

@test "source and overlays are locked until the end" {
    need_unsanitized
    make_chain
    qemu-io -c 'write -P 3 0 4M' mid >/dev/null
    spawn "$BLKIMG" mirror -r 2M --pivot=one mid new
    wait_for 10 is_held one "$writer"
    run ! qemu-io -c 'write 0 512' mid
    run ! qemu-io -c 'write 0 512' base
    finish
    # shellcheck disable=SC2154 # finish sets it
    [[ $status == 0 ]]
    backing_is new qcow2 one
}

@test "a copy that is not true" {
    make_chain
    # Writes that get lost on their way to the target: null-co keeps nothing, so the proof fails.
    printf '[inject-error]\niotype = "read"\nnth = "3"\n' >rules
    run -1 blkimg mirror --pivot=one "blkdebug:rules:mid" new
    unchanged base mid one two
    # Changed behind the locks' back, between copy and proof or within them.
    qemu-img create -q -f raw disk 64M
    qemu-io -f raw -c 'write -P 1 0 64M' disk >/dev/null
    qemu-img create -q -f qcow2 -b disk -F raw user
    cp user kept
    spawn "$BLKIMG" mirror -r 40M --pivot=user --witness=w disk new
    sleep 0.8
    printf x | dd of=disk bs=1 seek=100 conv=notrunc status=none
    finish
    [[ $status == 1 && $output == *'they differ'* ]]
    cmp user kept
    assert_file_not_exist w
}

@test "a signal leaves everything on the source" {
    local signal
    make_chain
    qemu-io -c 'write -P 3 0 4M' mid >/dev/null
    sha256sum base mid one two >sums
    for signal in INT:130 TERM:143; do
        spawn "$BLKIMG" mirror -r 1M --pivot=one --pivot=two --witness=w mid new
        sleep 0.3
        # shellcheck disable=SC2154 # spawn sets it
        kill "-${signal%:*}" "$pid"
        finish
        [[ $status == "${signal#*:}" ]]
        unchanged base mid one two
        assert_file_not_exist new w
    done
}

@test "a guest writes meanwhile" {
    local mode
    for mode in full top; do
        make_chain
        qemu-img bitmap --add mid b0
        cp mid.raw want.raw
        {
            for i in {1..40}; do
                offset=$((i * 97003 % 4100000))
                echo "write -P $i $offset 5000"
                printf '%0.s'"\\$(printf %o "$i")" {1..5000} | dd of=want.raw bs=64k oflag=seek_bytes seek=$offset conv=notrunc status=none
                ((i % 5)) || echo 'sleep 10'
            done
            echo 'write -z 1M 100k'
            dd if=/dev/zero of=want.raw bs=1k seek=1024 count=100 conv=notrunc status=none
            echo 'aio_write -P 77 3M 64k'
            head -c 64k /dev/zero | tr '\0' M | dd of=want.raw bs=64k oflag=seek_bytes seek=3M conv=notrunc status=none
        } >guest
        run --separate-stderr blkimg mirror --mode=$mode --guest-io=guest -r 8M mid new
        [[ $status == 0 && -z $stderr ]]
        shows mid want.raw
        shows new want.raw
        qemu-img check -q mid
        qemu-img check -q new
        run -0 blkimg map --bitmap b0 mid
    done
}

@test "the target is in step before the guest ends, and gets each write at once" {
    make_chain
    mkfifo guest
    spawn "$BLKIMG" mirror --guest-io=guest mid new
    exec 9>guest
    echo 'write -P 9 0 64k' >&9
    sleep 0.5
    echo 'write -P 8 64k 64k' >&9
    echo 'write -zu 128k 64k' >&9
    echo 'discard 1M 64k' >&9
    sleep 0.3
    assert_file_not_exist new
    exec 9>&-
    finish
    [[ $status == 0 ]]
    qemu-img compare -q mid new
    qemu-io -r -c 'read -P 8 64k 64k' new | grep -q 'read 65536'
}

@test "SIGINT while a guest writes: its writes stay, bitmaps too, and there is no target" {
    make_chain
    qemu-img bitmap --add mid b0
    mkfifo guest
    spawn "$BLKIMG" mirror --guest-io=guest mid new
    exec 9>guest
    echo 'write -P 9 0 64k' >&9
    wait_for 5 grep -q 'wrote 65536' spawn.out || sleep 0.5
    kill -INT "$pid"
    finish
    exec 9>&-
    [[ $status == 130 ]]
    assert_file_not_exist new
    run -0 qemu-io -r -c 'read -P 9 0 64k' mid
    refute_output --partial failed
    qemu-img check -q mid
    run -0 qemu-img map --output=json --image-opts "driver=qcow2,file.filename=mid"
    run -0 qemu-img info mid
    refute_output --partial in-use
}

@test "a target that fails does not hurt the guest" {
    local nth
    make_chain
    printf 'write -P 9 0 1M\nsleep 200\nwrite -P 8 1M 1M\n' >guest
    for nth in 4 6; do
        printf '[inject-error]\niotype = "write"\nnth = "%s"\nonce = "off"\n' $nth >rules
        run --separate-stderr blkimg mirror --guest-io=guest -O qcow2 mid "blkdebug:rules:new"
        [[ $status != 0 && -n $stderr ]]
        refute_output --partial failed
        assert_file_not_exist new
        run -0 qemu-io -r -c 'read -P 9 0 1M' -c 'read -P 8 1M 1M' mid
        refute_output --partial failed
        qemu-img check -q mid
    done
}

@test "the result" {
    make_chain
    run -0 blkimg mirror --output=json --mode=top --pivot=one mid new
    python3 -c '
import json, sys
r = json.loads(sys.argv[1])
assert (r["command"], r["filename"], r["target"], r["mode"], r["overlays"]) == ("mirror", "mid", "new", "top", 1)
assert r["complete"] is True and r["exit-status"] == 0
assert {"mid", "new", "one"} <= {s["node"] for s in r["close"]}' "$output"
    run -0 blkimg mirror -p mid new2
    [[ $output =~ ^'    (0.00/100%)'$'\r' && $output =~ '    (100.00/100%)'$'\r'$ ]]
}
