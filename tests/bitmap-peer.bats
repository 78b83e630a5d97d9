#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Dirty bitmaps that one program wrote, read by the other: random sequences against a reference
# (tests/tools/bitmaprandom.py), and what each says of particular images. SEED=... repeats a run,
# BITMAP_SEQUENCES=300 makes it longer.

bats_require_minimum_version 1.5.0
load lib/common

# extents READER IMAGE BITMAP: the dirty runs, one "START LENGTH" a line.
blkimg_extents() {
    blkimg map --bitmap "$2" --output=json "$1" | jq -r '.[] | "\(.start) \(.length)"'
}

qemu_extents() {
    nbdinfo --json --map="qemu:dirty-bitmap:$2" -- [ qemu-nbd -r -f qcow2 -B "$2" "$1" ] |
        jq -r '.[] | select(.type == 1) | "\(.offset) \(.length)"'
}

# Both read the same, and it is what stdin has.
both_read() {
    local expected
    expected=$(cat)
    assert_equal "$(blkimg_extents "$1" "$2")" "$expected"
    assert_equal "$(qemu_extents "$1" "$2")" "$expected"
}

setup() {
    common_setup
    need qemu-img qemu-io qemu-nbd nbdinfo jq python3
}

@test "random sequences by either program" {
    local seed=${SEED:-$RANDOM$RANDOM} count=${BITMAP_SEQUENCES:-120}
    echo "# $count sequences, seed $seed" >&3
    "$SRCDIR/tests/tools/bitmaprandom.py" --sequences "$count" --seed "$seed" "$BLKIMG"
}

@test "granularities 512 to 2M, on a disk that is a multiple of none" {
    local bits start length size=$((5 * 1048576 + 3 * 512))
    for bits in {9..21}; do
        rm -f a
        qemu-img create -q -f qcow2 a $size
        blkimg bitmap --add -g $((1 << bits)) a ours
        qemu-img bitmap --add -g $((1 << bits)) a theirs
        qemu-io -c "write $((size - 512)) 512" -c 'write 4096 512' a >out
        blkimg io -c 'write 3M 1' -c "write -z $((size - 1)) 1" a >out
        diff <(blkimg_extents a ours) <(blkimg_extents a theirs)
        diff <(blkimg_extents a ours) <(qemu_extents a ours)
        diff <(qemu_extents a theirs) <(qemu_extents a ours)
        read -r start length < <(blkimg_extents a ours | tail -1)
        assert_equal $((start + length)) $size
    done
}

@test "all dirty and all clean take no space, and QEMU reads them" {
    qemu-img create -q -f qcow2 a 64M
    blkimg bitmap --add -g 512 a full
    blkimg bitmap --add -g 512 a clean
    blkimg bitmap --disable a clean
    blkimg io -c 'write -z 0 64M' a >out
    # 16 KiB of bits each would need a cluster.
    run python3 "$SRCDIR/tests/tools/mkimage.py" get a 'bitmap_table[0][0]' 'bitmap_table[1][0]'
    assert_success
    assert_equal "$((lines[0]))" 1
    assert_equal "$((lines[1]))" 0
    both_read a full <<<"0 67108864"
    both_read a clean </dev/null
    # QEMU keeps it, tail bits and all.
    qemu-io -c 'write 0 512' a >out
    both_read a full <<<"0 67108864"
    qemu-img check -q a
}

@test "odd names" {
    qemu-img create -q -f qcow2 a 1M
    local name
    for name in 'with space' $'\xc3\xa4' '-' "$(printf '%01023d' 7)"; do
        blkimg bitmap --add a -- "$name" 2>/dev/null || blkimg bitmap --add a "$name"
        blkimg io -c 'write 64k 64k' a >out
        assert_equal "$(blkimg map --bitmap "$name" --output=json a | jq length)" 1
    done
    diff <(qemu-img info --output=json a) <(blkimg info --output=json a)
    run -1 blkimg bitmap --add a "$(printf '%01024d' 7)"
    qemu-img check -q a
}

@test "what QEMU left in use is inconsistent, and only to be removed" {
    qemu-img create -q -f qcow2 a 1M
    qemu-img bitmap --add a b0
    qemu-img bitmap --add a b1
    python3 "$SRCDIR/tests/tools/mkimage.py" edit a 'bitmap[0].flags=old|1'
    local before action
    before=$(sha256sum <a)
    for action in --clear --enable --disable "--merge b1"; do
        # shellcheck disable=SC2086 # an option and its argument
        run -1 --separate-stderr blkimg bitmap $action a b0
        [[ $stderr == *"'b0'"*"bitmap --remove a b0"* ]]
    done
    run -1 --separate-stderr blkimg bitmap --merge b0 a b1
    [[ $stderr == *"'b0'"* ]]
    run -1 --separate-stderr blkimg map --bitmap b0 a
    assert_equal "$(sha256sum <a)" "$before"
    run -0 --separate-stderr blkimg info a
    [[ $output == *"warning: bitmap 'b0' is inconsistent"*"'blkimg bitmap --remove a b0'"* && -z $stderr ]]
    diff <(qemu-img info a) <(blkimg info a | sed '/^warning: /d')
    diff <(qemu-img info --output=json a) <(blkimg info --output=json a)
    # Written to, the other one goes on.
    blkimg io -c 'write 0 64k' a >out
    both_read a b1 <<<"0 65536"
    qemu-img info --output=json a | jq -e '."format-specific".data.bitmaps[0].flags == ["in-use", "auto"]'
    blkimg bitmap --remove a b0
    run -0 blkimg info a
    refute_line --partial warning
    qemu-img check -q a
}

@test "what is not known is kept and not used" {
    local change tool="$SRCDIR/tests/tools/mkimage.py"
    for change in 'bitmap[0].flags=old|8' 'bitmap[0].type=2'; do
        rm -f a
        qemu-img create -q -f qcow2 a 1M
        blkimg bitmap --add --disable a odd
        blkimg bitmap --add a b1
        python3 "$tool" edit a "$change"
        run -1 blkimg bitmap --clear a odd
        blkimg io -c 'write 0 64k' a >out
        assert_equal "$(blkimg_extents a b1)" "0 65536"
        assert_equal "$(python3 "$tool" get a 'bitmap[0].flags' 'bitmap[0].type')" \
            "$([[ $change == *flags* ]] && printf '8\n1' || printf '0\n2')"
        run -1 blkimg resize -q a 2M
        blkimg bitmap --remove a odd
        qemu-img check -q a
    done
    # Enabled, it misses what is written.
    rm -f a
    qemu-img create -q -f qcow2 a 1M
    blkimg bitmap --add a odd
    python3 "$tool" edit a 'bitmap[0].flags=old|8'
    blkimg io -c 'write 0 64k' a >out
    (($(python3 "$tool" get a 'bitmap[0].flags') == 11))
}

@test "convert --bitmaps as qemu-img's" {
    qemu-img create -q -f qcow2 a 10M
    blkimg bitmap --add a b0
    blkimg io -c 'write 1M 100k' -c 'write 9M 1M' a >out
    blkimg bitmap --add --disable -g 4k a b1
    blkimg bitmap --merge b0 a b1
    qemu-img convert --bitmaps -O qcow2 a theirs
    blkimg convert --bitmaps -O qcow2 a ours
    local name
    for name in b0 b1; do
        blkimg_extents a $name | both_read ours $name
        diff <(blkimg_extents theirs $name) <(blkimg_extents a $name)
    done
    diff <(qemu-img info --output=json ours | jq '."format-specific"') \
        <(qemu-img info --output=json theirs | jq '."format-specific"')
    qemu-img compare -q a ours
    qemu-img check -q ours
    run -1 blkimg convert --bitmaps -O raw a x
    assert_not_exists x
    run -1 blkimg convert --bitmaps -O qcow2 -o compat=0.10 a x
    assert_not_exists x
    python3 "$SRCDIR/tests/tools/mkimage.py" edit a 'bitmap[0].flags=old|1'
    run -1 --separate-stderr blkimg convert --bitmaps -O qcow2 a x
    [[ $stderr == *"'b0'"* ]]
    assert_not_exists x
    run -0 --separate-stderr blkimg convert --bitmaps --skip-broken-bitmaps -O qcow2 a x
    [[ -z $stderr ]]
    assert_equal "$(blkimg bitmap --list --output=json x | jq -r '.[].name')" b1
    # Into an image that has one of that name.
    run -1 --separate-stderr blkimg convert -n --bitmaps --skip-broken-bitmaps -O qcow2 a ours
    [[ $stderr == *"already exists: b1"* ]]
    diff <(qemu-img measure -O qcow2 --output=json theirs) <(blkimg measure -O qcow2 --output=json ours)
}

@test "bitmaps stay through amend, check and repair" {
    qemu-img create -q -f qcow2 a 10M
    blkimg bitmap --add -g 4k a b0
    blkimg bitmap --add a b1
    blkimg io -c 'write 1M 100k' -c 'write 9M 1M' a >out
    local before
    before=$(blkimg_extents a b0)
    blkimg amend -o refcount_bits=64,lazy_refcounts=on a
    blkimg_extents a b0 | both_read a b0
    assert_equal "$(blkimg_extents a b0)" "$before"
    blkimg check -r all a >out
    assert_equal "$(qemu_extents a b0)" "$before"
    # Leaks to repair.
    python3 "$SRCDIR/tests/tools/mkimage.py" edit a 'file_bytes=old+cluster' 'refcount[end/cluster-1]=1'
    blkimg check -r leaks a >out
    assert_equal "$(qemu_extents a b0)" "$before"
    blkimg check -r all a >out
    assert_equal "$(qemu_extents a b0)" "$before"
    # What grows is dirty: a disk that shrank and grew again may have had other data there.
    blkimg amend -o size=20M a
    assert_equal "$(qemu_extents a b0)" $'1048576 102400\n9437184 11534336'
    run -1 --separate-stderr blkimg amend -o compat=0.10 a
    qemu-img check -q a
}
