#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The ids of backups go with a copy that is certain to show the same: mirror, convert and convert --bitmaps. From then on
# each of the two is by itself: what changes loses its id, and each disk's bitmap records its own writes.

bats_require_minimum_version 1.5.0
load lib/common
load lib/chain

setup() {
    common_setup
    chain_setup
}

# ids_are IMAGE ID PARENT
ids_are() {
    assert_equal "$(blkimg info --output=json "$1" | jq -r '.backup | "\(.id) \(.parent)"')" "$2 $3"
}

since_of() {
    blkimg bitmap --list --output=json "$1" | jq -r '.[].since'
}

@test "a mirror is the backup that its source is: overlays and the next backup go on from it" {
    blkimg mirror full moved
    ids_are moved "$FULL" null
    rm full
    blkimg rebase -u -b moved -F qcow2 inc
    blkimg compare inc disk
    blkimg mirror inc flat
    ids_are flat "$INC" null
    blkimg io -c 'write -P 3 0 64k' disk >out
    blkimg backup --bitmap=b --base=flat disk next
    blkimg compare next disk
    ids_are next "$(id_of next)" "$INC"
    blkimg check -q moved
    qemu-img check -q moved
}

@test "a mirror of the top layer is made on what its source was made on" {
    blkimg mirror --mode=top inc top
    ids_are top "$INC" "$FULL"
    blkimg compare top disk
    blkimg io -c 'write -P 3 0 64k' full >out
    run -1 --separate-stderr blkimg checksum top
    [[ $stderr == *"'top' was made on backup $FULL, but its backing file 'full' has no id"* ]] || fail "$stderr"
}

@test "what is written loses its id, and the other keeps it" {
    blkimg mirror full moved
    qemu-img rebase -u -b moved -F qcow2 inc
    blkimg io -c 'write -P 3 0 64k' moved >out
    ids_are moved null null
    run -1 blkimg checksum inc
    assert_output --partial 'the chain does not fit'
    blkimg rebase -u -b full -F qcow2 inc
    blkimg compare inc disk
    # A commit into one of them makes another backup of that one alone.
    blkimg mirror full third
    blkimg commit -q inc
    ids_are full "$INC" null
    ids_are third "$FULL" null
}

@test "a live mirror of a backup that the guest changes is none" {
    echo 'read 0 64k' >reads
    echo 'write -P 5 0 64k' >writes
    blkimg mirror --guest-io=reads full same >out
    ids_are same "$FULL" null
    blkimg mirror --force --guest-io=writes full other >out
    ids_are other null null
}

@test "no id where the source may show something else than its id stands for" {
    mv full first
    blkimg backup disk full
    blkimg mirror --trust inc one
    blkimg convert --trust -O qcow2 inc two
    blkimg convert -O qcow2 'json:{"driver":"qcow2","trust":"on","file":{"driver":"file","filename":"inc"}}' three
    mv first full
    blkimg mirror -U inc four
    blkimg convert -U -O qcow2 inc five
    local image
    for image in one two three four five; do
        ids_are "$image" null null
    done
    # Neither over a base that is no backup, which may have changed since, ...
    blkimg create -q -f qcow2 -b two -F qcow2 over
    blkimg backup --mode=top over part
    blkimg rebase -u -b two -F qcow2 part
    blkimg mirror part seven
    blkimg convert -O qcow2 part eight
    ids_are seven null null
    ids_are eight null null
    # ... nor over another file than the header names.
    run -0 blkimg convert -O qcow2 'json:{"driver":"qcow2","file":{"driver":"file","filename":"part"},"backing":{"driver":"qcow2","file":{"driver":"file","filename":"three"}}}' nine
    ids_are nine null null
}

@test "convert: a whole copy is the same backup, and one over the same base is made on that" {
    blkimg convert -O qcow2 inc whole
    ids_are whole "$INC" null
    blkimg convert -c -O qcow2 -B full -F qcow2 inc layer
    ids_are layer "$INC" "$FULL"
    cp full copy
    blkimg convert -O qcow2 -B copy -F qcow2 inc layer2
    ids_are layer2 "$INC" "$FULL"
    blkimg compare layer2 disk
    qemu-img convert -O qcow2 full plain
    blkimg convert -O qcow2 -B plain -F qcow2 inc other
    ids_are other null null
    blkimg snapshot -q -c s full
    blkimg convert -O qcow2 -l s full snapshot
    ids_are snapshot null null
    blkimg convert -O qcow2 full full two
    ids_are two null null
    blkimg convert --salvage -O qcow2 full salvaged
    ids_are salvaged null null
    blkimg create -q -f qcow2 larger 2M
    blkimg convert -n -O qcow2 full larger
    ids_are larger null null
    # A name in the header that leaves no room for ids is no reason to fail.
    local long=$PWD
    for _ in {1..60}; do long+=/././.; done
    while ! blkimg create -q -f qcow2 -o data_file="$long/data" long 1M 2>err; do long=${long%/.}; done
    blkimg convert -O qcow2 -o data_file="$long/data" full long
    blkimg mirror -o data_file="$long/dat2" full long2
    ids_are long2 null null
    blkimg convert -O raw inc raw
    blkimg compare -f raw -F qcow2 raw disk
}

@test "convert --bitmaps: the copy of a disk goes on with the chain, as does the disk" {
    blkimg io -c 'write -P 3 64k 64k' disk >out
    blkimg convert --bitmaps -O qcow2 disk copy
    assert_equal "$(since_of copy)" "$INC"
    ids_are copy null null
    blkimg io -c 'write -P 4 128k 64k' disk >out
    blkimg io -c 'write -P 5 512k 64k' copy >out
    blkimg backup --bitmap=b --base=inc disk disk.inc
    blkimg backup --bitmap=b --base=inc copy copy.inc
    blkimg compare disk disk.inc
    blkimg compare copy copy.inc
    # A backup of the one is no base for the other.
    run -1 --separate-stderr blkimg backup --bitmap=b --base=disk.inc copy none
    assert_file_not_exist none
    # Without the bitmap there is nothing to go on with.
    blkimg convert -O qcow2 disk plain
    blkimg bitmap --add plain b
    assert_equal "$(since_of plain)" null
}

@test "convert --bitmaps of a disk with a backing file: over the same one, or none" {
    blkimg create -q -f qcow2 base 1M
    blkimg io -c 'write -P 7 512k 512k' base >out
    blkimg create -q -f qcow2 base2 1M
    blkimg create -q -f qcow2 -b base -F qcow2 over
    blkimg backup --new-bitmap=d over point
    blkimg io -c 'write -P 3 64k 64k' over >out
    blkimg convert --bitmaps -O qcow2 over flat
    blkimg convert --bitmaps -O qcow2 -B base -F qcow2 over layer
    blkimg convert --bitmaps -O qcow2 -B base2 -F qcow2 over other
    blkimg convert --bitmaps -O qcow2 'json:{"driver":"qcow2","file":{"driver":"file","filename":"over"},"backing":{"driver":"qcow2","file":{"driver":"file","filename":"base2"}}}' override
    local image
    for image in flat layer; do
        blkimg backup --bitmap=d --base=point "$image" "$image.inc"
        blkimg compare "$image.inc" over
    done
    for image in other override; do
        run -1 --separate-stderr blkimg backup --bitmap=d --base=point "$image" none
        [[ ${stderr_lines[0]} == *"bitmap 'd' counts from no backup"* ]] || fail "$stderr"
    done
    # The layer's backing file can be moved, as that of the disk.
    blkimg io -c 'write -P 4 128k 64k' layer >out
    mv base moved
    blkimg rebase -u -b moved -F qcow2 layer
    blkimg backup --bitmap=d --base=layer.inc layer layer2.inc
    blkimg compare layer layer2.inc
}
