#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# --disk SOURCE=TARGET, repeated: all disks at one moment. Their bitmaps start over only after every target is
# closed, and a failure before leaves all of them as they were.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img jq
    local name
    for name in one two three; do
        blkimg create -q -f qcow2 $name 4M
        blkimg io -c 'write -P 1 0 2M' $name >out
    done
}

all_full() {
    blkimg backup --new-bitmap=b --disk one=one.full --disk two=two.full --disk three=three.full
    blkimg io -c 'write -P 2 1M 64k' one >out
    blkimg io -c 'write -P 3 2M 64k' two >out
    blkimg io -c 'write -z 0 64k' three >out
}

incremental() {
    blkimg backup "$@" --bitmap=b --base=one.full --base=two.full --base=three.full \
        --disk one=one.inc --disk two=two.inc --disk three=three.inc
}

# Nothing has changed but what the arguments make: then they are run without the reason to fail.
all_unchanged() {
    local before
    before=$(sha256sum one two three)
    run --separate-stderr "$@"
    ((status != 0))
    assert_equal "$(sha256sum one two three)" "$before"
    [[ ! -e one.inc && ! -e two.inc ]]
    local name
    for name in one two three; do
        [[ $stderr == *"the backup of '$name' failed: the source and its bitmaps are as they were"* ]]
    done
}

@test "full and incremental" {
    all_full
    incremental --output=json --verify >manifest
    local name
    for name in one two three; do
        qemu-img compare $name $name.inc
        assert_equal "$(blkimg map --bitmap b --output=json $name)" '[]'
    done
    assert_equal "$(jq -c '[.status, .disks[].source]' manifest)" '[0,"one","two","three"]'
}

@test "the last target cannot be made" {
    all_full
    mkdir three.inc
    all_unchanged incremental
    rmdir three.inc
    incremental
}

@test "the last disk is in use: nothing is read or made" {
    all_full
    mkfifo commands
    "$BLKIMG" io three <commands >said 2>&1 3>&- &
    local io=$!
    exec 7>commands
    echo 'write 0 512' >&7
    wait_for 10 grep -q wrote said
    run -1 --separate-stderr incremental 7>&-
    [[ $stderr == *"three"*lock* ]]
    [[ ! -e one.inc && ! -e two.inc && ! -e three.inc ]]
    exec 7>&-
    wait "$io"
    incremental
}

@test "the last target runs full" {
    all_full
    small_tmpfs 64k small
    ln -s small/three three.inc
    all_unchanged incremental
    rm three.inc
    incremental --keep-failed
    [[ ! -e one.inc.partial ]]
}

@test "one bitmap is missing" {
    all_full
    blkimg bitmap --remove two b
    all_unchanged incremental
    incremental --on-broken-bitmap=full >out
    assert_equal "$(wc -l <out)" 1
    qemu-img compare two two.inc
    assert_equal "$(qemu-img info --output=json two.inc | jq '."backing-filename"')" null
}

@test "bases in another order than the disks" {
    all_full
    all_unchanged blkimg backup --bitmap=b --base=two.full --base=one.full --base=three.full \
        --disk one=one.inc --disk two=two.inc --disk three=three.inc
}

@test "one file for two disks, a target that is another disk" {
    run -1 --separate-stderr blkimg backup --disk one=x --disk two=x
    [[ $stderr == *"given for two disks"* ]]
    touch x
    ln x y
    run -1 --separate-stderr blkimg backup --disk one=x --disk two=y
    [[ $stderr == *"given for two disks"* ]]
    run -1 --separate-stderr blkimg backup --disk one=two --disk two=z
    [[ $stderr == *"same file"* ]]
    run -1 --separate-stderr blkimg backup --disk one
    [[ $stderr == *"not SOURCE=TARGET"* ]]
    [[ ! -e z ]]
}

@test "the last target gets no name: the ones before are what they were" {
    need strace
    [[ -z $SANITIZERS ]] || skip "not meaningful with -fsanitize=$SANITIZERS"
    all_full
    cp one.full before
    local existing=one.full call nth failed=0
    for call in linkat renameat2; do
        for nth in 1 2 3 4; do
            rm -f new
            cp before $existing
            run strace -f -qq -o trace -e "trace=$call" -e "inject=$call:error=ENOSPC:when=$nth" \
                "$BLKIMG" backup --disk one=$existing --disk two=new
            grep -q INJECTED trace || break
            failed=$((failed + 1))
            [[ $status == 5 || $output == *"linking a file beside"* ]]
            assert_output --partial "the backup of 'one' failed: the source and its bitmaps are as they were, and so is '$existing'"
            assert_output --partial "there is no target 'new'"
            cmp $existing before
            [[ ! -e new ]]
            [[ -z $(find . -name '.*blkimg-*') ]]
        done
    done
    ((failed >= 3))
    blkimg backup --disk one=$existing --disk two=new
    qemu-img compare -q one $existing
}

@test "a target that fails --verify does not cost the one that it replaces" {
    all_full
    cp one.full before
    run --separate-stderr blkimg backup --verify one "blkdebug::one.full"
    assert_equal "$status" 0
    cat >conf <<'C'
[inject-error]
event = "read_aio"
errno = "5"
C
    cp before one.full
    run --separate-stderr blkimg backup --verify one "blkdebug:$PWD/conf:one.full"
    ((status != 0))
    cmp one.full before
    [[ -z $(find . -name '.*blkimg-*') ]]
}
