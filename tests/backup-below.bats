#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# A bitmap records writes. What changes a disk in another way (an unsafe rebase, another data file, lost data that is
# given up) must not end in an incremental backup that lacks it: the bitmap then counts from no backup any more. What
# is known to show the same keeps it.

bats_require_minimum_version 1.5.0
load lib/common
load lib/chain

setup() {
    common_setup
    need qemu-img jq
    for i in 0 1; do
        blkimg create -q -f qcow2 "b$i" 1M
        blkimg io -c "write -P 1$i 0 1M" "b$i" >out
    done
    make_disk -b b0 -F qcow2
}

# make_disk OPTIONS: a disk with the bitmap d, its full backup, and a write since.
make_disk() {
    rm -f disk full inc
    blkimg create -q -f qcow2 "$@" disk 1M
    blkimg io -c 'write -P 8 256k 64k' disk >out
    blkimg backup --new-bitmap=d disk full
    blkimg io -c 'write -P 9 0 64k' disk >out
}

# goes_on [BASE]: the next incremental backup is made and shows what the disk does.
goes_on() {
    blkimg backup --bitmap=d --base="${1-full}" disk inc
    blkimg compare inc disk
}

# has_lost_count: it is refused, and a new full backup starts over.
has_lost_count() {
    run -1 --separate-stderr blkimg backup --bitmap=d --base=full disk inc
    [[ ${stderr_lines[0]} == *"bitmap 'd' counts from no backup"* ]] || fail "$stderr"
    assert_file_not_exist inc
    blkimg backup --mode=full --bitmap=d --force disk full
    blkimg io -c 'write -P 7 64k 64k' disk >out
    goes_on
    qemu-img check -q disk
}

@test "rebase -u to other content: the bitmap counts from no backup" {
    blkimg rebase -u -b b1 -F qcow2 disk
    has_lost_count
}

@test "rebase -u to no backing file, and from none" {
    blkimg rebase -u -b '' disk
    has_lost_count
    make_disk
    blkimg rebase -u -b b1 -F qcow2 disk
    has_lost_count
}

@test "rebase -u that reads the same file as another format" {
    blkimg rebase -u -b b0 -F raw disk
    has_lost_count
}

@test "rebase -u to a file that is not there, or is one of several parts of a raw file" {
    blkimg rebase -u -b nowhere -F qcow2 disk
    blkimg rebase -u -b b0 -F qcow2 disk
    has_lost_count
    fill parts.raw 0 1M 3
    fill parts.raw 1M 1M 4
    local part='json:{"driver":"raw","size":"1048576","offset":"%s","file":{"driver":"file","filename":"parts.raw"}}'
    # shellcheck disable=SC2059
    make_disk -b "$(printf "$part" 0)" -F raw
    # shellcheck disable=SC2059
    blkimg rebase -u -b "$(printf "$part" 1048576)" -F raw disk
    has_lost_count
}

@test "rebase -u to the same file keeps it: moved, by another name, by the same" {
    mkdir sub
    mv b0 sub/moved
    blkimg rebase -u -b sub/moved -F qcow2 disk
    goes_on
    make_disk -b "$PWD/sub/moved" -F qcow2
    blkimg rebase -u -b sub/moved -F qcow2 disk
    goes_on
    make_disk -b sub/moved -F qcow2
    blkimg rebase -u -b sub/moved -F qcow2 disk
    ln sub/moved link
    blkimg rebase -u -b link -F qcow2 disk
    goes_on
    make_disk
    blkimg rebase -u -b '' disk
    goes_on
}

@test "a moved file that was written, or has another file below, is not the same" {
    mv b0 moved
    blkimg io -c 'write -P 5 256k 64k' moved >out
    blkimg rebase -u -b moved -F qcow2 disk
    has_lost_count
    mkdir sub
    cp b1 sub/below
    cp moved below
    blkimg create -q -f qcow2 -b below -F qcow2 mid
    make_disk -b mid -F qcow2
    mv mid sub/mid
    blkimg rebase -u -b sub/mid -F qcow2 disk
    has_lost_count
}

@test "rebase -u to a copy of the same backup keeps it" {
    blkimg backup b0 point
    make_disk -b point -F qcow2
    cp point copy
    rm point
    blkimg rebase -u -b copy -F qcow2 disk
    goes_on
}

@test "a rebase that copies keeps it, and what it is on can be moved then" {
    blkimg rebase -b b1 -F qcow2 disk
    mv b1 moved
    blkimg rebase -u -b moved -F qcow2 disk
    goes_on
    make_disk -b moved -F qcow2
    blkimg rebase -b '' disk
    goes_on
}

@test "a pivot keeps it, unless it was not proved" {
    cp b0 copy
    blkimg pivot --to=copy disk
    mv copy moved
    blkimg rebase -u -b moved -F qcow2 disk
    goes_on
    make_disk -b b0 -F qcow2
    blkimg pivot --trust --to=b1 disk
    has_lost_count
}

@test "a commit, a snapshot and a new size keep it" {
    blkimg snapshot -q -c s disk
    blkimg io -c 'write -P 6 320k 64k' disk >out
    blkimg backup --bitmap=d --base=full disk second
    blkimg snapshot -q -a s disk
    goes_on second
    make_disk -b b0 -F qcow2
    blkimg commit -q disk
    goes_on
    make_disk -b b0 -F qcow2
    blkimg resize -q disk 2M
    goes_on
}

@test "rebase -u of a whole backup: it is not that backup any more" {
    local id
    blkimg rebase -b '' disk
    blkimg backup disk whole
    id=$(id_of whole)
    blkimg rebase -u -b '' whole
    assert_equal "$(id_of whole)" "$id"
    blkimg rebase -u -b b1 -F qcow2 whole
    assert_equal "$(id_of whole)" null
}

@test "amend to another data file: the bitmap counts from no backup" {
    blkimg backup -o data_file=one disk target
    blkimg backup -o data_file=two b1 other
    make_disk -o data_file=data
    cp data copy
    blkimg amend -o data_file=data disk
    goes_on
    rm inc
    blkimg io -c 'write -P 6 128k 64k' disk >out
    blkimg amend -o data_file=copy disk
    has_lost_count
    # The same of a backup: it is not that any more.
    blkimg amend -o data_file=one target
    refute [ "$(id_of target)" = null ]
    blkimg amend -o data_file=two target
    assert_equal "$(id_of target)" null
}

@test "a data file that was moved keeps it when the image is opened with it" {
    make_disk -o data_file=data
    mv data moved
    blkimg amend --image-opts -o data_file=moved driver=qcow2,file.filename=disk,data-file.filename=moved
    goes_on
}

@test "check -r lost: what is given up is no change that a bitmap marks" {
    need python3
    make_disk
    blkimg backup --new-bitmap=e disk whole
    blkimg io -c 'write -P 3 128k 64k' disk >out
    for image in disk whole; do
        python3 "$SRCDIR/tests/tools/mkimage.py" edit "$image" 'l2[4]=COPIED+end+9*cluster'
        run -0 blkimg check -r lost "$image"
        assert_line --partial 'given up as lost'
    done
    run -1 --separate-stderr blkimg backup --bitmap=d --base=full disk inc
    [[ ${stderr_lines[0]} == *"bitmap 'd' counts from no backup"* ]] || fail "$stderr"
    assert_equal "$(id_of whole)" null
}
