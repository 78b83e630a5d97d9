#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# What all commands share: how options are written, help, standard streams, and the status.

bats_require_minimum_version 1.5.0
load lib/common

one_line() {
    [[ $(wc -l <"$1") == 1 ]] || fail "not one line: $(<"$1")"
}

@test "options stand before, between and after operands" {
    truncate -s 1M a
    blkimg info -f raw --output=json a >out1
    blkimg info a -f raw --output json >out2
    blkimg info --output=json a -f raw >out3
    blkimg info -fraw --output=json -- a >out4
    cmp out1 out2
    cmp out1 out3
    cmp out1 out4
    same_output map --start-offset=4k a --output=json -f raw
}

@test "-- ends the options, and a file may be called like one" {
    truncate -s 1M ./-x
    run blkimg info -- -x
    assert_success
    assert_line 'image: -x'
    same_output info -f raw -- -x
}

@test "long options may be abbreviated as with getopt" {
    truncate -s 1M a
    same_output info --out=json --back a
    same_output info --image driver=raw,file.filename=a
    run -1 --separate-stderr blkimg info --o a
    assert_equal "${#stderr_lines[@]}" 1
    [[ ${stderr_lines[0]} == *"'--o'"* ]]
}

@test "letters may be joined, with a value at the end" {
    truncate -s 1M a
    same_output create -qfraw b 1M
    run -0 blkimg info -Ufraw a
    assert_line 'file format: raw'
}

@test "a value keeps a leading =, as with getopt" {
    truncate -s 1M a
    run -1 --separate-stderr blkimg info -f=raw a
    [[ ${stderr_lines[0]} == *"'=raw'"* ]]
    blkimg create -q '-f' raw =odd 1M
    [[ -e '=odd' ]]
}

@test "an unknown option is named in one line, status 1" {
    truncate -s 1M a
    local option
    for option in --bogus --bogus=1 -Z -qZ; do
        run -1 --separate-stderr blkimg create "$option" a 1M
        assert_equal "${#stderr_lines[@]}" 1
        assert_equal "$output" ''
        [[ ${stderr_lines[0]} == "blkimg: create: unknown option '"* ]] || fail "$stderr"
    done
    run -1 --separate-stderr blkimg info --backing-chain=yes a
    [[ ${stderr_lines[0]} == *"takes no value"* ]]
    run -1 --separate-stderr blkimg info a -f
    [[ ${stderr_lines[0]} == *"'-f' needs a value"* ]]
}

@test "numbers that are none are named with their option" {
    local size
    for size in -1 1.5.2G 1e3 0x 12q '' '1 ' 16E 8E 99999999999999999999; do
        run -1 --separate-stderr blkimg measure --size "$size"
        assert_equal "${#stderr_lines[@]}" 1
        [[ ${stderr_lines[0]} == "blkimg: --size: '$size' is "* ]] || fail "$stderr"
    done
    run -1 --separate-stderr blkimg info --lock-wait=soon x
    [[ ${stderr_lines[0]} == "blkimg: --lock-wait: 'soon' is not a number" ]]
}

@test "every option has a long name, and the help of a command fits a screen" {
    local command
    for command in $(blkimg help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'); do
        blkimg "$command" --help >out
        ! grep -E '^  -[A-Za-z]( |$)' out || fail "$command"
        (($(wc -l <out) <= 50)) || fail "$command: $(wc -l <out) lines"
    done
}

@test "an unknown command: the nearest name is suggested" {
    run -1 --separate-stderr blkimg crate x
    assert_equal "$stderr" "blkimg: Command not found: crate (did you mean 'create'?)"
    run -1 --separate-stderr blkimg ifno x
    [[ $stderr == *"did you mean 'info'?)" ]]
    run -1 --separate-stderr blkimg frobnicate x
    [[ $stderr != *"did you mean"* ]]
    run -1 --separate-stderr blkimg
    assert_equal "${#stderr_lines[@]}" 1
}

@test "help, of the program and of each command" {
    blkimg help >all
    blkimg --help | cmp - all
    blkimg -h | cmp - all
    # What callers look for in it.
    local name summary
    while read -r name summary; do
        blkimg "$name" --help >"help.$name"
        blkimg help "$name" | cmp - "help.$name"
        head -n 1 "help.$name" | grep -q "^usage: blkimg $name "
        [[ -n $summary ]]
    done < <(sed -n '/^Commands:/,/^$/{/^  /p}' all)
    assert_file_exists help.info
    grep -Eq '^  resize .*filename' all
    grep -Eq '^Supported formats:.* raw( |$)' all
    if grep -q '^  convert ' all; then
        grep -qe --target-is-zero all
    fi
    if grep -q '^  bitmap ' all; then
        grep -Pq '^\s+bitmap (.+) filename bitmap' all
    fi
}

@test "the version names the libraries built in" {
    run -0 blkimg --version
    assert_line --index 0 --regexp '^blkimg version [0-9.]+$'
    assert_line --index 1 --regexp 'jansson.*zlib'
    blkimg -V >v
    blkimg --version | cmp - v
}

@test "output that cannot be written is a failure" {
    [[ -c /dev/full ]] || skip "no /dev/full"
    truncate -s 1M a
    local args
    for args in "info a" "map a" "measure a" "info --output=json a" "create b 1M" "resize -f raw a 2M" \
        --help --version "info --help"; do
        local status=0
        # shellcheck disable=SC2086 # a list
        blkimg $args >/dev/full 2>err || status=$?
        assert_equal "$status" 1
        one_line err
        grep -q 'standard output: No space left' err
    done
}

@test "descriptors that are closed at start are not mistaken for an image" {
    qemu-img create -q -f raw a 1M
    fill a 0 1M
    cp a copy
    local status=0
    (blkimg info nosuch; exit $?) 0<&- 1>&- 2>&- || status=$?
    assert_equal "$status" 1
    (blkimg resize -q -f raw a 2M) 0<&- 1>&- 2>&-
    truncate -s 2M copy
    cmp a copy
    (blkimg create -q -f raw b 1M) 0<&- 1>&- 2>&-
    [[ $(stat -c %s b) == 1048576 ]]
}

@test "success prints nothing on stderr" {
    {
        blkimg create a 1M
        blkimg resize a 2M
        blkimg info a
        blkimg map a
        blkimg measure a
    } 2>err
    assert_file_empty err
}

@test "--object: a secret is accepted, anything else is refused" {
    truncate -s 1M a
    same_output info --object secret,id=s,data=x a
    run -1 --separate-stderr blkimg info --object bogus,id=s a
    [[ $stderr == *bogus* ]]
}

@test "a line stays one line whatever a name holds" {
    local name=$'no\nsuch\e[31m'
    run -1 --separate-stderr blkimg info "$name"
    assert_equal "${#stderr_lines[@]}" 1
    [[ $stderr == *'no\nsuch\x1b[31m'* ]]
}
