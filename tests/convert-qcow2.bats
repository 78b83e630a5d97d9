#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg convert" from, to and over qcow2 images: what qemu-img makes of the same.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need_format qcow2
    mkdir given
    truncate -s 8M given/a
    fill given/a 0 70000 0x21
    fill given/a 1000000 300000 0x22
    fill given/a 2000000 500000 0
    fill given/a 5242880 1048576 0x23
    fill given/a 8388096 512 0x24
}

# Both programs convert with these arguments: same status; the targets t.* have the same content and
# header, and qemu-img check finds nothing, leaks included.
same_convert() {
    local peer_status=0 mine_status=0 file name
    rm -rf peer mine
    cp -a given peer
    cp -a given mine
    (cd peer && qemu-img convert "$@") >peer.out 2>peer.err || peer_status=$?
    (cd mine && blkimg convert "$@") >mine.out 2>mine.err || mine_status=$?
    ((peer_status == mine_status)) || fail "convert $*: $peer_status, $mine_status: $(<mine.err)"
    if ((mine_status)); then
        [[ -s mine.err ]] || fail "convert $*: nothing said"
        assert_equal "$(ls mine)" "$(ls given)"
        return
    fi
    assert_file_empty mine.err
    for file in peer/t.*; do
        name=${file#*/}
        qemu-img compare "$file" "mine/$name" || fail "convert $*"
        cmp <(describe "$file") <(describe "mine/$name") || fail "convert $*"
        [[ $name != *.qcow2 ]] || qemu-img check "mine/$name" || fail "convert $*"
    done
}

describe() {
    qemu-img info "$1" | grep -v -e '^image:' -e '^disk size' -e '^backing file.*actual path'
}

# The ranges that the top layer of an image has, at cluster granularity: what the file system does
# with zeroes within a cluster's data is left out.
own_ranges() {
    qemu-img map --output=json "$1" |
        sed -n 's/.*"start": \([0-9]*\), "length": \([0-9]*\), "depth": 0, "present": true.*"data": \([a-z]*\).*/\1 \2 \3/p' |
        awk '$1 == end && $3 == data { end += $2; next }
            { if (NR > 1) print start, end, data; start = $1; end = $1 + $2; data = $3 }
            END { print start, end, data }'
}

@test "raw to qcow2" {
    same_convert -O qcow2 a t.qcow2
    same_convert -f raw -O qcow2 -t none -T none a t.qcow2
    same_convert -O qcow2 -S 0 a t.qcow2
    same_convert -O qcow2 -S 64k -m 16 -W a t.qcow2
    same_convert -O qcow2 -C a t.qcow2
    same_convert -O qcow2 -o compat=0.10 a t.qcow2
    same_convert -O qcow2 -o cluster_size=512 a t.qcow2
    same_convert -O qcow2 -o cluster_size=2M,lazy_refcounts=on a t.qcow2
    same_convert -O qcow2 -o cluster_size=4k -o refcount_bits=1 a t.qcow2
    same_convert -O qcow2 -o preallocation=metadata a t.qcow2
    same_convert -O qcow2 -o preallocation=falloc a t.qcow2
    same_convert -O qcow2 -o preallocation=full a t.qcow2
    same_convert -O qcow2 -o extended_l2=on a t.qcow2
}

@test "qcow2 to raw and to qcow2" {
    qemu-img convert -O qcow2 given/a given/q
    qemu-img convert -c -O qcow2 given/a given/c
    same_convert -O raw q t.raw
    same_convert q t.raw
    same_convert -O qcow2 q t.qcow2
    same_convert -O raw c t.raw
    same_convert -O qcow2 c t.qcow2
    same_convert -O raw -C q t.raw
    same_convert -O raw -S 0 c t.raw
}

@test "compressed" {
    same_convert -c -O qcow2 a t.qcow2
    same_convert -c -W -m 8 -O qcow2 a t.qcow2
    same_convert -c -S 0 -O qcow2 a t.qcow2
    same_convert -c -O qcow2 -o cluster_size=4k a t.qcow2
    same_convert -c -O qcow2 -o compression_type=zstd a t.qcow2
    same_convert -c -O qcow2 -o preallocation=metadata a t.qcow2
    qemu-img create -q -f qcow2 given/t.there 8M
    same_convert -c -n -O qcow2 a t.there
}

@test "the same input gives the same file, unless -W is given" {
    cd given
    fill a 0 8388608 0x51
    local i mode
    for mode in "" -c "-m 16"; do
        for i in 1 2 3; do
            # shellcheck disable=SC2086 # options or none
            blkimg convert $mode -O qcow2 a "t$i"
        done
        cmp t1 t2
        cmp t1 t3
    done
    blkimg convert -W -O qcow2 a t1
    qemu-img compare a t1
}

# A disk of many short runs, some with zeroes inside clusters.
make_ragged() {
    python3 - "$1" <<'END'
import random, sys
random.seed(7)
with open(sys.argv[1], "wb") as file:
    file.truncate(24 << 20)
    for _ in range(300):
        file.seek(random.randrange(0, (24 << 20) - 200000) // 512 * 512)
        file.write(bytes([random.randrange(1, 256)]) * random.choice((512, 4096, 70000, 150000)))
END
}

@test "the layout does not depend on how many threads there are" {
    make_ragged r
    local options
    # With small clusters the refcount table grows and moves meanwhile.
    for options in "-o cluster_size=512" "-o cluster_size=4k" "-o cluster_size=64k" \
        "-o cluster_size=16k,extended_l2=on" "-c -o cluster_size=4k" "-c -o cluster_size=64k"; do
        # shellcheck disable=SC2086 # a list
        blkimg convert -m 1 -f raw -O qcow2 $options r one
        for _ in 1 2 3; do
            # shellcheck disable=SC2086
            blkimg convert -m 16 -f raw -O qcow2 $options r many
            cmp one many || fail "$options"
        done
        run -0 qemu-img check one
        run -0 qemu-img compare -f raw -F qcow2 r one
    done
}

# pieces IMAGE: a digest of each compressed piece, as far as whole sectors of it go, by its place.
pieces() {
    python3 - "$1" <<'END'
import hashlib, struct, sys
data = open(sys.argv[1], "rb").read()
bits, = struct.unpack_from(">I", data, 20)
l1_entries, l1 = struct.unpack_from(">IQ", data, 36)
for i in range(l1_entries):
    l2 = struct.unpack_from(">Q", data, l1 + 8 * i)[0] & 0x00fffffffffffe00
    for k in range((1 << bits) // 8 if l2 else 0):
        entry, = struct.unpack_from(">Q", data, l2 + 8 * k)
        if entry >> 62 & 1:
            shift = 62 - (bits - 8)
            at = entry & ((1 << shift) - 1)
            length = (((entry >> shift) & ((1 << (bits - 8)) - 1)) + 1) * 512 - at % 512
            print(i, k, hashlib.sha256(data[at:at + length - 511]).hexdigest())
END
}

@test "with -c compressed clusters of the same kind are passed on as they are" {
    make_ragged r
    local type
    for type in zlib zstd; do
        # Another program's pieces, so that a new compression would show.
        qemu-img convert -c -f raw -O qcow2 -o compression_type=$type r from
        qemu-io -c "write -P 9 1M 64k" from >/dev/null
        blkimg convert -c -f qcow2 -O qcow2 -o compression_type=$type from to
        run -0 qemu-img check to
        run -0 qemu-img compare from to
        # Each line of the one is in the other; what was data is compressed now.
        assert_equal "$(comm -23 <(pieces from | cut -d' ' -f 1-2 | sort) <(pieces to | cut -d' ' -f 1-2 | sort))" ""
        blkimg convert -c -f qcow2 -O qcow2 -o compression_type=$type to again
        cmp to again
    done
    # Through a chain, and into another kind.
    blkimg create -q -f qcow2 -b to -F qcow2 -o compression_type=zstd top
    blkimg io -c "write -q -P 77 3M 128k" top
    blkimg convert -c -f qcow2 -O qcow2 -o compression_type=zstd top flat
    run -0 qemu-img compare top flat
    blkimg convert -c -f qcow2 -O qcow2 -o compression_type=zlib top flat
    run -0 qemu-img compare top flat
    blkimg convert -c -f qcow2 -O qcow2 -o compression_type=zstd,cluster_size=16k top flat
    run -0 qemu-img compare top flat
}

@test "a damaged compressed cluster is not passed on" {
    make_ragged r
    local type
    for type in zlib zstd; do
        blkimg convert -c -f raw -O qcow2 -o compression_type=$type r from
        python3 - from <<'END'
import struct, sys
with open(sys.argv[1], "r+b") as file:
    data = file.read()
    l1, = struct.unpack_from(">Q", data, 40)
    l2 = struct.unpack_from(">Q", data, l1)[0] & 0x00fffffffffffe00
    entries = [struct.unpack_from(">Q", data, l2 + 8 * i)[0] for i in range(300)]
    piece = [entry for entry in entries if entry >> 62 & 1][40]
    file.seek(piece & ((1 << 54) - 1))
    file.write(b"\xff" * 16)
END
        run -1 blkimg convert -c -f qcow2 -O qcow2 -o compression_type=$type from to
        assert_output --partial "damaged"
        assert_not_exists to
    done
}

@test "compressed: inputs that meet within a cluster" {
    truncate -s 1000 given/b
    fill given/b 0 1000 0x31
    truncate -s 100000 given/c
    fill given/c 50000 50000 0x32
    same_convert -c -O qcow2 b c t.qcow2
    same_convert -c -O qcow2 b b b t.qcow2
    same_convert -c -O qcow2 a b c a b t.qcow2
    same_convert -c -O qcow2 c a t.qcow2
    same_convert -c -S 0 -O qcow2 c a b t.qcow2
    same_convert -O qcow2 b c a t.qcow2
}

@test "-B: only what the top layer has" {
    qemu-img create -q -f qcow2 -b a -F raw given/top
    qemu-io -c 'write -P 7 300000 100000' -c 'write -z 5242880 65536' given/top >/dev/null
    cp given/a given/base
    same_convert -O qcow2 -B base -F raw top t.qcow2
    cmp <(own_ranges peer/t.qcow2) <(own_ranges mine/t.qcow2)
    same_convert -O qcow2 -o backing_file=base,backing_fmt=raw top t.qcow2
    same_convert -O qcow2 -o backing_file=base -F raw top t.qcow2
    same_convert -O qcow2 -c -B base -F raw top t.qcow2
    same_convert -O qcow2 -B base top t.qcow2
    same_convert -O qcow2 -B missing -F raw top t.qcow2
    same_convert -O qcow2 -B base -F raw top top t.qcow2
    same_convert -O qcow2 -F raw top t.qcow2
    # A deeper chain: one layer is copied.
    qemu-img create -q -f qcow2 -b top -F qcow2 given/above
    qemu-io -c 'write -P 8 0 1000' given/above >/dev/null
    same_convert -O qcow2 -B top -F qcow2 above t.qcow2
    cmp <(own_ranges peer/t.qcow2) <(own_ranges mine/t.qcow2)
    # And without -B everything.
    same_convert -O qcow2 above t.qcow2
    same_convert -O raw above t.raw
}

@test "-B: an input without backing file, and backing files of other sizes" {
    qemu-img create -q -f qcow2 given/q 8M
    qemu-io -c 'write -P 7 300000 100000' given/q >/dev/null
    same_convert -O qcow2 -B a -F raw q t.qcow2
    same_convert -O qcow2 -B a -F raw a t.qcow2
    truncate -s 3M given/short
    fill given/short 0 3145728 0x61
    same_convert -O qcow2 -B short -F raw q t.qcow2
    same_convert -O qcow2 -c -B short -F raw q t.qcow2
    qemu-img create -q -f qcow2 -b short -F raw given/top 8M
    same_convert -O qcow2 -B short -F raw top t.qcow2
}

@test "-B: the source's own backing file ends before the target's" {
    cd given
    truncate -s 3M short
    fill short 0 3145728 0x61
    qemu-img create -q -f qcow2 -b short -F raw top 8M
    cp short longer
    truncate -s 8M longer
    fill longer 4000000 4000000 0x62
    # qemu-img lets the data of the longer one show through.
    run blkimg convert -O qcow2 -B longer -F raw top t.qcow2
    assert_success
    qemu-img compare top t.qcow2
}

@test "-n: an existing qcow2 target" {
    qemu-img create -q -f qcow2 given/t.qcow2 8M
    same_convert -n -O qcow2 a t.qcow2
    same_convert -n --target-is-zero -O qcow2 a t.qcow2
    qemu-io -c 'write -P 9 0 8M' given/t.qcow2 >/dev/null
    same_convert -n -O qcow2 a t.qcow2
    same_convert -n -O qcow2 -S 0 a t.qcow2
    qemu-img create -q -f qcow2 -b a -F raw given/top
    qemu-img create -q -f qcow2 -b a -F raw given/t.over.qcow2
    qemu-io -c 'write -P 7 300000 100000' given/top >/dev/null
    same_convert -n -O qcow2 a t.over.qcow2
    same_convert -n -O qcow2 -B a -F raw top t.over.qcow2
    cmp <(own_ranges peer/t.over.qcow2) <(own_ranges mine/t.over.qcow2)
    qemu-img create -q -f qcow2 given/t.small.qcow2 7M
    same_convert -n -O qcow2 a t.small.qcow2
}

@test "--target-is-zero is refused for a target with a backing file" {
    qemu-img create -q -f qcow2 -b a -F raw given/t.qcow2
    cd given
    cp t.qcow2 before
    run blkimg convert -n --target-is-zero -O qcow2 a t.qcow2
    assert_failure 1
    assert_output --partial "backing"
    cmp t.qcow2 before
}

@test "a target cannot be its own backing file" {
    cd given
    cp a t
    run blkimg convert -O qcow2 -B t -F raw a t
    assert_failure 1
    assert_output --partial "its own backing file"
    cmp a t
}

@test "-l: a snapshot" {
    qemu-img convert -O qcow2 given/a given/q
    qemu-img snapshot -c first given/q
    qemu-io -c 'write -P 9 0 1M' given/q >/dev/null
    qemu-img snapshot -c 7 given/q
    qemu-io -c 'write -P 10 0 2M' given/q >/dev/null
    same_convert -l first q t.raw
    same_convert -l 1 q t.raw
    same_convert -l 7 q t.raw
    same_convert -l snapshot.id=1,snapshot.name=first q t.raw
    same_convert -l snapshot.name=7 -O qcow2 q t.qcow2
    same_convert -l snapshot.id=1,snapshot.name=7 q t.raw
    same_convert -l missing q t.raw
    same_convert -l first q q t.raw
}
