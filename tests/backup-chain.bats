#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Random histories of a disk and its backups (tests/tools/backuprandom.py): whatever base was accepted, each restored
# point is the content of its moment, and qemu-img reads every target.
#
# BACKUP_HISTORIES=100 tries so many (give it time: TEST_TIMEOUT). BACKUP_SEED=N repeats one run.

bats_require_minimum_version 1.5.0
load lib/common

@test "random histories" {
    need qemu-img qemu-io python3
    [[ ! -w /dev/shm ]] || export TMPDIR=/dev/shm
    python3 "$SRCDIR/tests/tools/backuprandom.py" --blkimg "$BLKIMG" --histories "${BACKUP_HISTORIES:-10}" \
        ${BACKUP_SEED:+--seed "$BACKUP_SEED"} >log 2>&1 || fail "$(cat log)"
    echo "# $(tail -1 log)" >&3
}

# --- single histories that once were thought of ------------------------------------------------

# backup ARG...: the content of the source is then in $1.raw beside the target.
point() {
    blkimg backup -q "$@"
    qemu-img convert -O raw "${*: -2:1}" "${*: -1}.raw"
    qemu-img compare -f qcow2 -F raw "${*: -1}" "${*: -1}.raw"
}

@test "a disk that shrank and grew again reads as zeroes, not as its backup" {
    need qemu-img
    blkimg create -q -f qcow2 disk 4M
    blkimg io -c 'write -P 1 0 4M' disk >out
    point --new-bitmap=b disk full
    blkimg resize -q --shrink disk 1M
    point --bitmap=b --base=full disk short
    blkimg resize -q disk 3M
    point --bitmap=b --base=short disk again
    blkimg resize -q --shrink disk 1M
    blkimg resize -q disk 5M
    point --bitmap=b --base=again disk last
    qemu-img compare -f qcow2 -F raw short short.raw
}

@test "a target without its base yet: zeroes in it are zeroes when it is put on one" {
    need qemu-img
    local compat
    for compat in 0.10 1.1; do
        rm -f disk full part
        blkimg create -q -f qcow2 disk 4M
        blkimg io -c 'write -P 1 0 4M' disk >out
        point --new-bitmap=b disk full
        blkimg io -c 'write -z -u 1M 1M' -c 'discard 2M 64k' -c 'write -P 2 3M 10' disk >out
        blkimg backup --bitmap=b -o "compat=$compat,cluster_size=64k" disk part
        run -1 --separate-stderr blkimg backup --list-chain=part
        assert_equal "$stderr" "blkimg: 'part': its parent is missing"
        qemu-img rebase -u -b full -F qcow2 part
        qemu-img compare disk part
        run -0 --separate-stderr blkimg backup --list-chain=part
    done
}

@test "the own layer of a disk alone, in clusters of the target" {
    need qemu-img
    head -c 2M /dev/zero | tr '\0' 'b' >low
    blkimg create -q -f qcow2 -o cluster_size=512 -b low -F raw disk 4M
    blkimg io -c 'write -P 1 70k 512' -c 'write -z 1M 64k' -c 'write -P 2 3M 512' disk >out
    # Its backing file is a base that needs no id.
    point --mode=top --base=low -F raw disk top
    blkimg backup --mode=top disk alone
    qemu-img rebase -u -b low -F raw alone
    qemu-img compare disk alone
    # Not all was copied: 64 KiB around the first write are there, what is before is not.
    assert_equal "$(qemu-img map --output=json alone | jq -c '[.[0] | .start, .length, .depth]')" '[0,65536,1]'
    run -1 --separate-stderr blkimg backup --mode=top --base=alone disk other
    [[ $stderr == *"base 'alone' for 'disk': it is not the backup that the bitmaps count from"* ]]
}

@test "two bitmaps count from two chains" {
    need qemu-img
    blkimg create -q -f qcow2 disk 4M
    point --new-bitmap=day disk d0
    blkimg io -c 'write -P 1 0 1M' disk >out
    point --new-bitmap=week disk w0
    blkimg io -c 'write -P 2 1M 1M' disk >out
    point --bitmap=day --base=d0 disk d1
    blkimg io -c 'write -P 3 512k 1M' disk >out
    run -1 --separate-stderr blkimg backup --bitmap=day --base=w0 disk no
    run -1 --separate-stderr blkimg backup --bitmap=week --base=d1 disk no
    point --bitmap=week --bitmap-sync=never --base=w0 disk w1
    point --bitmap=week --base=w0 disk w2
    point --bitmap=day --bitmap=week --base=d1 disk d2
    blkimg io -c 'write -P 4 2M 1M' disk >out
    # Both began anew with the last.
    point --bitmap=week --base=d2 disk d3
    blkimg backup --list-chain=d3 >out
    assert_equal "$(wc -l <out)" 4
}

@test "a failed target that was kept goes on as a base where the bitmaps count from it" {
    need qemu-img
    small_tmpfs 1m full
    blkimg create -q -f qcow2 disk 8M
    blkimg backup --new-bitmap=b disk d0
    blkimg io -c 'write -P 1 0 512k' -c 'write -P 2 1M 4M' disk >out
    run -1 --separate-stderr blkimg backup --bitmap=b --base=d0 --keep-failed --bitmap-sync=always disk full/d1
    if [[ ! -e full/d1.partial ]]; then # it could not be closed: nothing has changed
        [[ $stderr == *"the source and its bitmaps are as they were"* ]]
        point --bitmap=b --base=d0 disk d2
        return
    fi
    [[ $stderr == *"its bitmaps mark what the kept target does not hold"* ]]
    run -1 --separate-stderr blkimg backup --bitmap=b --base=d0 disk no
    point --bitmap=b --base=full/d1.partial disk d2
    point --bitmap=b --base=d2 disk d3
}

@test "a kept target is no base where the bitmaps do not count from it" {
    need qemu-img
    blkimg create -q -f qcow2 disk 8M
    blkimg io -c 'write -P 1 0 8M' disk >out
    blkimg backup --new-bitmap=b disk d0
    blkimg io -c 'write -P 2 0 8M' disk >out
    spawn "$BLKIMG" backup --bitmap=b --base=d0 --keep-failed -r 1M disk d1
    sleep 0.5
    kill -TERM "$pid"
    finish
    assert_equal "$status" 143
    assert_file_contains spawn.err "the incomplete target is 'd1.partial'"
    qemu-img check -q d1.partial
    run -1 --separate-stderr blkimg backup --bitmap=b --base=d1.partial disk d2
    [[ $stderr == *"does not say which backup it is"* ]]
    run -1 blkimg backup --list-chain=d1.partial
    point --bitmap=b --base=d0 disk d1
}
