#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Chains of images under commit, rebase, mirror with pivot, snapshot and resize in random order: the guest's view is that
# of a plain raw file, by both programs.
#
# CHAINS=300 tries all (give it time: TEST_TIMEOUT); CHAINS_SEED=N others.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    memory=/dev/shm
    [[ -w $memory ]] || memory=$T
    memory=$(mktemp -d "$memory/blkimg-chains.XXXXXX")
}

teardown() {
    common_teardown
    rm -rf "$memory"
}

@test "random surgery on random chains" {
    need qemu-img
    run env TMPDIR="$memory" python3 "$SRCDIR/tests/tools/chainrandom.py" --chains "${CHAINS:-20}" \
        --seed "${CHAINS_SEED:-1}" "$BLKIMG"
    assert_success
    echo "# $output" >&3
}
