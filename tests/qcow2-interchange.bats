#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
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

@test "a backing name of json: with strings in single quotes" {
    need qemu-img
    truncate -s 1M base.raw
    printf hello | dd of=base.raw conv=notrunc status=none
    local name="json:{'driver':'raw','file':{'driver':'file','filename':'base.raw'}}"
    qemu-img create -q -f qcow2 -b "$name" -F raw top.q
    blkimg convert -O raw top.q out.raw
    cmp base.raw out.raw
    blkimg info --output=json top.q >info
    [[ $(jq -r '."backing-filename"' info) == "$name" ]]
    # Trailing commas are refused, as QEMU refuses them.
    refute blkimg info "json:{'driver':'raw','file.filename':'base.raw',}"
    refute qemu-img info "json:{'driver':'raw','file.filename':'base.raw',}"
}
