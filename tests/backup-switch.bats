#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Status 6 of "backup": the target is complete and can be used, but the source's bitmaps may not have been switched. The
# next backup can be made on the newer or the older one.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img jq
}

# make_disk DISK FULL: with a bitmap b that counts from the backup FULL, and writes since.
make_disk() {
    blkimg create -q -f qcow2 "$1" 2M
    blkimg io -c 'write -P 1 0 300k' -c 'write -z 512k 64k' "$1" >out
    blkimg backup --new-bitmap=b "$1" "$2"
    blkimg io -c 'write -P 2 100k 100k' -c 'write -z 600k 1k' -c 'write -P 3 1M 1' -c 'discard 0 64k' "$1" >out
    qemu-img convert -O raw "$1" "$1.raw"
}

# rules TYPE N: requests of this type fail from the Nth on.
rules() {
    printf '[inject-error]\niotype = "%s"\nnth = "%s"\nerrno = "5"\nonce = "off"\nstats = "stats"\n' "$@" >rules
}

# next_on BASE [ARG...]: leaves the status of a further backup on it, which is right if there is one.
next_on() {
    local base=$1
    rm -f next
    run --separate-stderr blkimg backup --bitmap=b --bitmap-sync=never --base="$base" "${@:2}" disk next
    next_status=$status
    ((status == 0)) || return 0
    qemu-img compare disk next
    blkimg convert -O raw next next.raw
    qemu-img compare -f qcow2 -F raw disk next.raw
}

@test "status 6 at each write and flush of the switch: the target is good, and a base" {
    local type n cluster tried=0 unswitched=0 since full wanted
    make_disk disk full
    mv disk disk.scene
    full=$(blkimg info --output=json full | jq -r .backup.id)
    for type in write flush; do
        for ((n = 1; n < 100; n++)); do
            rm -f disk inc stats
            cp disk.scene disk
            rules "$type" "$n"
            # Clusters larger than the bitmap's granules, too.
            ((n % 2)) && cluster=64k || cluster=256k
            run --separate-stderr blkimg backup --bitmap=b --base=full --output=json -o "cluster_size=$cluster" \
                blkdebug:rules:disk inc
            [[ $(sed -n 's/errors injected: //p' stats) != 0 ]] || break
            assert_equal "$status $(jq -c '[.status, .usable, .disks[0].usable]' <<<"$output")" '6 [6,true,true]'
            [[ $stderr == *"the target 'inc' is complete and can be used"* && $stderr != *"do not use"* ]] ||
                fail "$stderr"
            qemu-img check -q inc
            qemu-img compare inc disk.raw
            tried=$((tried + 1))
            # The disk goes on, and what it wrote is in the next backup.
            since=$(blkimg bitmap --list --output=json disk | jq -r '.[].since')
            blkimg io -c 'write -P 8 1500k 10k' disk >out
            next_on inc
            assert_equal "$type $n: newer $next_status" "$type $n: newer 0"
            wanted=1
            if [[ $since == "$full" ]]; then
                wanted=0
                unswitched=$((unswitched + 1))
            fi
            next_on full -o cluster_size=4k
            assert_equal "$type $n: older $next_status" "$type $n: older $wanted"
        done
        assert_equal "$status" 0
    done
    echo "# $tried faults tried, $unswitched of them before the switch" >&3
    ((tried > 4 && unswitched > 1))
}

@test "status 6 with two disks: both targets are good, and the other source is switched" {
    make_disk disk full
    make_disk disk2 full2
    rules write 1
    run -6 --separate-stderr blkimg backup --bitmap=b --base=full --base=full2 --output=json \
        --disk blkdebug:rules:disk=inc --disk disk2=inc2
    assert_equal "$(jq -c '[.status, .usable, .disks[].usable]' <<<"$output")" '[6,true,true,true]'
    qemu-img compare inc disk.raw
    qemu-img compare inc2 disk2.raw
    assert_equal "$(blkimg bitmap --list --output=json disk2 | jq -c '.[]."dirty-bytes"')" 0
    next_on inc
    assert_equal "$next_status" 0
    next_on full
    assert_equal "$next_status" 0
}

@test "a target that cannot be closed is status 5, and not usable" {
    make_disk disk full
    rules flush 1
    qemu-img create -q -f qcow2 new 2M
    run --separate-stderr blkimg backup --output=json -n --target-image-opts disk \
        driver=qcow2,file.driver=blkdebug,file.config=rules,file.image.filename=new
    assert_equal "$status $(jq -c '[.status, .usable, .disks[0].usable]' <<<"$output")" '5 [5,false,false]'
    [[ $stderr == *"do not use the target"* ]]
}

@test "a base of another disk on the same base is not taken" {
    make_disk disk full
    # A clone of the disk, which then went another way.
    cp disk clone
    blkimg io -c 'write -P 7 1200k 64k' clone >out
    blkimg backup --bitmap=b --base=full clone other
    run -1 --separate-stderr blkimg backup --bitmap=b --base=other disk next
    [[ $stderr == *"base 'other' for 'disk' at offset "*"it holds data that no bitmap marks"* ]] || fail "$stderr"
    # One of this disk, with the bitmap as it is, is as good as what the bitmap counts from.
    blkimg backup --bitmap=b --bitmap-sync=never --base=full disk mine
    blkimg io -c 'write -P 8 1500k 10k' disk >out
    next_on mine
    assert_equal "$next_status" 0
}

@test "a newer base that is shorter than the older one" {
    make_disk disk full
    blkimg resize -q --shrink disk 1M
    blkimg backup --bitmap=b --bitmap-sync=never --base=full disk short
    blkimg resize -q disk 3M
    next_on short
    assert_equal "$next_status" 0
    next_on full
    assert_equal "$next_status" 0
}
