#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# No command executes many more instructions than it did: counted by callgrind, so that the load of the machine does
# not matter. tests/instructions.tsv says how to record new counts.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need_unsanitized "instructions cannot be compared"
    need valgrind python3 strip
}

# instructions ARG...: status 77 is that nothing is recorded for this compiler, its flags and libraries.
instructions() {
    run python3 "$SRCDIR/tests/tools/instructions.py" --blkimg "$BLKIMG" "$@" "$BUILDDIR"
    # shellcheck disable=SC2154 # run sets it
    ((status != 77)) || skip "$output"
}

@test "no command executes over 5 % more instructions than recorded" {
    instructions --check
    assert_success
    assert_equal "${#lines[@]}" 6
}

@test "a command that needs twice as many as recorded is found" {
    awk -F '\t' -v OFS='\t' 'NF == 3 { $3 = int($3 / 2) } { print }' "$SRCDIR/tests/instructions.tsv" >half
    instructions --check --record half --only info
    assert_failure 1
    assert_output --regexp '^info: [0-9]+ instructions, [0-9]+ recorded, .*: too many$'
    instructions --renew --record half --only info
    assert_success
    instructions --check --record half --only info
    assert_success
}

@test "a build without recorded counts is told so" {
    grep '^#' "$SRCDIR/tests/instructions.tsv" >none
    run -77 python3 "$SRCDIR/tests/tools/instructions.py" --blkimg "$BLKIMG" --check --record none "$BUILDDIR"
    assert_output --partial 'no counts are recorded for '
}
