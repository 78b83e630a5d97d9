# SPDX-License-Identifier: MIT
# System calls of all commands fail, those that only look at a file included: opening, reading
# (with an error, too little, nothing in the middle of a file), seeking, closing. Nothing ends with
# status 0 and another result than without the fault, nothing by a signal, nothing without a word.
# tests/tools/faulttable.py has the commands; this takes a random part of their faults.

load lib/common

@test "a random part of all faults: no lie, no signal" {
    need python3 qemu-img
    need_unsanitized "too slow"
    local memory=$T seed=${SEED:-$RANDOM}
    [[ ! -w /dev/shm ]] || memory=/dev/shm
    run env TMPDIR="$memory" python3 "$SRCDIR/tests/tools/faulttable.py" --seed "$seed" \
        --count "${FAULT_TABLE:-120}" --jobs 2 "$BLKIMG"
    echo "# seed $seed: ${lines[-1]-}" >&3
    assert_success
}

@test "a mirror whose source cannot be closed says what it leaves" {
    need python3 qemu-img
    need_unsanitized "too slow"
    run python3 "$SRCDIR/tests/tools/faulttable.py" --workdir "$T" --only '^mirror' --kinds close-read --jobs 2 "$BLKIMG"
    assert_success
    assert_output --regexp '^fault table: [1-9]'
}
