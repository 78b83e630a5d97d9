#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "map --output=picture" and "info --graph".

bats_require_minimum_version 1.5.0
load lib/common
load lib/locks

chain() {
    qemu-img create -q -f qcow2 base 1M
    qemu-io -c 'write -P 1 0 256k' -c 'write -z 512k 128k' base >/dev/null
    qemu-img create -q -f qcow2 -b base -F qcow2 top
    qemu-img bitmap --add -g 64k top bits
    qemu-io -c 'write -P 2 128k 64k' top >/dev/null
}

# The rows of blocks, without what stands before them.
rows() {
    sed -n 's/^0x[0-9a-f]* *//p; s/^0  *//p' <<<"$output"
}

@test "a picture of data, zeroes and nothing in a chain" {
    chain
    # 16 blocks in a row of 64 KiB each.
    COLUMNS=32 LINES=8 run -0 blkimg map --output=picture top
    [[ $(rows) == '11#1....--......' ]] || fail "$output"
    assert_line 'top: 1 MiB, 64 KiB a block: data 256 KiB, zeroes 128 KiB, nothing 640 KiB'
    refute_output --partial '^'
    refute_output --partial $'\033'
}

@test "what is dirty" {
    chain
    COLUMNS=32 LINES=8 run -0 blkimg map --output=picture --bitmap=bits top
    [[ $(rows) == '11#1....--......' ]]
    assert_line '                  ^'
    run -1 blkimg map --output=picture --bitmap=none top
}

@test "it fits the terminal, whatever the size" {
    local size
    truncate -s 3T huge
    for size in '40 12' '80 24' '132 50'; do
        # shellcheck disable=SC2086 # two words
        set -- $size
        COLUMNS=$1 LINES=$2 run -0 blkimg map -f raw --output=picture huge
        ((${#lines[@]} < $2))
        [[ -z $(rows | awk -v most=$(($1 - 16)) 'length > most') ]]
    done
    truncate -s 0 empty
    run -0 blkimg map -f raw --output=picture empty
    [[ -z $(rows) ]]
}

@test "a part" {
    chain
    COLUMNS=32 LINES=8 run -0 blkimg map --output=picture --start-offset=128k --max-length=128k top
    [[ $(rows) == '########11111111' ]]
}

@test "a little data in a large image is seen" {
    truncate -s 1T large
    fill large 0x8000000000 4096 1
    COLUMNS=80 LINES=24 run -0 blkimg map -f raw --output=picture large
    [[ $(rows | tr -cd '#') == '#' ]]
}

@test "colours only on a terminal" {
    need_terminal
    chain
    TERM=xterm script -qec "'$BLKIMG' map --output=picture top" /dev/null >seen </dev/null
    grep -q $'\033\[32m#' seen
    NO_COLOR=1 TERM=xterm script -qec "'$BLKIMG' map --output=picture top" /dev/null >seen </dev/null
    ! grep -q $'\033' seen
}

@test "the graph as text" {
    chain
    run -0 blkimg info --graph=text -f qcow2 top
    assert_output "top
|   qcow2, 1 MiB, writable
|   bitmap bits: 64 KiB, enabled
|-- file: top
|       file, $(blkimg info --graph=text top | sed -n 's/.* file, \([^,]*\), writable.*/\1/p'), writable, not in use
\`-- backing: base
    |   qcow2, 1 MiB, read-only
    \`-- file: base
            file, $(blkimg info --graph=text top | sed -n 's/.* file, \([^,]*\), read-only.*/\1/p'), read-only, not in use"
    run -0 blkimg info --graph=text top
    assert_line --partial 'qcow2 (guessed)'
}

@test "an image in use is shown, and by whom" {
    chain
    hold_writable top
    run -0 blkimg info --graph=text top
    assert_line --partial 'writable, in use by a writer'
    assert_line --partial 'read-only, in use by a reader'
    release
}

@test "the graph for Graphviz" {
    chain
    mv top 'to"p\'
    run -0 blkimg info --graph=dot 'to"p\'
    [[ ${lines[0]} == 'digraph blkimg {' && ${lines[-1]} == '}' ]]
    assert_line '    n0 -> n2 [label="backing"];'
    assert_output --partial 'label="to\"p\\\nqcow2'
    if command -v dot >/dev/null; then
        dot -Tsvg <<<"$output" >/dev/null
    fi
}

@test "what is no form, and what excludes it" {
    chain
    run -1 blkimg info --graph=png top
    assert_output --partial "'png'"
    run -1 blkimg info --graph=text --output=json top
    run -1 blkimg info --graph=text --backing-chain top
    run -1 blkimg map --output=xml top
    assert_output --partial "'xml'"
}
