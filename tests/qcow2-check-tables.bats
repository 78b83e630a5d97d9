#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg check" of qcow2 images whose header, snapshot table or bitmaps are wrong, or whose structures overlap.

bats_require_minimum_version 1.5.0
load lib/common
load lib/qcow2-check

@test "any two structures in one place" {
    make_base
    local -A place=(
        [header]=0 [L1]='l1_offset' [reftable]='reftable_offset' [snapshots]='snapshots_offset'
    )
    place[refblock]=$(mkimage get base 'reftable[0]')
    place[L2]=$(($(mkimage get base 'l1[0]' | python3 -c 'print(int(input()) & 0xfffffffffffe00)')))
    place[snapshot-L1]=$(mkimage get base 'snapshot[0].l1_offset')
    place[directory]=$(mkimage get base bitmaps.directory_offset)
    place[bitmap-table]=$(mkimage get base 'bitmap[0].table_offset')
    place[data]=$((0x50000))
    local -A pointer=(
        [L1]=l1_offset [reftable]=reftable_offset [snapshots]=snapshots_offset [refblock]='reftable[0]'
        [L2]='l1[0]' [snapshot-L1]='snapshot[0].l1_offset' [directory]=bitmaps.directory_offset
        [bitmap-table]='bitmap[0].table_offset' [bitmap-data]='bitmap_table[0][0]' [data]='l2[0]'
    )
    local a b pairs=0
    for a in "${!pointer[@]}"; do
        for b in "${!place[@]}"; do
            [[ $a != "$b" ]] || continue
            # An offset of 0 in a table is none at all.
            [[ $b != header || ' refblock L2 bitmap-data data snapshot-L1 ' != *" $a "* ]] || continue
            echo "$a on $b"
            pairs=$((pairs + 1))
            cp base a
            mkimage edit a "${pointer[$a]}=${place[$b]}"
            run --separate-stderr blkimg check a
            # Some make a structure unreadable; the check says so and not that all is well.
            [[ $status == 2 && -n $stderr ]] || fail "$a on $b: status $status: $stderr"
            run --separate-stderr blkimg check -r all a
            ((status <= 3))
            run --separate-stderr blkimg check a
            ((status <= 3))
        done
    done
    ((pairs == 86))
}

# Data that look like entries with wrong flags, where a table is said to go on.
@test "a repair leaves data alone that a table of the wrong length or place covers" {
    local way change
    python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex("80000000000001ff") * 65536)' >words
    qemu-img create -q -f qcow2 base 64M
    qio base 'write -s words 0 512k'
    qemu-img snapshot -c one base
    qio base 'write -s words 256k 512k'
    qemu-img bitmap --add base b0
    for change in 'l1_entries=old+8192' 'l1_entries=old+20000' 'l1_offset=0x70000' 'l1[0]=0x70000|COPIED' \
        'snapshot[0].l1_entries=old+8192' 'snapshot[0].l1_offset=0x70000' 'reftable_clusters=20' \
        'reftable_offset=0x70000' 'reftable[0]=0x70000' 'snapshots_offset=0x70000' \
        'bitmaps.directory_offset=0x70000' 'bitmap[0].table_offset=0x70000'; do
        for way in leaks all; do
            echo "$change -r $way"
            cp base a
            mkimage edit a "$change"
            run blkimg check -r "$way" a
            ((status == 0 || status == 2 || status == 3))
            [[ $change != l1_entries* ]] || assert_equal "$status" 2
            cmp -n $((0x80000)) -i $((0x50000)) a base
            # Seen through the right tables again, nothing is missing.
            [[ $change == l1* ]] || continue
            mkimage edit a l1_offset="$(mkimage get base l1_offset)" \
                l1_entries="$(mkimage get base l1_entries)" "l1[0]=$(mkimage get base 'l1[0]')"
            qemu-img compare -q a base
        done
    done
    run -0 python3 "$SRCDIR/tests/tools/repairfuzz.py" --count 60
}

@test "QEMU opens what a check calls whole, whatever field is wrong" {
    run -0 python3 "$SRCDIR/tests/tools/openparity.py" --blkimg "$(realpath "$BLKIMG")"
    echo "# ${lines[-1]}" >&3
}

@test "the extensions that are left end with an end mark" {
    # The feature names move up, and end where the old layout has the second format name.
    qemu-img create -q -f qcow2 base 2M
    qemu-img create -q -f qcow2 -b base -F raw a 2M
    python3 - "$SRCDIR/tests/tools" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import mkimage
with mkimage.Image("a") as image:
    image.target_set("backing_offset", "0x300")
    image.write(0x300, b"base")
    image.add_extension(mkimage.EXT_BACKING_FORMAT, b"qcow2".ljust(9, b"\0"))
PY
    # The last one counts, as for QEMU.
    run -0 blkimg info --output=json a
    assert_equal "$(jq -r '."backing-filename-format"' <<<"$output")" qcow2
    run -2 --separate-stderr blkimg check a
    assert_equal "$stderr" 'ERROR header extension 0xe2792aca occurs twice, with different content'
    run -0 blkimg check -r all a
    run -0 blkimg check a
    run -0 qemu-img check a
    run -0 qemu-img info --output=json a
    assert_equal "$(jq -r '."backing-filename-format"' <<<"$output")" qcow2
}

@test "snapshot tables" {
    make_base
    finds 2 'snapshot[0].l1_offset=old+512'
    finds 2 'snapshot[0].l1_offset=1<<50'
    finds 2 'snapshot[0].l1_entries=0xffffffff'
    finds 2 'snapshot[0].extra_bytes=5000'
    finds 2 'snapshot[0].name_bytes=0xffff'
    finds 2 'snapshots_offset=1<<50'
    finds_and_repairs 2 'snapshot_count=2'
    # Nothing of it is freed while it cannot be read.
    finds 2 'snapshot[0].extra_bytes=5000'
    run -2 blkimg check -r all a
    mkimage edit a 'snapshot[0].extra_bytes=24'
    same_content
    run -0 blkimg check -r all a
    is_whole
    # A table as version 2 wrote it, in an image of version 3.
    mkimage new a
    mkimage snapshots a 3 extra_bytes=0
    run -2 blkimg check a
    run -0 blkimg check -r all a
    run -0 blkimg check a
    run -0 qemu-img check a
    run -0 qemu-img snapshot -l a
    assert_line --regexp '^3 +s3 '
}

@test "bitmaps" {
    make_base
    finds 2 'bitmap[0].table_offset=old+512'
    finds 2 'bitmap[0].table_offset=1<<50'
    finds 2 'bitmap_table[0][0]=old|4'
    finds 2 'bitmap_table[0][0]=end'
    finds 2 'bitmap_table[0][0]=0x50200'
    finds 2 'bitmap[0].granularity_bits=70'
    finds 2 'bitmap[0].name_bytes=0'
    finds 2 'bitmap[0].name_bytes=9000'
    finds 2 'bitmaps.count=0'
    finds 2 'bitmaps.count=70000'
    finds 2 'bitmaps.directory_bytes=1<<40'
    finds 2 'bitmaps.directory_offset=1<<50'
}

@test "bitmaps that keep QEMU from opening the image are removed" {
    local change left
    qemu-img create -q -f qcow2 base 8M
    qio base 'write -P 1 0 300k'
    qemu-img bitmap --add base b0
    qemu-img bitmap --add base b1
    while read -r left change; do
        echo "$change"
        finds 2 "$change"
        [[ $change == *'1<<50' ]] || run ! qemu-img info a
        run -0 --separate-stderr blkimg check -r all a
        [[ -z $stderr ]]
        run -0 qemu-img check a
        run -0 qemu-img info --output=json a
        assert_equal "$(jq -c '[."format-specific".data.bitmaps // [] | .[].name]' <<<"$output")" "$left"
        run -0 blkimg check a
        qemu-img compare -q a base
    done <<'EOF'
["b0","b1"] bitmap[0].table_entries=old+1
["b0","b1"] bitmap[0].flags=old|4
["b0","b1"] bitmaps.reserved=5
["b1"] bitmap[0].type=3
["b0"] bitmap[1].type=3
["b1"] bitmap[0].flags=old|16
["b1"] bitmap[0].granularity_bits=70
["b1"] bitmap[0].table_offset=old+512
["b1"] bitmap[0].table_entries=0
["b1"] bitmap[0].table_entries=100000000
["b1"] bitmap[0].table_offset=1<<50
["b1"] bitmap_table[0][0]=old|4
[] bitmaps.count=0
[] bitmaps.count=3
[] bitmaps.directory_offset=1<<50
[] bitmap[0].name_bytes=0
EOF
}

@test "a failing medium costs no bitmap that is whole, or the message says so" {
    local call nth names
    need_unsanitized 'the preloaded object must come first'
    assert_file_exist "$TEST_TOOLS/fault-preload.so"
    qemu-img create -q -f qcow2 damaged 1M
    qemu-img bitmap --add damaged b0
    qemu-img bitmap --add damaged b1
    mkimage edit damaged 'bitmap[0].type=3'
    for call in read write sync; do
        for ((nth = 1; ; nth++)); do
            cp damaged a
            : >count
            run env LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES="$PWD/a" FAULT_CALL=$call \
                FAULT_N=$nth FAULT_ONCE=1 FAULT_COUNT_FILE="$PWD/count" "$BLKIMG" check -r all a
            (($(wc -l <count) >= nth)) || break
            names=$(blkimg info --output=json a | jq -r '."format-specific".data.bitmaps // [] | .[].name')
            if [[ $status == 0 ]]; then
                assert_equal "$names" b1
            else
                [[ $names == *b1 || $output == *"'a' may have no bitmaps any more"* ]] ||
                    fail "$call $nth: status $status: $output"
            fi
        done
        ((nth > 3))
    done
}

@test "a disk without a sector has no bitmaps" {
    qemu-img create -q -f qcow2 a 0
    run -1 --separate-stderr blkimg bitmap --add a b0
    [[ $stderr == *'a disk without a sector has no bitmaps' ]]
    run -0 qemu-img info a
}

@test "extra data of a bitmap" {
    mkimage new base
    cp base a
    mkimage bitmaps a 2 extra_bytes=8 flags=4
    run ! qemu-img info a
    run -2 --separate-stderr blkimg check a
    [[ $stderr == *"bitmap 'b0' has extra data, or the flag for it"* ]]
    # The flag says that it may be ignored.
    run -0 blkimg check -r all a
    run -0 qemu-img info --output=json a
    assert_equal "$(jq -c '[."format-specific".data.bitmaps[].name]' <<<"$output")" '["b0","b1"]'
    cp base a
    mkimage bitmaps a 2 extra_bytes=8
    run ! qemu-img info a
    run -2 blkimg check a
    run -0 blkimg check -r all a
    assert_line "Removing bitmap 'b0': it has unknown extra data"
    run -0 qemu-img check a
}

@test "snapshot tables past the limits are cut down" {
    mkimage new a
    mkimage snapshots a 3 extra_bytes=2000
    run -2 blkimg check a
    run -0 --separate-stderr blkimg check -r all a
    [[ -z $stderr ]]
    run -0 qemu-img check a
    run -0 qemu-img snapshot -l a
    assert_line --regexp '^3 +s3 '
    mkimage new b
    mkimage snapshots b 65540
    run -2 blkimg check b
    # What is too many is named, and nothing else is lost.
    run -0 --separate-stderr blkimg check -r all b
    assert_line "Removing snapshot 's65540': it is past the limits"
    refute_line "Removing snapshot 's65536': it is past the limits"
    run -0 qemu-img check b
    assert_equal "$(mkimage get b snapshot_count)" 65536
    mkimage new c
    mkimage snapshots c 65536 name_bytes=1100
    run -2 --separate-stderr blkimg check c
    ((${#stderr_lines[@]} < 110))
    run -0 --separate-stderr blkimg check -r all c
    run -0 blkimg check c
    run -0 qemu-img check c
    (($(mkimage get c snapshot_count) > 50000))
}
