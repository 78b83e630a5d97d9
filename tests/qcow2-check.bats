#!/usr/bin/env bats
# "blkimg check" and its repairs of qcow2 images: each kind of error is found, and put right without losing data.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img qemu-io
    blkimg --help | grep -Eq '^Supported formats:.* qcow2( |$)' || skip 'no qcow2 in this build'
}

mkimage() {
    python3 "$SRCDIR/tests/tools/mkimage.py" "$@"
}

qio() {
    local file=$1 command commands=()
    shift
    for command; do commands+=(-c "$command"); done
    qemu-io "${commands[@]}" "$file" >/dev/null
}

# An image "base" with all structures: shared and own L2 tables, compressed pieces, zeroes, a snapshot and a bitmap.
# Its content is in "base.raw", that of the snapshot in "one.raw". Options go to create.
make_base() {
    qemu-img create -q -f qcow2 "$@" base 8M
    qio base 'write -P 1 0 300k' 'write -P 2 1M 64k' 'write -z 2M 128k' 'write -P 3 3M 200k' 'write -P 8 7M 64k'
    qio base 'write -c -P 4 4M 64k' 'write -c -P 5 4160k 64k' 2>/dev/null || true
    qemu-img snapshot -c one base
    qio base 'write -P 6 64k 64k' 'write -P 7 5M 128k' 'discard 3M 64k'
    qemu-img bitmap --add base b0 2>/dev/null || true
    qemu-img check -q base
    qemu-img convert -O raw base base.raw
    qemu-img convert -l one -O raw base one.raw
}

# finds STATUS CHANGE...: a copy "a" of the base with these changes; the check must end with that status and say
# something about it, in both forms of output.
finds() {
    local want=$1
    shift
    cp base a
    mkimage edit a "$@"
    cp a before
    run "-$want" --separate-stderr blkimg check a
    [[ $want == 0 || -n $stderr ]] || fail "nothing said about $*"
    run "-$want" --separate-stderr blkimg check --output=json a
    jq -e '."check-errors" == 0' <<<"$output" >/dev/null
    cmp a before || fail 'a check without -r wrote'
}

# Both programs find nothing wrong with "a", and its content is that of the base.
is_whole() {
    run -0 --separate-stderr blkimg check a
    run -0 --separate-stderr qemu-img check a
    same_content
}

same_content() {
    qemu-img convert -O raw a a.raw
    cmp a.raw base.raw
    qemu-img convert -l one -O raw a a.raw
    cmp a.raw one.raw
}

# repairs WAY: "check -r WAY" of "a" ends with 0, after which it is whole. Run again it has nothing to do.
repairs() {
    run -0 --separate-stderr blkimg check -r "$1" a
    [[ -z $stderr ]] || fail "-r $1 said: $stderr"
    is_whole
    run -0 --separate-stderr blkimg check -r "$1" a
    refute_line --partial 'repaired'
}

# finds and repairs in one; $1 is the status.
finds_and_repairs() {
    finds "$@"
    echo "repairing $*"
    repairs all
}

@test "an image without errors is left alone" {
    make_base
    cp base a
    repairs leaks
    repairs all
    cmp a base
    # Only the marks.
    finds 0 'incompatible=old|3'
    repairs all
    assert_equal "$(mkimage get a incompatible)" 0
}

@test "leaks" {
    make_base
    finds 3 'file_bytes=end+3*cluster' 'refcount[end//cluster-1]=1' 'refcount[end//cluster-2]=7'
    repairs leaks
    finds_and_repairs 3 'file_bytes=end+3*cluster' 'refcount[end//cluster-1]=1' 'refcount[end//cluster-2]=7'
    finds_and_repairs 3 'refcount[0]=2'
    # COPIED is compared with the count that is stored, as qemu-img does.
    qemu-img create -q -f qcow2 base 8M
    qio base 'write -P 1 0 300k'
    local change
    for change in 3,old 2,'old|COPIED'; do
        finds "${change%,*}" 'refcount[4]=2' 'l1[0]=old&~COPIED' 'refcount[5]=9' 'l2[0]=old&~COPIED' \
            'refcount[6]=9' "l2[1]=old&~COPIED" "l2[1]=${change#*,}"
        run -"${change%,*}" qemu-img check a
        run -0 --separate-stderr blkimg check -r leaks a
        [[ -z $stderr ]]
        assert_line 'Repairing OFLAG_COPIED data cluster: l2_entry=50000 refcount=1'
        run -0 blkimg check a
        run -0 qemu-img check a
        qemu-img compare -q a base
    done
}

@test "-r leaks frees what is leaked and leaves errors" {
    make_base
    finds 2 'file_bytes=end+cluster' 'refcount[end//cluster-1]=1' 'refcount[l1_offset//cluster]=0'
    run -2 --separate-stderr blkimg check -r leaks a
    [[ -n $stderr ]]
    assert_line '    1 leaked clusters'
    assert_equal "$(mkimage get a 'refcount[end//cluster-1]' 'refcount[l1_offset//cluster]' | xargs)" '0 0'
    same_content
    repairs all
}

@test "refcounts that are too low, for all widths" {
    local bits
    for bits in 4 8 16 32 64; do
        make_base -o "refcount_bits=$bits"
        finds_and_repairs 2 'refcount[0]=0'
        finds_and_repairs 2 'refcount[l1_offset//cluster]=0' 'refcount[reftable_offset//cluster]=0'
        finds_and_repairs 2 'refcount[2]=0'
        finds_and_repairs 2 'refcount[5]=old-1'
        finds_and_repairs 2 'refcount[5]=0' 'refcount[6]=0' 'refcount[7]=old+1'
        rm base
    done
    # One bit: nothing can be shared.
    qemu-img create -q -f qcow2 -o refcount_bits=1 base 8M
    qio base 'write -P 1 0 300k' 'write -P 2 4M 64k'
    qemu-img convert -O raw base base.raw
    finds 2 'refcount[5]=0' 'refcount[0]=0'
    run -0 blkimg check -r all a
    qemu-img check -q a
    qemu-img compare -q a base
    finds 2 'l2[0]=old&~COPIED' 'l2[1]=5*cluster'
    run -1 --separate-stderr blkimg check -r all a
    [[ $stderr == *'refcount_bits'* ]]
}

@test "refcount structures beyond repair are rebuilt" {
    local size
    for size in 4k 64k; do
        make_base -o "cluster_size=$size"
        finds_and_repairs 2 'reftable[0]=0'
        finds_and_repairs 2 'reftable[0]=old+512'
        finds_and_repairs 2 'reftable[0]=old|1'
        finds_and_repairs 2 'reftable[0]=1<<50'
        finds_and_repairs 2 'reftable[0]=l1_offset'
        finds_and_repairs 2 'reftable[0]=reftable_offset'
        finds_and_repairs 2 'reftable[1]=1<<40'
        finds_and_repairs 2 'reftable_clusters=0'
        finds_and_repairs 2 'reftable_offset=l1_offset'
        finds_and_repairs 2 'reftable_offset=0'
        finds_and_repairs 2 'reftable_offset=1<<40'
        # All of the table is rubbish.
        cp base a
        mkimage edit a 'u64[reftable_offset]=0x1234567812345678' 'u64[reftable_offset+8]=0xffffffffffffffff' \
            'u64[reftable_offset+16]=3*cluster'
        run -2 blkimg check a
        repairs all
        rm base
    done
}

@test "COPIED flags and reserved bits" {
    local options
    for options in compat=1.1 compat=0.10 extended_l2=on; do
        make_base -o "$options"
        finds_and_repairs 2 'l1[0]=old^COPIED'
        finds_and_repairs 2 'l2[0]=old^COPIED' 'l2[1]=old^COPIED' 'l2[80]=old^COPIED'
        finds_and_repairs 2 'l2[40]=old|COPIED'
        finds_and_repairs 2 'l1[0]=old|1<<60|1'
        finds_and_repairs 2 'l2[0]=old|1<<58' 'l2[1]=old|0x80'
        rm base
    done
    # With the image's refcounts wrong as well.
    make_base
    finds_and_repairs 2 'l2[0]=old^COPIED' 'l1[0]=old^COPIED' 'refcount[0]=0' 'refcount[6]=0' 'refcount[5]=12'
    # Many references to one cluster, none of which says so.
    qemu-img create -q -f qcow2 b 8M
    qio b 'write -P 1 0 1M'
    mkimage edit b 'l2[1]=0x50000|COPIED' 'l2[2]=0x50000|COPIED' 'l2[3]=0x50000|COPIED' 'l2[4]=0x50000'
    run -2 blkimg check b
    run -0 blkimg check -r all b
    qemu-img check -q b
    qemu-io -r -c 'read -P 1 0 1M' b | grep -q 'read 1048576/1048576'
}

# snapshot_entry TABLE BITS: sets bits of the first entry of the snapshot's L1, or of the L2 table that it leads to.
snapshot_entry() {
    python3 - "$@" <<'EOF'
import struct, sys
with open("a", "r+b") as f:
    def u64(at):
        f.seek(at)
        return struct.unpack(">Q", f.read(8))[0]
    at = u64(u64(64))
    if sys.argv[1] == "l2":
        at = u64(at) & 0x00fffffffffffe00
    value = u64(at) | int(sys.argv[2], 0)
    f.seek(at)
    f.write(struct.pack(">Q", value))
EOF
}

@test "reserved bits in the tables of a snapshot" {
    local table
    make_base
    for table in 'l1 1' 'l1 0x1000000000000000' 'l2 0x0400000000000000' 'l2 0x80'; do
        cp base a
        # shellcheck disable=SC2086 # a list
        snapshot_entry $table
        run -2 qemu-img check a
        run -2 --separate-stderr blkimg check a
        [[ $stderr == *"entry of a snapshot has reserved bits set"* ]]
        run -2 blkimg check -r all a
    done
}

@test "an L2 table at two places of the disk" {
    qemu-img create -q -f qcow2 a 1G
    qio a 'write -P 1 0 64k' 'write -P 2 512M 64k'
    python3 - <<'EOF'
import struct
with open("a", "r+b") as f:
    f.seek(40)
    l1, = struct.unpack(">Q", f.read(8))
    f.seek(l1)
    entry = f.read(8)
    f.seek(l1 + 8)
    f.write(entry)
EOF
    run -2 --separate-stderr blkimg check a
    [[ $stderr == *"two L1 entries have the L2 table at"* ]]
    run ! blkimg io -c 'write -P 3 0 64k' a
    run -2 blkimg check -r all a
}

# lost RANGE WAY...: guest data of "a" is lost, which both commands say; -r leaks and -r all leave the file as it is,
# to the byte.
keeps_lost() {
    local way
    for way in leaks all; do
        run -2 --separate-stderr blkimg check -r "$way" a
        [[ $stderr == *"guest bytes $1 are lost: "* ]] || fail "$way: $stderr"
        cmp a before || fail "-r $way changed the image"
    done
    run -2 --separate-stderr blkimg check --output=json a
    jq -e '."lost-bytes" > 0' <<<"$output" >/dev/null
}

# Given up on demand, the lost range reads as zeroes and the rest is what it was.
gives_up_lost() {
    run -0 --separate-stderr blkimg check -r lost a
    assert_line --regexp '^[0-9]+ bytes of guest data are given up as lost$'
    [[ -z $stderr ]]
    run -0 blkimg check a
    refute_output --partial lost
    run -0 qemu-img check a
}

@test "subclusters that cannot be" {
    make_base -o extended_l2=on
    finds 2 'subclusters[0]=old|1<<35'
    keeps_lost '0 to 65535'
    gives_up_lost
    same_content
    finds 2 'l2[16]=0'
    run -2 blkimg check -r all a
    gives_up_lost
    qemu-io -r -c 'read -P 0 1M 64k' a | grep -q 'read 65536/65536'
    finds 2 'subclusters[70]=1'
    keeps_lost '4587520 to 4653055'
    gives_up_lost
    same_content
}

@test "data clusters where none can be" {
    local options place
    for options in compat=1.1 compat=0.10 extended_l2=on; do
        make_base -o "$options"
        for place in '1<<50' 'end' '(old&~COPIED)+512|COPIED'; do
            finds 2 "l2[112]=$place"
            echo "repairing $options $place"
            # The cluster that seems leaked may be what the entry meant.
            keeps_lost '7340032 to 7405567'
            gives_up_lost
            qemu-io -r -c 'read -P 0 7M 64k' a | grep -q 'read 65536/65536'
            # The rest is what it was.
            qemu-img convert -O raw a a.raw
            fill a.raw 7M 64k 8
            cmp a.raw base.raw
        done
        rm base
    done
}

@test "an image cut in half is not repaired by writing zeroes" {
    qemu-img create -q -f qcow2 base 1M
    qio base 'write -P 7 0 1M'
    finds 2 'file_bytes=800000'
    run -2 --separate-stderr blkimg check a
    # One range, and each cluster counts once.
    assert_equal "$stderr" "ERROR guest bytes 524288 to 1048575 are lost: they lie past the end of the file, which is \
cut short at 800000"
    assert_line '8 errors were found on the image.'
    keeps_lost '524288 to 1048575'
    # What else is wrong is mended, and the file does not grow: what is missing would become zeroes.
    mkimage edit a 'refcount[6]=0' 'l2[3]=old^COPIED' 'l2[4]=old|1<<58'
    run -2 --separate-stderr blkimg check -r all a
    assert_line 'Repairing cluster 6 refcount=0 reference=1'
    assert_line --partial '3 corruptions'
    assert_equal "$(stat -c %s a)" 800000
    cmp a before
    mkimage edit a 'reftable[0]=1<<50'
    run -2 --separate-stderr blkimg check -r all a
    assert_line --partial 'The refcounts are left as they are'
    assert_equal "$(stat -c %s a)" 800000
    cp before a
    gives_up_lost
    qemu-io -r -c 'read -P 7 0 512k' -c 'read -P 0 512k 512k' a | grep -c 'read 524288/524288' | grep -qx 2
}

@test "guest data that is lost in a snapshot, or shared with one" {
    make_base
    cp base a
    # Cluster 1 of the snapshot, which has a table of its own since.
    python3 - <<'PY'
import struct
with open("a", "r+b") as f:
    def u64(at):
        f.seek(at)
        return struct.unpack(">Q", f.read(8))[0]
    l2 = u64(u64(u64(64))) & 0x00fffffffffffe00
    f.seek(l2 + 8)
    f.write(struct.pack(">Q", 1 << 50))
PY
    cp a before
    keeps_lost '65536 to 131071 of snapshot one'
    qemu-img create -q -f qcow2 a 1M
    qio a 'write -P 7 0 1M'
    qemu-img snapshot -c one a
    qemu-img snapshot -c two a
    mkimage edit a 'l2[3]=1<<50'
    cp a before
    # All share the table: one error.
    run -2 blkimg check a
    assert_line '1 errors were found on the image.'
    keeps_lost '196608 to 262143'
    gives_up_lost
}

@test "findings of a kind are bounded" {
    qemu-img create -q -f qcow2 -o cluster_size=512 a 1M
    qio a 'write 0 512k'
    python3 - <<'PY'
import struct
with open("a", "r+b") as f:
    def u64(at):
        f.seek(at)
        return struct.unpack(">Q", f.read(8))[0]
    l1 = u64(40)
    for table in range(16):
        l2 = u64(l1 + 8 * table) & 0x00fffffffffffe00
        for i in range(0, 64, 2):
            f.seek(l2 + 8 * i)
            f.write(struct.pack(">Q", (1 << 50) + 1024 * i))
PY
    run -2 --separate-stderr blkimg check a
    assert_line '512 errors were found on the image.'
    assert_line '512 leaked clusters were found on the image.'
    assert_equal "${#stderr_lines[@]}" 202
    assert_equal "${stderr_lines[-1]}" 'and 412 more: Leaked cluster ...'
    assert_equal "${stderr_lines[-2]}" 'and 412 more: guest bytes ...'
}

@test "compressed pieces past the end" {
    make_base
    finds 2 'l2[64]=COMPRESSED|(end+5)|(1<<54)'
    finds 2 'l2[64]=COMPRESSED|(1<<50)|(1<<54)'
    # An end within the piece's last sector is none: its length is in sectors.
    qemu-img create -q -f qcow2 a 1M
    qio a 'write -c -P 4 0 64k'
    mkimage edit a 'file_bytes=0x50000+100'
    run -0 blkimg check a
    run -0 qemu-img check a
}

@test "L1 entries and tables that cannot be" {
    make_base
    finds 2 'l1[0]=old+512'
    finds 2 'l1[0]=1<<50|COPIED'
    # What seems leaked now may be what the entry meant: nothing is freed.
    local way
    for way in leaks all; do
        cp before a
        run -2 --separate-stderr blkimg check -r "$way" a
        [[ -n $stderr ]]
        mkimage edit a "l1[0]=$(mkimage get base 'l1[0]')"
        same_content
        run -0 blkimg check -r all a
        is_whole
    done
}

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
    assert_line "snapshot 's65540' is removed: it is one too many"
    refute_line "snapshot 's65536' is removed: it is one too many"
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

@test "external data files" {
    qemu-img create -q -f qcow2 -o data_file=data base 8M
    qio base 'write -P 1 0 300k' 'write -P 2 4M 64k'
    finds 2 'l2[1]=old+cluster'
    keeps_lost '65536 to 131071'
    gives_up_lost
    qemu-io -r -c 'read -P 1 0 300k' a | grep -q 'read 307200/307200'
    finds 2 'l2[1]=COMPRESSED|5'
    keeps_lost '65536 to 131071'
    # A data file that has lost its end.
    finds 0
    truncate -s 4M data
    keeps_lost '4194304 to 4259839'
    run ! blkimg convert -O raw a out
    assert_output --partial 'the file is cut short at 4194304'
    assert_file_not_exists out
    gives_up_lost
    run -0 blkimg io -r -c 'read -P 0 4M 64k' -c 'read -P 1 0 300k' a
    truncate -s 8M data
    finds 2 'l2[1]=old&~COPIED'
    run -0 blkimg check -r all a
    run -0 qemu-img check a
}

@test "statuses" {
    make_base
    truncate -s 1M raw
    run -63 blkimg check -f raw raw
    run -1 blkimg check nosuch
    run -1 blkimg check -f qcow2 raw
    cp base a
    chmod 400 a
    run -0 blkimg check a
    cp base b
    mkimage edit b 'refcount[0]=0' 'refcount[6]=50'
    run -2 blkimg check b
    # A repair that cannot be written.
    cat >rules <<'RULES'
[inject-error]
iotype = "write"
errno = "5"
RULES
    run --separate-stderr blkimg check -r all blkdebug:rules:b
    ((status == 1 || status == 5))
    [[ -n $stderr ]]
    run -2 blkimg check b
}

# crash_states WAY: in every state that a killed "check -r WAY" of "a" leaves, the data is there, what qemu-img
# finds wrong is not worse than before, and a repair run again makes it whole.
crash_states() {
    need python3
    local states=${QCOW2_CRASH_STATES:-120}
    cat >judge <<JUDGE
#!/bin/sh
cd "\$1" || exit 1
qemu-img compare -q -f qcow2 -F raw a "$T/base.raw" || exit 1
"$BLKIMG" check -q -r all a >/dev/null || { echo "the repair cannot be run again"; exit 1; }
"$BLKIMG" check -q a && qemu-img check -q a || { echo "not whole after the second repair"; exit 1; }
qemu-img compare -q -f qcow2 -F raw a "$T/base.raw" || exit 1
qemu-img convert -l one -O raw a one.raw && cmp one.raw "$T/one.raw"
JUDGE
    chmod +x judge
    # The image is small, so that memory is enough for the states.
    run -0 python3 "$SRCDIR/tests/tools/crashstates.py" run --files a --states "$states" --seed 7 \
        --check "$T/judge" -- "$(realpath "$BLKIMG")" check -r "$1" a
    echo "# $1: ${lines[-1]}" >&3
}

@test "crash states of check -r all" {
    need_unsanitized 'preloading'
    make_base -o cluster_size=4k
    cp base a
    mkimage edit a 'refcount[0]=0' 'l2[0]=old^COPIED' 'l2[17]=old^COPIED' 'l1[0]=old^COPIED' 'reftable[0]=0'
    crash_states all
}

@test "crash states of check -r all, sound structure" {
    need_unsanitized 'preloading'
    make_base -o cluster_size=4k
    cp base a
    mkimage edit a 'refcount[3]=0' 'refcount[9]=77' 'refcount[12]=0' 'l2[3]=old^COPIED' 'l2[18]=old^COPIED'
    crash_states all
}

@test "crash states of check -r leaks" {
    need_unsanitized 'preloading'
    make_base -o cluster_size=4k
    cp base a
    mkimage edit a 'refcount[3]=5' 'refcount[400]=77' 'refcount[900]=3' 'refcount[1500]=1' 'file_bytes=1600*4096'
    crash_states leaks
}

@test "memory is that of one array of counts" {
    need_unsanitized 'memory use'
    qemu-img create -q -f qcow2 -o preallocation=metadata,cluster_size=64k big 1T
    # 2^24 clusters: 32 MiB of counts of 16 bits, 4 MiB for what they are used for.
    run -0 python3 - "$BLKIMG" <<'PY'
import resource, subprocess, sys
subprocess.run([sys.argv[1], "check", "-q", "big"], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
PY
    echo "# peak memory of a check of 1 TiB: $output KiB" >&3
    ((output < 56 * 1024))
}
