#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The core of the qcow2 driver: header features and extensions, what happens to damaged images,
# growth of the refcount table, and that no crash or fault between two writes damages an image.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img qemu-io
}

# poke FILE OFFSET HEX: writes bytes.
poke() {
    printf '%b' "$(sed 's/../\\x&/g' <<<"$3")" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# peek FILE OFFSET COUNT: bytes as hex.
peek() {
    od -An -v -tx1 -j "$2" -N "$3" "$1" | tr -d ' \n'
}

@test "an unknown incompatible feature is refused by the name that the image gives it" {
    qemu-img create -q -f qcow2 a 1M
    poke a 79 20 # bit 5
    # The first entry of QEMU's table of names, "dirty bit", becomes bit 5.
    poke a 120 0005
    run blkimg info a
    assert_failure 1
    assert_output --partial "dirty bit"
}

@test "unknown autoclear bits are cleared by a writer and left alone by a reader" {
    qemu-img create -q -f qcow2 a 1M
    poke a 95 80
    blkimg io -r -c "read 0 64k" a
    assert_equal "$(peek a 88 8)" 0000000000000080
    blkimg io -c "write 0 64k" a
    assert_equal "$(peek a 88 8)" 0000000000000000
    qemu-img check a
}

@test "another backing file keeps unknown extensions, feature names and bitmaps" {
    qemu-img create -q -f qcow2 base1 1M
    qemu-img create -q -f qcow2 a-longer-name-for-the-second-base 1M
    qemu-img create -q -f qcow2 -b base1 -F qcow2 a
    qemu-img bitmap --add a b0
    blkimg rebase -u -b a-longer-name-for-the-second-base -F qcow2 a
    run -0 qemu-img info a
    assert_output --partial "backing file: a-longer-name-for-the-second-base"
    assert_output --partial "name: b0"
    grep -q "lazy refcounts" a
    blkimg rebase -u -b "" a
    refute grep -q "backing file:" <(qemu-img info a)
    qemu-img check a
}

@test "all that changes in a header is in its first sector" {
    qemu-img create -q -f qcow2 base 1M
    qemu-img create -q -f qcow2 -b base -F qcow2 a
    qemu-img bitmap --add a b0
    blkimg rebase -u -b base -F raw a
    # The extensions: walked from the header's end, all but the feature names end before byte 512.
    run -0 python3 - a <<'END'
import struct, sys
head = open(sys.argv[1], "rb").read(65536)
at = struct.unpack(">I", head[100:104])[0]
while True:
    kind, length = struct.unpack(">II", head[at:at + 8])
    if kind == 0:
        break
    end = at + 8 + (length + 7) // 8 * 8
    assert kind == 0x6803f857 or end <= 512, (hex(kind), end)
    at = end
END
}

@test "a dirty image is repaired by the next writer" {
    qemu-img create -q -f qcow2 -o lazy_refcounts=on a 4M
    qemu-io -c "write -P 1 0 2M" -c "abort" a || true
    assert_equal "$(peek a 79 1)" 01
    blkimg io -c "write -P 2 3M 64k" a
    assert_equal "$(peek a 79 1)" 00
    qemu-img check a
    blkimg io -c "read -P 1 0 2M" -c "read -P 2 3M 64k" a
}

# with_entry_at HEX: an image whose first guest cluster is mapped there.
with_entry_at() {
    qemu-img create -q -f qcow2 a 1M
    qemu-io -c "write -P 1 0 128k" a
    local l2=$((16#$(peek a $((16#$(peek a 40 8))) 8) & 16#00fffffffffffe00))
    poke a "$l2" "$1"
}

@test "a write that would destroy a table marks the image as corrupt instead" {
    local target
    # Refcount table, refcount block, L1, L2 of an image that QEMU makes.
    for target in 1 2 3 4; do
        rm -f a
        with_entry_at "80000000000${target}0000"
        run -5 blkimg io -c "write -P 2 0 64k" a # nothing is written any more, by the close neither
        assert_output --partial "corrupt"
        assert_equal "$(peek a 79 1)" 02
        refute grep -q $'\x02\x02\x02\x02' a
    done
}

@test "overlap-check says what writes are kept away from" {
    local options
    # On the refcount block: no place that the header names.
    for options in overlap-check=none overlap-check=constant \
        overlap-check.active-l2=off,overlap-check.refcount-block=off; do
        rm -f a
        with_entry_at 8000000000020000
        run -0 blkimg io --image-opts -c "write -P 2 0 64k" "driver=qcow2,file.filename=a,$options"
        assert_equal "$(peek a 131072 4)" 02020202
    done
    for options in overlap-check=cached overlap-check=all overlap-check.template=all \
        overlap-check=none,overlap-check.refcount-block=on; do
        rm -f a
        with_entry_at 8000000000020000
        run -5 blkimg io --image-opts -c "write -P 2 0 64k" "driver=qcow2,file.filename=a,$options"
        assert_output --partial 'Image is corrupt'
        refute grep -q $'\x02\x02\x02\x02' a
    done
    rm -f a
    with_entry_at 8000000000010000
    run -5 blkimg io --image-opts -c "write -P 2 0 64k" \
        driver=qcow2,file.filename=a,overlap-check=constant
    # The cause, from a command that says it.
    rm a
    with_entry_at 8000000000020000
    head -c 1M /dev/zero | tr '\0' x >source
    run blkimg convert -n -f raw -O qcow2 source a
    assert_output --partial 'Image is corrupt: Preventing invalid write'
}

@test "overlap-check keeps writes away from what snapshots and bitmaps have, as QEMU's" {
    local place check program want
    qemu-img create -q -f qcow2 base 8M
    qemu-io -c 'write -P 1 0 64k' base >/dev/null
    qemu-img snapshot -c one base
    qemu-io -c 'write -P 1 64k 64k' base >/dev/null
    qemu-img snapshot -c two base
    qemu-img bitmap --add base b0
    while read -r place check want; do
        for program in qemu-io 'blkimg io'; do
            echo "$program $place $check"
            cp base a
            python3 - "$SRCDIR/tests/tools" "$place" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import mkimage
with mkimage.Image("a") as image:
    l1 = image.target_get("snapshot[0].l1_offset")
    places = {"inactive-l1": l1, "inactive-l2": image.get(l1, 8) & mkimage.OFFSET,
              "bitmap-directory": image.target_get("bitmaps.directory_offset")}
    image.target_set("l2[5]", f"{places[sys.argv[2]]}|COPIED")
PY
            # shellcheck disable=SC2086 # a command and its word
            run $program --image-opts -c 'write -P 2 320k 64k' "driver=qcow2,file.filename=a,$check"
            # A close may find the directory overwritten; the corrupt bit tells that the write was refused.
            ((want == 0 || status != 0))
            assert_equal "$(peek a 79 1)" "0$((want * 2))"
        done
    done <<'CASES'
inactive-l1 overlap-check=none 0
inactive-l1 overlap-check=constant 0
inactive-l1 overlap-check=cached 1
inactive-l1 overlap-check=none,overlap-check.inactive-l1=on 1
inactive-l1 cache-size=2M 1
inactive-l2 overlap-check=cached 0
inactive-l2 overlap-check=all 1
inactive-l2 overlap-check=all,overlap-check.inactive-l2=off 0
bitmap-directory overlap-check=none 0
bitmap-directory overlap-check=constant 1
bitmap-directory cache-size=2M 1
CASES
}

@test "an image that is marked as corrupt can be read but not written" {
    with_entry_at 8000000000010000
    run -5 blkimg io -c "write -P 2 0 64k" a
    run -1 blkimg io -c "write -P 2 64k 64k" a
    assert_output --partial "Image is corrupt"
    blkimg io -r -c "read -P 1 64k 64k" a
}

@test "the refcount table grows, and qemu-img finds nothing wrong" {
    qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 a 40M
    blkimg io -c "write -P 3 0 20M" -c "flush" -c "write -P 4 20M 20M" a
    (($(peek a 56 4 | sed 's/^/16#/') > 1))
    qemu-img check a
    qemu-io -c "read -P 3 0 20M" -c "read -P 4 20M 20M" a
}

@test "the refcount table grows twice between two flushes" {
    qemu-img create -q -f qcow2 -o cluster_size=512 a 256M
    # What is freed and used again shows a place that was looked up in memory that is no more.
    MALLOC_PERTURB_=85 blkimg io --image-opts -c "write -P 3 0 64M" \
        driver=qcow2,file.filename=a,refcount-cache-size=16M,l2-cache-size=16M
    run -0 qemu-img check a
    assert_output --partial 'No errors were found'
    qemu-io -c "read -P 3 0 64M" a
}

@test "data, preallocated zeroes and data in a row are written by one request" {
    # The second request that writes guest data fails.
    printf '%s\n' '[set-state]' 'event = "write_aio"' 'state = "1"' 'new_state = "2"' \
        '[inject-error]' 'event = "write_aio"' 'state = "2"' >rules
    local options program
    for options in cluster_size=64k cluster_size=64k,extended_l2=on; do
        for program in qemu-io 'blkimg io'; do
            qemu-img create -q -f qcow2 -o $options a 1M
            qemu-io -c "write -P 3 0 192k" -c "write -z 64k 64k" -c "write -z 130k 2k" a
            $program -c "write -P 4 1k 190k" blkdebug:rules:a
            qemu-io -c "read -P 3 0 1k" -c "read -P 4 1k 190k" -c "read -P 3 191k 1k" a |
                tee out
            run -1 grep 'verification failed' out
            qemu-img check -q a
        done
    done
}

@test "discard-no-unref: what is discarded keeps its clusters, and the file forgets their data" {
    local options=driver=qcow2,file.filename=a,discard=unmap,discard-no-unref=on kind before
    for kind in cluster_size=64k cluster_size=64k,extended_l2=on; do
        qemu-img create -q -f qcow2 -o $kind a 4M
        qemu-io -c "write -P 1 0 2M" -c "write -c -P 2 2M 64k" a
        qemu-img snapshot -c s a
        qemu-io -c "write -P 3 0 1M" a
        before=$(stat -c %b a)
        # Own clusters, those of the snapshot, a compressed one, none.
        run -0 blkimg io --image-opts -c "discard 64k 512k" -c "write -z -u 576k 192k" \
            -c "discard 1M 512k" -c "discard 2M 64k" -c "discard 3M 64k" \
            -c "read -P 0 64k 704k" -c "read -P 0 1M 512k" -c "read -P 0 2M 64k" \
            -c "read -P 3 0 64k" -c "read -P 3 768k 256k" "$options"
        refute_output --partial failed
        qemu-img check -q a
        (($(stat -c %b a) <= before - 1200)) || fail "$before blocks, now $(stat -c %b a)"
        run -0 jq -c '[.[] | select(.zero and .offset) | [.start, .length]]' \
            <(qemu-img map --output=json a)
        assert_output '[[65536,720896],[1048576,524288]]'
        # The clusters are used again: the file does not grow.
        before=$(stat -c %s a)
        qemu-io -c "write -P 4 0 1M" a
        assert_equal "$(stat -c %s a)" "$before"
        qemu-img snapshot -a s a
        run -0 qemu-io -c "read -P 1 0 2M" -c "read -P 2 2M 64k" a
        refute_output --partial failed
        qemu-img check -q a
    done
    # Without it they are given back.
    qemu-io -c "write -P 1 0 1M" a
    blkimg io --image-opts -c "discard 0 1M" "${options/=on/=off}"
    run -0 jq -c '[.[] | select(.zero and .offset)]' <(qemu-img map --output=json a)
    assert_output '[]'
    qemu-img create -q -f qcow2 -o compat=0.10 a 1M
    run -1 --separate-stderr blkimg io --image-opts -c "discard 0 1M" "$options"
    [[ $stderr == *discard-no-unref*'version 3'* ]]
}

@test "sizes of caches are taken as QEMU takes them" {
    qemu-img create -q -f qcow2 a 64M
    local good bad
    for good in cache-size=2M l2-cache-size=1M,refcount-cache-size=512k l2-cache-entry-size=4k \
        lazy-refcounts=on,overlap-check=all,cache-clean-interval=5 pass-discard-other=on; do
        blkimg io --image-opts -c "write 0 1M" "driver=qcow2,file.filename=a,$good"
    done
    for bad in cache-size=1M,l2-cache-size=1M,refcount-cache-size=1M \
        cache-size=1M,l2-cache-size=2M l2-cache-entry-size=3000 overlap-check=some no-such-option=1; do
        run -1 blkimg io --image-opts -c "read 0 1M" "driver=qcow2,file.filename=a,$bad"
    done
    qemu-img check a
}

# old_and_new OPTIONS: an image with data, zeroes, a snapshot; commands that touch no sector twice.
old_and_new() {
    qemu-img create -q -f qcow2 -o "$1" a 4M
    qemu-io -d unmap -c "write -P 1 0 1M" -c "write -P 2 2M 300k" -c "write -z 1M 128k" a
    qemu-img snapshot -c s a
    qemu-io -c "write -P 3 512k 100k" a
    commands=(-c "write -q -P 10 100k 200k" -c "write -q -z -u 600k 100k" -c "flush"
        -c "write -q -P 12 1M 300k" -c "discard -q 2M 128k" -c "flush"
        -c "write -q -P 13 1900k 100k"
        -c "write -q -c -P 15 2560k 64k" -c "write -q -P 16 2700k 300k" -c "flush"
        -c "write -q -z -u 400k 10k" -c "write -q -P 18 1600k 200k")
    cp a b
    blkimg io -d unmap "${commands[@]}" b
    qemu-img convert -f qcow2 -O raw a old.raw
    qemu-img convert -f qcow2 -O raw b new.raw
}

states() {
    "$SRCDIR/tests/tools/crashstates.py" run --files a --states 120 --seed 1 --image a \
        --old old.raw --new "$1" -- "${@:2}"
}

@test "no crash while writing damages an image" {
    local options
    for options in cluster_size=64k cluster_size=512,refcount_bits=64 \
        cluster_size=16k,extended_l2=on; do
        rm -f a
        old_and_new "$options"
        states new.raw "$BLKIMG" io -d unmap "${commands[@]}" a
    done
}

@test "no crash while discarding with discard-no-unref damages an image" {
    local options=driver=qcow2,file.filename=b,discard=unmap,discard-no-unref=on
    old_and_new cluster_size=4k
    cp a b
    commands=(-c "discard -q 0 200k" -c "write -q -z -u 2M 100k" -c flush -c "discard -q 300k 50k"
        -c "write -q -P 8 2148k 20k")
    blkimg io --image-opts "${commands[@]}" "$options"
    qemu-img convert -f qcow2 -O raw b new.raw
    states new.raw "$BLKIMG" io --image-opts "${commands[@]}" "${options/=b,/=a,}"
}

@test "no crash while resizing damages an image" {
    local size
    old_and_new cluster_size=4k
    for size in 100M 2000k; do
        cp old.raw new.raw
        truncate -s "$size" new.raw
        states new.raw "$BLKIMG" resize -q --shrink a "$size"
    done
}

@test "no failed call while writing or resizing damages an image or goes unnoticed" {
    old_and_new cluster_size=64k
    "$SRCDIR/tests/tools/faultloop.py" --files a --image a --old old.raw --new new.raw -- \
        "$BLKIMG" io -d unmap "${commands[@]}" a
    cp old.raw new.raw
    truncate -s 3M new.raw
    "$SRCDIR/tests/tools/faultloop.py" --files a --image a --old old.raw --new new.raw -- \
        "$BLKIMG" resize -q --shrink a 3M
}
