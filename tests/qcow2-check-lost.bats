#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg check" of qcow2 images that have lost guest data: it says what, keeps what is left, and gives it up on demand.

bats_require_minimum_version 1.5.0
load lib/common
load lib/qcow2-check

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
    gives_up_lost
    # The disk is what it was; of the snapshot the cluster reads as zeroes.
    qemu-img compare -q -f qcow2 -F raw a base.raw
    qemu-img convert -l one -O raw a a.raw
    fill one.raw 64k 64k 0
    cmp a.raw one.raw
    # A whole L2 table of the snapshot.
    cp base a
    python3 - "$SRCDIR/tests/tools" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import mkimage
with mkimage.Image("a") as image:
    image.put(image.target_get("snapshot[0].l1_offset"), 8, 1 << 50)
PY
    cp a before
    keeps_lost '0 to 8388607 of snapshot one'
    gives_up_lost
    qemu-img compare -q -f qcow2 -F raw a base.raw
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

@test "a compressed piece that cannot be read for once is not given up" {
    local nth
    need_unsanitized 'the preloaded object must come first'
    assert_file_exist "$TEST_TOOLS/fault-preload.so"
    qemu-img create -q -f qcow2 whole 1M
    qio whole 'write -c -P 4 0 64k'
    mkimage edit whole 'file_bytes=0x50000+100'
    qemu-img convert -O raw whole expected
    for ((nth = 1; ; nth++)); do
        cp whole a
        : >count
        run env LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES="$PWD/a" FAULT_CALL=read FAULT_N=$nth \
            FAULT_ONCE=1 FAULT_COUNT_FILE="$PWD/count" "$BLKIMG" check -r lost a
        (($(wc -l <count) >= nth)) || break
        ((status <= 1)) || fail "read $nth: status $status: $output"
        refute_output --partial lost
        cmp whole a || fail "read $nth changed the image"
    done
    ((nth > 3))
    qemu-img convert -O raw a got
    cmp expected got
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

# table_last KIND BYTES: moves the L2 table, refcount block or refcount table of "a" to the end of the file, of which
# that many bytes are then left.
table_last() {
    python3 - "$SRCDIR/tests/tools" "$@" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
import mkimage
kind, length = sys.argv[2], int(sys.argv[3])
target = {"l2": "l1[0]", "refblock": "reftable[0]", "reftable": "reftable_offset"}[kind]
with mkimage.Image("a") as image:
    old = image.target_get(target)
    at = image.append(image.read(old & mkimage.OFFSET, image.cluster))
    image.target_set(f"refcount[{(old & mkimage.OFFSET) // image.cluster}]", "0")
    image.target_set(target, str(at | old & mkimage.COPIED))
    image.write(at, image.read(old & mkimage.OFFSET, image.cluster)) if kind == "reftable" else None
    if kind == "refblock":
        image.target_set(f"refcount[{at // image.cluster}]", "1")
        image.target_set(f"refcount[{old // image.cluster}]", "0")
    image.target_set("file_bytes", str(at + length))
PY
}

@test "the file ends inside an L2 table" {
    local options
    for options in compat=1.1 compat=0.10 extended_l2=on; do
        qemu-img create -q -f qcow2 -o "$options" a 64M
        qio a 'write -P 7 0 1M'
        table_last l2 "$([[ $options == ext* ]] && echo 128 || echo 64)"
        cp a before
        # QEMU takes what is missing for zeroes.
        run -0 qemu-img convert -O raw a out
        rm out
        run -1 --separate-stderr blkimg convert -O raw a out
        [[ $stderr == *'reading the table at offset'*'the file is cut short at'* ]]
        assert_file_not_exists out
        run ! blkimg io -r -c 'read 0 64k' a
        run ! blkimg map a
        run ! blkimg io -c 'write 32M 64k' a
        cmp a before
        keeps_lost '524288 to 67108863'
        gives_up_lost
        qemu-io -r -c 'read -P 7 0 512k' -c 'read -P 0 512k 63M' a | grep -c '^read' | grep -qx 2
    done
    # With a backing file what is given up reads as zeroes, and not as what lies below.
    qemu-img create -q -f qcow2 below 1M
    qio below 'write -P 9 0 1M'
    qemu-img create -q -f qcow2 -b below -F qcow2 a
    qio a 'write -P 7 0 1M'
    table_last l2 64
    run -2 blkimg check -r all a
    gives_up_lost
    qemu-io -r -c 'read -P 7 0 512k' -c 'read -P 0 512k 512k' a | grep -c '^read' | grep -qx 2
}

@test "the file ends inside a refcount block or the refcount table" {
    local kind
    for kind in refblock reftable; do
        qemu-img create -q -f qcow2 base 8M
        qio base 'write -P 7 0 1M'
        cp base a
        table_last "$kind" 4096
        # Reading needs no counts; a writer must not take them for zeroes.
        run -0 blkimg compare a base
        run ! blkimg io -c 'write 4M 64k' a
        run -0 blkimg compare a base
        run -2 --separate-stderr blkimg check a
        [[ $stderr == *"lies past the end of the file, which is cut short at"* ]]
        run -0 blkimg check -r all a
        run -0 qemu-img check a
        run -0 qemu-img compare a base
    done
}
