#!/usr/bin/env bats
# qcow2 images written here are read by QEMU and the other way round: random sequences of requests
# over all kinds of images (see tests/tools/qcow2random.py). SEED=... repeats a run.

bats_require_minimum_version 1.5.0
load lib/common

# sequences COUNT NAME: runs that many; the seed is printed whatever happens.
sequences() {
    need qemu-img qemu-io python3
    local seed=${SEED:-$RANDOM$RANDOM}
    echo "# $1 sequences, seed $seed.$2" >&3
    "$SRCDIR/tests/tools/qcow2random.py" --sequences "$1" --seed "$seed.$2" "$BLKIMG"
}

@test "random sequences 1" { sequences 50 1; }
@test "random sequences 2" { sequences 50 2; }
@test "random sequences 3" { sequences 50 3; }
@test "random sequences 4" { sequences 50 4; }
