#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# qcow2 images made to do harm: every command ends soon, with a right result or with one line that says what is wrong;
# info needs little memory, whatever the file says. tests/tools/fuzz.py tries the commands; its top says how.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img qemu-io python3
    need_format qcow2
    [[ -n $SANITIZERS ]] || memory=--memory
}

mkimage() {
    python3 "$SRCDIR/tests/tools/mkimage.py" "$@"
}

try() {
    run python3 "$SRCDIR/tests/tools/fuzz.py" try ${memory-} "$@"
    ((status == 0)) || fail "$output"
}

# refused TEXT CHANGE...: a case, an image with these changes that info refuses, saying the text.
refused() {
    local text=$1
    shift
    echo "${text@Q} '${FROM-}'" "${@@Q}" >>cases
}

# edited CHANGE...: a case of which only is asked that no command does harm. The image is a sound one, or the file
# that is named by FROM.
edited() {
    refused "" "$@"
}

# Tries the cases so far. All are tried by one program, at the same time.
try_cases() {
    run python3 "$SRCDIR/tests/tools/fuzz.py" cases ${memory-} cases
    ((status == 0)) || fail "$output"
    rm cases
}

teardown() {
    # None was forgotten.
    local left=0
    [[ ! -e $T/cases ]] || left=1
    common_teardown
    ((left == 0)) || fail 'there are cases that were not tried'
}

@test "header fields out of range" {
    local value
    for value in 0 8 22 63 64 0xffffffff; do
        refused 'cluster size' "cluster_bits=$value"
    done
    for value in 0 72 103 105 111 65544 0xfffffff8; do
        refused 'header length' "header_bytes=$value"
    done
    for value in 7 64 0xffffffff; do
        refused 'refcount width' "refcount_order=$value"
    done
    for value in 4 0xffffffff; do
        refused 'version' "version=$value"
    done
    for value in 0 1; do
        # These may be something else; as qcow2 they are refused.
        mkimage new a
        mkimage edit a "version=$value"
        run -1 --separate-stderr blkimg info -f qcow2 a
        [[ $stderr == *version* ]]
    done
    refused 'too large' 'size=1<<63'
    refused 'too large' 'size=(1<<64)-1'
    refused 'L1 table' 'size=1<<55'
    refused 'L1 table' 'size=1<<40'
    refused 'encryption' 'crypt=3'
    edited 'crypt=1'
    edited 'crypt=2'
    refused 'compression type' 'compression=1'
    refused 'compression type' 'compression=2' 'incompatible=8'
    refused 'compression type' 'incompatible=8'
    refused 'extended L2' 'incompatible=16' 'cluster_bits=12' 'l1_entries=0' 'size=0'
    edited 'incompatible=4'
    edited 'magic=0'
    edited 'file_bytes=50'
    edited 'file_bytes=80'
    edited 'file_bytes=300'
    try_cases
}

@test "unknown incompatible features, by name" {
    refused 'unknown feature bit 40' 'incompatible=1<<40'
    mkimage new a
    python3 - "$SRCDIR/tests/tools" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import mkimage
with mkimage.Image("a") as image:
    names = bytes([0, 41]) + b"warp drive".ljust(46, b"\0") + bytes([0, 42]) + b"\x1b[31m\n".ljust(46, b"z")
    image.add_extension(mkimage.EXT_FEATURE_NAMES, names)
    image.target_set("incompatible", "(1<<41)|(1<<42)")
PY
    try a
    run -1 --separate-stderr blkimg info a
    [[ $stderr == *'warp drive'* && $stderr != *$'\e'* && ${#stderr_lines[@]} == 1 ]]
    edited 'incompatible=(1<<64)-32'
    try_cases
}

@test "tables at impossible places, too large, or on each other" {
    local field
    refused 'L1 table is too large' 'l1_entries=0xffffffff'
    edited 'l1_entries=0x400000'
    edited 'l1_entries=0x400000' 'file_bytes=1<<36'
    refused 'refcount table is too large' 'reftable_clusters=0xffffffff'
    edited 'reftable_clusters=128'
    refused 'no refcount table' 'reftable_clusters=0'
    for field in l1_offset reftable_offset; do
        refused 'overlaps the header' "$field=0"
        refused 'invalid offset' "$field=old+512"
        refused 'invalid offset' "$field=(1<<64)-65536"
        edited "$field=1<<62"
        edited "$field=1<<55"
        edited "$field=end"
    done
    refused 'overlaps the L1' 'reftable_offset=l1_offset'
    edited 'reftable[0]=reftable_offset' 'reftable[1]=reftable_offset'
    edited 'reftable[0]=l1_offset'
    edited 'reftable[0]=0'
    edited 'reftable[0]=(1<<64)-1'
    edited 'l1[0]=l1_offset|COPIED'
    edited 'l1[0]=cluster|COPIED'
    edited 'l1[0]=1<<55|COPIED'
    edited 'l1[0]=old+512'
    edited 'l1[0]=(1<<64)-1'
    try_cases
}

@test "wild L2 entries" {
    local value FROM=
    for value in '(1<<64)-1' '1<<55|COPIED' 'old+512' 'COPIED' 'cluster|COPIED' 'l1_offset|COPIED' '2*cluster' 'COMPRESSED' \
        'COMPRESSED|(1<<61)' 'COMPRESSED|(1<<53)|end' 'COMPRESSED|COPIED|5' '1' 'COPIED|1' 'end|COPIED' '(1<<62)-1|COMPRESSED'; do
        edited "l2[0]=$value"
    done
    # Every entry of the table leads to the table.
    edited 'l2[0]=4*cluster|COPIED' 'l2[1]=4*cluster|COPIED' 'l2[2]=4*cluster|COPIED'
    mkimage new extended incompatible=16
    FROM=extended
    for value in '(1<<64)-1' '1' '1<<32' '0x100000001'; do
        edited "subclusters[0]=$value" "subclusters[1]=$value" 'l2[1]=0'
    done
    edited 'subclusters[1]=0x100000001' 'l2[1]=0' 'l2[0]=COMPRESSED|5*cluster' 'subclusters[0]=7'
    try_cases
}

@test "many ways to one table" {
    # An L1 of 32 MiB whose entries all lead to one L2 table, whose entries all lead to one cluster.
    python3 - "$SRCDIR/tests/tools" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import mkimage
mkimage.new_image("a", refcount_order=6)
with mkimage.Image("a") as image:
    c = image.cluster
    l1, entries = image.end, 1 << 22
    image.write(4 * c, (5 * c).to_bytes(8, "big") * (c // 8))
    image.write(l1, (4 * c).to_bytes(8, "big") * entries)
    image.target_set("l1_offset", str(l1))
    image.target_set("l1_entries", str(entries))
PY
    run timeout 40 "$BLKIMG" check a
    ((status == 2))
    run -0 timeout 40 "$BLKIMG" info a
    run -0 timeout 40 "$BLKIMG" io -r -c 'read 1M 64k' a
    # 60,000 snapshots that all have this L1 table.
    mkimage snapshots a 60000 "l1_offset=$(mkimage get a l1_offset)" l1_entries=4194304
    run timeout 40 "$BLKIMG" check -q a
    ((status == 2))
    run -0 timeout 40 "$BLKIMG" snapshot -l a
}

@test "a backing file that is the image itself, in all ways" {
    local name
    mkdir sub
    for name in a ./a sub/../a "$T/a" link; do
        qemu-img create -q -f qcow2 -u -b "$name" -F qcow2 b 1M
        mv b a
        ln -sf a link
        try a
        for command in 'info --backing-chain' 'convert -O raw' map; do
            # shellcheck disable=SC2086,SC2046 # lists
            run -1 --separate-stderr timeout 40 "$BLKIMG" $command a $([[ $command != convert* ]] || echo out)
            [[ ${#stderr_lines[@]} == 1 ]]
        done
    done
    qemu-img create -q -f qcow2 -u -b b -F qcow2 a 1M
    qemu-img create -q -f qcow2 -u -b sub/c -F qcow2 b 1M
    qemu-img create -q -f qcow2 -u -b ../a -F qcow2 sub/c 1M
    try a b sub/c
    qemu-img create -q -f qcow2 -u -b hard -F qcow2 a 1M
    ln -f a hard
    try a
    # A chain of 300 is long, but no loop.
    python3 - "$SRCDIR/tests/tools" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import mkimage
last = b""
for i in range(300):
    name = f"chain{i}"
    mkimage.new_image(name, cluster_bits=9, data=0)
    if last:
        with mkimage.Image(name) as image:
            image.write(400, last)
            image.target_set("backing_offset", "400")
            image.target_set("backing_bytes", str(len(last)))
            image.add_extension(mkimage.EXT_BACKING_FORMAT, b"qcow2")
    last = name.encode()
PY
    run timeout 40 "$BLKIMG" info --backing-chain chain299
    ((status <= 1))
}

@test "names in the header" {
    refused 'backing file name' 'backing_offset=65530' 'backing_bytes=100'
    refused 'backing file name' 'backing_offset=200' 'backing_bytes=1024'
    refused 'backing file name' 'backing_offset=1<<63' 'backing_bytes=1'
    refused 'backing file name' 'backing_offset=50' 'backing_bytes=20'
    refused 'zero byte' 'backing_offset=600' 'backing_bytes=8'
    try_cases
    mkimage new a
    mkimage extension a 0x1234 20
    mkimage edit a 'u32[116]=0xffffffff'
    try a
    run -1 --separate-stderr blkimg info a
    [[ $stderr == *'extension'* ]]
    mkimage edit a 'u32[116]=65536'
    try a
    # The whole cluster is extensions of no length.
    mkimage new a
    python3 -c "open('a', 'r+b').seek(0)" && python3 - <<'PY'
with open("a", "r+b") as image:
    image.seek(112)
    image.write((bytes([0, 0, 1, 2]) + bytes(4)) * ((65536 - 112) // 8))
PY
    try a
    rm a
    mkimage new a cluster_bits=21
    python3 - <<'PY'
with open("a", "r+b") as image:
    image.seek(112)
    image.write((bytes([0, 0, 1, 2]) + bytes(4)) * (((2 << 20) - 112) // 8))
PY
    try a
}

@test "snapshot tables" {
    mkimage new good
    mkimage snapshots good 5
    local change FROM=good
    for change in snapshot_count=65536 snapshot_count=65537 snapshot_count=0xffffffff snapshots_offset=0 \
        snapshots_offset=old+8 'snapshots_offset=1<<62' snapshots_offset=end 'snapshot[1].extra_bytes=1025' \
        'snapshot[1].extra_bytes=0xffffffff' 'snapshot[4].name_bytes=65535' 'snapshot[4].id_bytes=65535' \
        'snapshot[2].l1_entries=0xffffffff' 'snapshot[2].l1_offset=1<<62' snapshots_offset=l1_offset; do
        edited "$change"
    done
    try_cases
    # The largest legal table: 64 MiB in 65536 entries.
    mkimage new a
    mkimage snapshots a 65536 id_bytes=400 name_bytes=560
    try a
    # And one that is not: giant ids and names.
    mkimage new a
    mkimage snapshots a 700 id_bytes=65535 name_bytes=65535
    try a
}

@test "bitmaps" {
    mkimage new good
    mkimage bitmaps good 4
    local change FROM=good
    for change in bitmaps.count=0 bitmaps.count=3 bitmaps.count=5 bitmaps.count=0xffffffff bitmaps.directory_bytes=8 \
        'bitmaps.directory_bytes=1<<63' bitmaps.directory_offset=0 bitmaps.directory_offset=old+512 \
        'bitmaps.directory_offset=1<<62' bitmaps.directory_offset=l1_offset 'bitmap[0].table_offset=1<<62' \
        'bitmap[0].table_offset=old+8' 'bitmap[0].table_entries=0xffffffff' 'bitmap[0].table_entries=1<<27' \
        'bitmap[1].flags=0xffffffff' 'bitmap[1].type=7' 'bitmap[1].granularity_bits=0' 'bitmap[1].granularity_bits=255' \
        'bitmap[1].name_bytes=0' 'bitmap[1].name_bytes=65535' 'bitmap[1].extra_bytes=0xffffffff' \
        'bitmap_table[0][0]=(1<<64)-1' 'bitmap_table[0][0]=l1_offset' 'bitmap_table[0][0]=1<<55'; do
        edited "$change"
    done
    try_cases
}

@test "as many bitmaps as there may be, with short names and with long ones" {
    mkimage new a
    mkimage bitmaps a 65535 shared=1
    try a
    mkimage new a
    mkimage bitmaps a 65535 shared=1 name_bytes=1000
    try a
}

@test "compressed clusters that expand forever, or not at all" {
    local type
    for type in 0 1; do
        python3 - "$SRCDIR/tests/tools" "$type" <<'PY' || return 1
import shutil, subprocess, sys, zlib
sys.path.insert(0, sys.argv[1])
import mkimage
kind = int(sys.argv[2])
if kind == 0:
    pack = zlib.compressobj(9, zlib.DEFLATED, -12)
    bomb = pack.compress(bytes(64 << 20)) + pack.flush()
elif shutil.which("zstd"):
    bomb = subprocess.run(["zstd", "-q", "-19", "-c"], input=bytes(64 << 20), stdout=subprocess.PIPE, check=True).stdout
else:
    bomb = bytes.fromhex("28b52ffd04580100ffffff")
for number, data in enumerate([bomb, b"\xff" * 5000, bytes(5000), b"\x28\xb5\x2f\xfd" * 900, bomb[:40]]):
    name = f"bomb{kind}{number}"
    mkimage.new_image(name, data=8)
    with mkimage.Image(name) as image:
        if kind:
            image.target_set("incompatible", "8")
            image.target_set("compression", "1")
        image.write(5 * image.cluster, data)
        image.target_set("l2[0]", f"COMPRESSED|5*cluster|{min(len(data) // 512, 127)}<<54")
PY
        try bomb"$type"*
    done
}

@test "random damage" {
    local count=${QCOW2_FUZZ:-150} seed=${QCOW2_FUZZ_SEED:-$((EPOCHSECONDS / 86400))}
    run python3 "$SRCDIR/tests/tools/fuzz.py" run --seed "$seed" --count "$count"
    echo "# ${lines[-1]}" >&3
    ((status == 0))
}

@test "reading takes no refcounts" {
    need qemu-img qemu-io
    local change
    qemu-img create -q -f qcow2 base 1M
    qemu-io -c 'write -P 7 0 512k' base >/dev/null
    for change in 'reftable[0]=1<<30' 'reftable[0]=end' 'reftable_offset=1<<30' 'reftable[0]=512'; do
        echo "$change"
        cp base a
        mkimage edit a "$change"
        cp a before
        run -0 blkimg compare a base
        run -0 blkimg map a
        run -0 blkimg convert -O raw a out
        run -0 qemu-img compare -f raw -F qcow2 out base
        run -2 blkimg check a
        cmp a before
    done
}

@test "an L1 table past the end is empty only if nothing was ever written" {
    need qemu-img qemu-io
    # As a writer leaves it that makes no room for what is zero.
    qemu-img create -q -f qcow2 a 1M
    truncate -s 192k a
    run -0 blkimg convert -O raw a out
    run -0 blkimg io -r -c 'read -P 0 0 1M' -f raw out
    run -2 blkimg check a
    [[ $output == *'cut short at 196608'* ]]
    # One that had data was cut off: its content is not zeroes.
    qemu-img create -q -f qcow2 b 1M
    qemu-io -c 'write -P 7 0 512k' b >/dev/null
    truncate -s 192k b
    rm out
    run -1 blkimg convert -O raw b out
    assert_output --partial 'the file is cut short at 196608'
    assert_file_not_exists out
}
