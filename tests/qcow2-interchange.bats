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

@test "random sequences, first part" { sequences 70 1; }
@test "random sequences, second part" { sequences 70 2; }
@test "random sequences, third part" { sequences 70 3; }
