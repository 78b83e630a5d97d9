#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Compressed clusters in both directions: what one program writes, the other reads and finds sound.

bats_require_minimum_version 1.5.0
load lib/common

# Words, a run of zeroes, and noise that does not get smaller: 3M and a bit, in no whole cluster.
make_source() {
    (
        seq -f 'line %g of the source' 1 40000 | head -c 1M
        head -c 256k /dev/zero
        openssl enc -aes-128-ctr -nosalt -pass pass:blkimg -in /dev/zero 2>/dev/null | head -c 1M
        seq -f 'and %g more' 1 90000 | head -c 900k
        printf 'the end'
    ) >source
    truncate -s $(((($(stat -c %s source) + 511) / 512) * 512)) source
}

convert_both_ways() {
    local options=$1
    blkimg convert -c -O qcow2 -o "$options" source mine
    qemu-img check -q mine || fail "ours is not sound: $options"
    qemu-img compare -q -f raw -F qcow2 source mine || fail "QEMU reads ours differently: $options"
    blkimg compare -q -f raw -F qcow2 source mine || fail "we read ours differently: $options"
    qemu-img convert -c -O qcow2 -o "$options" source peer
    blkimg compare -q -f raw -F qcow2 source peer || fail "we read QEMU's differently: $options"
    blkimg check peer >/dev/null || fail "we find QEMU's not sound: $options"
    # As many clusters are compressed; the rest is noise and zeroes.
    assert_equal "$(compressed mine)" "$(compressed peer)"
    (($(compressed mine) > 0))
}

compressed() {
    qemu-img check --output=json "$1" | sed -n 's/.*"compressed-clusters": \([0-9]*\).*/\1/p'
}

@test "deflate, all cluster sizes" {
    need openssl
    make_source
    local bits
    for bits in {9..21}; do
        convert_both_ways "cluster_size=$((1 << bits))"
    done
    convert_both_ways compat=0.10
    convert_both_ways extended_l2=on
}

@test "zstd, all cluster sizes" {
    need openssl
    blkimg --version | grep -qi zstd || skip "no zstd in this build"
    make_source
    local bits
    for bits in {9..21}; do
        convert_both_ways "cluster_size=$((1 << bits)),compression_type=zstd"
    done
}

@test "deflate takes little more space than QEMU's" {
    need openssl
    make_source
    blkimg convert -c -O qcow2 source mine
    qemu-img convert -c -O qcow2 source peer
    (($(stat -c %s mine) * 100 <= $(stat -c %s peer) * 115)) ||
        fail "$(stat -c %s mine) bytes against $(stat -c %s peer)"
}

@test "single compressed writes, and plain ones over them" {
    local type writer reader
    for type in zlib zstd; do
        [[ $type == zlib ]] || blkimg --version | grep -qi zstd || continue
        for writer in qemu-io "$BLKIMG io"; do
            qemu-img create -q -f qcow2 -o compression_type=$type x 2M
            $writer -c 'write -c -P 1 0 64k' -c 'write -c -P 2 128k 64k' -c 'write -P 3 132k 4k' \
                -c 'write -c -P 5 1M 64k' -c 'discard 0 64k' -c 'write -c -P 6 64k 64k' \
                x >out
            qemu-img check -q x || fail "$type, $writer: not sound"
            for reader in qemu-io "$BLKIMG io"; do
                $reader -c 'read -P 0 0 64k' -c 'read -P 6 64k 64k' -c 'read -P 2 128k 4k' -c 'read -P 3 132k 4k' \
                    -c 'read -P 2 136k 56k' -c 'read -P 5 1M 64k' -c 'read -P 0 192k 832k' x >out
                [[ $(grep -c ^read out) == 7 ]] || fail "$type, $writer, $reader: $(<out)"
                refute grep -q verification out
            done
        done
    done
}

@test "the last, incomplete cluster" {
    head -c 100000 /dev/zero | tr '\0' x >source
    truncate -s 100352 source
    blkimg convert -c -O qcow2 source mine
    qemu-img compare -q -f raw -F qcow2 source mine
    qemu-img check -q mine
    qemu-img convert -c -O qcow2 source peer
    blkimg compare -q -f raw -F qcow2 source peer
}

@test "a damaged piece is an error, and the rest can be read" {
    qemu-img create -q -f qcow2 x 1M
    qemu-io -c 'write -c -P 7 0 64k' -c 'write -c -P 8 64k 64k' x >/dev/null
    local offset
    # The L2 table's first entry: where the first piece is.
    offset=$(qemu-img map --output=json x >/dev/null; blkimg map --output=json x >/dev/null
        l1=$((16#$(xxd -s 40 -l 8 -p x)))
        l2=$((16#$(xxd -s $((l1 + 1)) -l 7 -p x)))
        echo $((16#$(xxd -s $((l2 + 2)) -l 6 -p x))))
    fill x "$offset" 16 255
    run -1 --separate-stderr blkimg io -r -c 'read 0 64k' x
    [[ $output$stderr == *'Input/output error'* ]]
    run -0 blkimg io -r -c 'read -P 8 64k 64k' x
    refute_output --partial verification
}

# Where the only compressed piece of an image lies: OFFSET and the end of its last sector.
piece_of() {
    python3 - "$1" <<'PY'
import struct, sys
with open(sys.argv[1], "rb") as f:
    data = f.read()
u64 = lambda at: struct.unpack_from(">Q", data, at)[0]
entry = u64(u64(u64(40)) & 0x00fffffffffffe00)
offset = entry & ((1 << 54) - 1)
print(offset, (offset // 512 + (entry >> 54 & 0xff) + 1) * 512)
PY
}

@test "a piece that is cut off at the end of the file is an error" {
    local type cut start end
    python3 -c 'import random; random.seed(3); print("".join(random.choices("abcdefgh", k=65535)))' >source
    for type in zlib zstd; do
        qemu-img convert -c -O qcow2 -o "compression_type=$type" source whole
        read -r start end < <(piece_of whole)
        # Zeroes after the data in its last sector need not be there.
        python3 - whole "$end" <<'PY'
import sys
with open(sys.argv[1], "r+b") as f:
    data = f.read(int(sys.argv[2])).rstrip(b"\0")
    f.truncate(len(data))
PY
        run -0 blkimg check whole
        run -0 qemu-img check whole
        blkimg compare -q -f raw -F qcow2 source whole
        for cut in 1 2 5 100 512 700 5000 $((end - start)); do
            cp whole a
            truncate -s $((end - cut)) a
            (($(stat -c %s a) < $(stat -c %s whole))) || continue
            echo "$type: $cut bytes less"
            run -1 --separate-stderr blkimg convert -O raw a out
            [[ $stderr == *"the file is cut short at $((end - cut))"* ]] || fail "$stderr"
            assert_file_not_exists out
            run -4 --separate-stderr blkimg compare -f raw -F qcow2 source a
            run -2 --separate-stderr blkimg check -r all a
            [[ $stderr == *'guest bytes 0 to 65535 are lost'* ]] || fail "$stderr"
            run -0 blkimg check -r lost a
            run -0 blkimg io -r -c 'read -P 0 0 64k' a
        done
    done
}

# Longhorn refuses others, and a loop device cuts them off.
@test "a file that ends with a compressed piece ends with a whole sector" {
    local options
    python3 -c 'import random; random.seed(3); print("".join(random.choices("abcdefgh", k=300122)))' >source
    for options in cluster_size=64k cluster_size=512 cluster_size=4k compression_type=zstd; do
        blkimg convert -c -f raw -O qcow2 -o "$options" source a
        (($(stat -c %s a) % 512 == 0))
        qemu-img compare -q -f raw source a
        blkimg convert -m 8 -W -c -f raw -O qcow2 -o "$options" source a
        (($(stat -c %s a) % 512 == 0))
    done
    # The piece behind the tables: what is cut off is no part of one.
    qemu-img create -q -f qcow2 b 1M
    blkimg io -c 'write 64k 64k' -c 'write -c -P 1 0 64k' b
    (($(stat -c %s b) % 512 == 0))
    # Whoever writes nothing changes nothing.
    truncate -s -200 b
    blkimg io -c 'read 0 64k' b
    (($(stat -c %s b) % 512 == 312))
    # Sources of odd size.
    blkimg convert -f raw -O qcow2 source c
    blkimg convert -f raw -O qcow2 -o data_file=d source e
    (($(stat -c %s c) % 512 == 0 && $(stat -c %s d) % 512 == 0))
}
