#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# blkimg bitmap: actions, all or nothing, the list; map --bitmap; what is refused. tests/bitmap-peer.bats
# compares contents with QEMU.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img jq
    qemu-img create -q -f qcow2 a 10M
}

flags() { # IMAGE BITMAP
    qemu-img info --output=json "$1" |
        jq -c --arg b "$2" '."format-specific".data.bitmaps[] | select(.name == $b) | .flags'
}

dirty_bytes() { # IMAGE BITMAP
    blkimg bitmap --list --output=json "$1" | jq --arg b "$2" '.[] | select(.name == $b) | ."dirty-bytes"'
}

names() {
    blkimg bitmap --list --output=json "$1" | jq -r '.[].name' | paste -sd' '
}

# refused WORDS ARG...: status 1, one line with these words, and the image as it was.
refused() {
    local words=$1 before
    shift
    before=$(sha256sum <a)
    run -1 --separate-stderr blkimg bitmap "$@"
    [[ ${#stderr_lines[@]} == 1 && $stderr == *"$words"* && -z $output ]] ||
        fail "blkimg bitmap $*: $stderr"
    assert_equal "$(sha256sum <a)" "$before"
}

@test "every action, alone" {
    run -0 --separate-stderr blkimg bitmap --add a b0
    [[ -z $output && -z $stderr ]]
    assert_equal "$(flags a b0)" '["auto"]'
    blkimg bitmap --disable a b0
    assert_equal "$(flags a b0)" '[]'
    blkimg io -c 'write 0 64k' a >out
    assert_equal "$(dirty_bytes a b0)" 0
    blkimg bitmap --enable a b0
    assert_equal "$(flags a b0)" '["auto"]'
    blkimg io -c 'write 0 100k' a >out
    assert_equal "$(dirty_bytes a b0)" 131072
    blkimg bitmap --add -g 4k a b1
    blkimg bitmap --merge b0 a b1
    assert_equal "$(dirty_bytes a b1)" 131072
    blkimg bitmap --clear a b0
    assert_equal "$(dirty_bytes a b0)" 0
    assert_equal "$(dirty_bytes a b1)" 131072
    blkimg bitmap --remove a b0
    assert_equal "$(names a)" b1
    qemu-img check -q a
    blkimg bitmap --remove a b1
    assert_equal "$(names a)" ""
    qemu-img check -q a
    diff <(qemu-img info --output=json a) <(blkimg info --output=json a)
}

@test "several actions in one call, in their order, as qemu-img does" {
    cp a peer
    blkimg bitmap --add a src
    blkimg io -c 'write 1M 1M' a >out
    cp a peer
    local tool
    for tool in qemu-img "$BLKIMG"; do
        "$tool" bitmap --add --merge src --disable -g 1M peer b
        assert_equal "$(flags peer b)" '[]'
        assert_equal "$(dirty_bytes peer b)" 1048576
        "$tool" bitmap --clear --enable peer b
        assert_equal "$(flags peer b)" '["auto"]'
        assert_equal "$(dirty_bytes peer b)" 0
        "$tool" bitmap --remove peer b
    done
    blkimg bitmap --remove --add -g 512 a src
    assert_equal "$(blkimg bitmap --list --output=json a | jq -cS .)" \
        '[{"dirty-bytes":0,"flags":["auto"],"granularity":512,"name":"src"}]'
    qemu-img check -q a
}

@test "all or nothing" {
    blkimg bitmap --add a b0
    blkimg io -c 'write 0 64k' a >out
    refused "not found" --clear --disable --merge missing a b0
    refused "already" --clear --add a b0
    refused "not found" --remove --clear a b0
    assert_equal "$(dirty_bytes a b0)" 65536
}

@test "--merge from another image" {
    blkimg bitmap --add -g 1M a into
    qemu-img create -q -f qcow2 src 10M
    blkimg bitmap --add -g 512 src from
    blkimg io -c 'write 1 1' -c 'write 5M 3M' src >out
    local before
    before=$(sha256sum <src)
    blkimg bitmap --merge from -b src -F qcow2 a into
    assert_equal "$(dirty_bytes a into)" $((4 * 1048576))
    assert_equal "$(sha256sum <src)" "$before"
    # The other way round is finer than what was written, not wrong.
    blkimg bitmap --clear src from
    blkimg bitmap --merge into -b a src from
    diff <(blkimg map --bitmap from src) <(blkimg map --bitmap into a)
    qemu-img create -q -f qcow2 longer 11M
    blkimg bitmap --add longer b
    refused "differ in size" --merge b -b longer a into
    run -1 qemu-img bitmap --merge b -b longer -F qcow2 a into
    truncate -s 10M raw
    refused "not found" --merge b -b raw -F raw a into
    refused "No such file" --merge b -b missing a into
}

@test "what is refused" {
    blkimg bitmap --add a b0
    refused "already" --add a b0
    refused "power of two" --add -g 3000 a b1
    refused "granularity" --add -g 256 a b1
    refused "granularity" --add -g 4G a b1
    refused "not found" --remove a b1
    refused "not found" --clear a b1
    refused "not found" --enable a b1
    refused "not found" --merge b1 a b0
    refused "at least one" a b0
    refused "expects" --add a
    refused "expects" --add a b c
    refused "-g needs" --clear -g 64k a b0
    refused "-b needs" --add -b a a b1
    refused "-F needs" --merge b0 -F qcow2 a b0
    refused "--list" --list --add a b0
    refused "--list" --list a b0
    refused "name" --add a ""
    refused "No such file" --add missing b0
    truncate -s 1M raw
    run -1 --separate-stderr blkimg bitmap --add -f raw raw b0
    [[ $stderr == *"no bitmaps"* ]]
    qemu-img create -q -f qcow2 -o compat=0.10 old 1M
    run -1 --separate-stderr blkimg bitmap --add old b0
    [[ $stderr == *"version 2"* ]]
    qemu-img create -q -f qcow2 -o cluster_size=2M huge 100T
    run -1 --separate-stderr blkimg bitmap --add -g 512 huge b0
    [[ $stderr == *"too fine"* ]]
}

@test "--list for people and for programs" {
    run -0 --separate-stderr blkimg bitmap --list a
    [[ -z $output && -z $stderr ]]
    assert_equal "$(blkimg bitmap --list --output=json a)" "[
]"
    blkimg bitmap --add a b0
    blkimg bitmap --add --disable -g 512 a 'b 1'
    blkimg io -c 'write 10485000 1' a >out
    run -0 blkimg bitmap --list a
    assert_output "b0: granularity 64 KiB, enabled, 65536 bytes dirty
b 1: granularity 512 B, disabled, 0 bytes dirty"
    qemu-img create -q -f qcow2 odd $((10485760 + 512))
    blkimg bitmap --add -g 1M odd b
    blkimg io -c 'write 10M 1' odd >out
    assert_equal "$(dirty_bytes odd b)" 512
    # An image that is only read may be listed, and its bitmaps are left alone.
    chmod 444 a
    blkimg bitmap --list a >out
    blkimg bitmap --list -U a >out
}

@test "map --bitmap" {
    blkimg bitmap --add -g 512 a b0
    blkimg io -c 'write 512 1' -c 'write 1M 64k' a >out
    run -0 blkimg map --bitmap b0 a
    assert_output "Offset          Length
0x200           0x200
0x100000        0x10000"
    assert_equal "$(blkimg map --bitmap=b0 --output=json a | jq -c .)" \
        '[{"start":512,"length":512,"dirty":true},{"start":1048576,"length":65536,"dirty":true}]'
    assert_equal "$(blkimg map --bitmap b0 --output=json -s 1000 -l 1047600 a | jq -c .)" \
        '[{"start":1000,"length":24,"dirty":true},{"start":1048576,"length":24,"dirty":true}]'
    blkimg bitmap --clear a b0
    assert_equal "$(blkimg map --bitmap b0 --output=json a)" "[]"
    run -1 --separate-stderr blkimg map --bitmap nope a
    [[ $stderr == *"'nope'"* ]]
}

@test "default granularities" {
    local size
    for size in 512 4k 64k 2M; do
        rm -f a
        qemu-img create -q -f qcow2 -o cluster_size=$size a 10M
        blkimg bitmap --add a ours
        qemu-img bitmap --add a theirs
        assert_equal "$(blkimg bitmap --list --output=json a | jq '.[0].granularity == .[1].granularity')" true
    done
}

@test "a run that tracks nothing leaves bitmaps alone, however it ends" {
    blkimg bitmap --add a b0
    blkimg io -c 'write 0 64k' a >out
    local before
    before=$(sha256sum <a)
    blkimg io -c 'read 0 1M' a >out
    blkimg close-check -q a
    blkimg io -c 'read 0 1' -c 'reopen -r' -c 'reopen -w' a >out
    mkfifo commands
    "$BLKIMG" io a <commands >replies 2>&1 3>&- &
    exec 7>commands
    echo 'read 0 1' >&7
    wait_for 10 grep -q 'read 1/1' replies
    kill -KILL $!
    exec 7>&-
    wait $! || true
    assert_equal "$(sha256sum <a)" "$before"
}

@test "close-check reports each bitmap" {
    blkimg bitmap --add a b0
    blkimg bitmap --add a b1
    run -0 blkimg close-check a
    assert_line "a (qcow2): store b0: ok"
    assert_line "a (qcow2): store b1: ok"
    assert_equal "$(blkimg close-check --output=json a |
        jq -c '[.close[] | select(.detail) | [.detail, .outcome]]')" '[["b0","ok"],["b1","ok"]]'
}

@test "a resize takes bitmaps along; granularity too fine for the new size is refused first" {
    blkimg bitmap --add -g 512 a fine
    blkimg bitmap --add --disable a off
    blkimg io -c 'write 9M 1M' a >out
    blkimg resize -q a 20M
    # What was added counts as changed: it may lie where an older backup has data.
    assert_equal "$(dirty_bytes a fine)" $((11 * 1048576))
    blkimg resize -q --shrink a 9728k
    assert_equal "$(dirty_bytes a fine)" 524288
    assert_equal "$(flags a off)" '[]'
    qemu-img check -q a
    local before
    before=$(sha256sum <a)
    run -1 --separate-stderr blkimg resize a 100T
    [[ $stderr == *"'fine'"* ]]
    assert_equal "$(dirty_bytes a fine)" 524288
    assert_equal "$(sha256sum <a)" "$before"
}

@test "applying a snapshot marks what changed in enabled bitmaps" {
    blkimg io -c 'write -P 1 0 1M' -c 'write -P 2 5M 64k' a >out
    blkimg snapshot -c s a
    blkimg bitmap --add a b0
    blkimg bitmap --add --disable a off
    blkimg snapshot -a s a
    assert_equal "$(dirty_bytes a b0)" 0
    blkimg io -c 'write -P 3 2M 64k' -c 'write -z 64k 64k' -c 'discard 5M 64k' a >out
    blkimg bitmap --clear a b0
    blkimg snapshot -a s a
    assert_equal "$(blkimg map --bitmap b0 --output=json a | jq -c '[.[] | [.start, .length]]')" \
        '[[65536,65536],[2097152,65536],[5242880,65536]]'
    assert_equal "$(dirty_bytes a off)" 0
    qemu-img check -q a
    # To another size.
    blkimg resize -q a 12M
    blkimg bitmap --clear a b0
    blkimg snapshot -a s a
    blkimg resize -q a 12M
    blkimg snapshot -c larger a
    blkimg snapshot -a s a
    blkimg bitmap --clear a b0
    blkimg snapshot -a larger a
    assert_equal "$(dirty_bytes a b0)" $((2 * 1048576))
    qemu-img check -q a
}

@test "threads that write at once are all recorded" {
    blkimg bitmap --add -g 512 a b0
    local -a commands=()
    local i
    for ((i = 0; i < 400; i++)); do
        commands+=(-c "aio_write $((i * 20480 + 1)) 600")
    done
    blkimg io "${commands[@]}" -c aio_flush a >out
    assert_equal "$(blkimg map --bitmap b0 --output=json a | jq length)" 400
    assert_equal "$(dirty_bytes a b0)" $((400 * 1024))
}
