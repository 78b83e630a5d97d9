#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg check" and its repairs of qcow2 images: wrong refcounts and entries are found, and put right without losing
# data.

bats_require_minimum_version 1.5.0
load lib/common
load lib/qcow2-check

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
    [[ $stderr == *"two L1 entries point to the L2 table at"* ]]
    run ! blkimg io -c 'write -P 3 0 64k' a
    run -2 blkimg check -r all a
}
