#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# One file under several names: file:, json:, links, /dev/fd/N. No command writes a file that it also reads, and none makes
# a header lead back to its own image, however the file is spelled. A name that does not exist yet counts too.

bats_require_minimum_version 1.5.0
load lib/common

# spell FILE: its other names, in the array names; descriptor 7 is open on it.
spell() {
    local file=$1
    mkdir -p sub
    ln -sf "$PWD/$file" "sym-$file"
    ln -sfn . dir
    exec 7<"$file"
    names=("$file" "./$file" "$PWD/$file" "file:$file" "sym-$file" "dir/$file" "file:sub/../$file" /dev/fd/7 /proc/self/fd/7
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"$file\"}}"
        "json:{\"file.filename\":\"file:sym-$file\"}")
}

# as_qcow2 NAME: a json: name that says raw says nothing of qcow2.
as_qcow2() {
    echo "${1/\"driver\":\"raw\",/}"
}

# images: what all images of this directory hold.
images() {
    find . -maxdepth 1 -type f -name '*.[qr]*' -exec cksum {} + | sort
}

# refused COMMAND...: says that it is one file, or the same chain; changes nothing (see unchanged).
refused() {
    local status=0
    timeout 20 "$BLKIMG" "$@" >out 2>err </dev/null || status=$?
    [[ $status == 1 && $(<err) == *@(same file as|leads back to itself|own backing file|overwritten|image itself|given twice|given for two|in use)* ]] ||
        fail "$*: status $status: $(head -c 2000 err)"
}

# unchanged: all images are what "images >before" saw.
unchanged() {
    images | cmp before -
}

make_chain() {
    blkimg create -q -f qcow2 base.q 1M
    blkimg io -c 'write -P 1 0 64k' base.q >out
    blkimg create -q -f qcow2 -b base.q -F qcow2 mid.q
    blkimg create -q -f qcow2 -b mid.q -F qcow2 top.q
}

@test "create: a backing file is not overwritten by its overlay, with -u and without" {
    make_chain
    local names name
    images >before
    spell base.q
    for name in "${names[@]}"; do
        name=$(as_qcow2 "$name")
        refused create -q -f qcow2 -b "$name" -F qcow2 base.q
        refused create -q -u -f qcow2 -b "$name" -F qcow2 base.q 1M
        refused create -q -u -f qcow2 -b base.q -F qcow2 "$name" 1M
        refused create -q -u -f qcow2 -o "backing_file=${name//,/,,},backing_fmt=qcow2" base.q 1M
        refused create -q -u -f qcow2 -b top.q -F qcow2 "$name" 1M
        refused create -q -f qcow2 -b "$PWD/top.q" -F qcow2 "$name" 1M
    done
    unchanged
}

@test "create: the name of a new image is known before there is a file" {
    local name
    mkdir sub
    for name in new.q ./new.q file:new.q sub/../new.q "$PWD/new.q" 'json:{"file":{"driver":"file","filename":"new.q"}}'; do
        refused create -q -u -f qcow2 -b "$name" -F qcow2 new.q 1M
        refused create -q -u -f qcow2 -b new.q -F qcow2 "$name" 1M
        assert_not_exist new.q
    done
    # A base that waits for its overlay's name would make a loop.
    blkimg create -q -u -f qcow2 -b later.q -F qcow2 base.q 1M
    images >before
    refused create -q -u -f qcow2 -b base.q -F qcow2 later.q 1M
    refused create -q -u -f qcow2 -b base.q -F qcow2 file:later.q 1M
    assert_not_exist later.q
    unchanged
    # One that does not exist and is another is allowed.
    blkimg create -q -u -f qcow2 -b other.q -F qcow2 new.q 1M
}

@test "create: the data file is neither the image nor a part of its chain" {
    make_chain
    local names name
    images >before
    spell base.q
    for name in "${names[@]}"; do
        [[ $name != json:* ]] || continue
        refused create -q -f qcow2 -o "data_file=$name" base.q 1M
        refused create -q -f qcow2 -o "data_file=$name" -b top.q -F qcow2 new.q 1M
        refused create -q -u -f qcow2 -o "data_file=$name" -b top.q -F qcow2 new.q 1M
        refused convert -O qcow2 -o "data_file=$name" -B mid.q -F qcow2 base.q new.q
        refused convert -O qcow2 -o "data_file=$name" base.q new.q
    done
    for name in new.q ./new.q file:new.q; do
        refused create -q -f qcow2 -o "data_file=$name" new.q 1M
    done
    assert_not_exist new.q
    unchanged
    # Nor may the image be the data file of its backing file.
    blkimg create -q -f qcow2 -o data_file=d.raw data.q 1M
    images >before
    refused create -q -f qcow2 -b data.q -F qcow2 file:d.raw
    refused create -q -u -f qcow2 -b data.q -F qcow2 d.raw 1M
    unchanged
}

@test "convert, dd: the target is not a part of the source" {
    make_chain
    truncate -s 1M disk.raw
    local names name
    images >before
    spell disk.raw
    for name in "${names[@]}"; do
        refused convert -f raw -O raw "$name" disk.raw
        refused convert -f raw -O raw disk.raw "$name"
        refused convert -U -f raw -O raw disk.raw "$name"
        refused convert -f raw -n -O raw disk.raw "$name"
        refused convert -U -f raw -n -O raw disk.raw "$name"
        refused dd -U -f raw -O raw if=disk.raw of="$name"
        [[ $name == json:* ]] || refused dd -f raw if="$name" of=disk.raw
    done
    spell base.q
    for name in "${names[@]}"; do
        name=$(as_qcow2 "$name")
        refused convert -U -O qcow2 top.q "$name"
        refused convert -U -O raw top.q "$name"
        refused convert -U -O qcow2 -B "$PWD/top.q" -F qcow2 disk.raw "$name"
        refused convert -O qcow2 -B "$name" -F qcow2 disk.raw base.q
        refused dd -U -f qcow2 -O raw if=top.q of="$name"
    done
    refused convert -U -n -f qcow2 --target-image-opts top.q driver=qcow2,file.filename=file:base.q
    refused convert -U -n -f qcow2 --target-image-opts top.q driver=qcow2,file.driver=file,file.filename=sym-base.q,file.locking=off
    unchanged
}

@test "hard links, and a bind mount where that can be made" {
    make_chain
    ln base.q hard.q
    images >before
    refused create -q -u -f qcow2 -b hard.q -F qcow2 base.q 1M
    refused convert -U -O qcow2 top.q hard.q
    refused rebase -u -b hard.q -F qcow2 base.q
    refused rebase -u -b top.q -F qcow2 hard.q
    mkdir mnt
    if mount --bind . mnt 2>/dev/null; then
        refused create -q -u -f qcow2 -b mnt/base.q -F qcow2 base.q 1M
        refused rebase -u -b mnt/base.q -F qcow2 base.q
        refused convert -U -O qcow2 top.q mnt/base.q
        umount mnt
    fi
    unchanged
}

@test "rebase: no loop, with -u and without, direct or through the chain" {
    make_chain
    local names name
    images >before
    spell base.q
    for name in "${names[@]}"; do
        name=$(as_qcow2 "$name")
        refused rebase -u -b "$name" -F qcow2 base.q
        refused rebase -b "$name" -F qcow2 base.q
        refused rebase -u -b top.q -F qcow2 "$name"
        refused rebase -b top.q -F qcow2 "$name"
    done
    unchanged
    # What cannot be opened is not judged: -u is for that.
    blkimg rebase -u -b gone.q -F qcow2 top.q
}

@test "a loop of links to itself is noticed, not followed" {
    blkimg create -q -f qcow2 a.q 1M
    ln a.q b.q
    # Written by hand: nothing here makes such a header.
    blkimg create -q -u -f qcow2 -b x.q -F qcow2 loop.q 1M
    ln loop.q x.q
    local status=0
    timeout 20 "$BLKIMG" map loop.q >out 2>err || status=$?
    [[ $status == 1 ]]
    grep -q 'leads back to itself' err
}

@test "commit -b: the base is found by any of its names" {
    local names name
    make_chain
    spell base.q
    for name in "${names[@]}"; do
        [[ $name != json:* ]] || name=file:base.q
        blkimg commit -q -b "$name" top.q
    done
    refute blkimg commit -q -b file:top.q top.q
}

@test "amend: the data file cannot become the image" {
    blkimg create -q -f qcow2 -b /dev/null -F raw -u data.q 1M
    blkimg create -q -f qcow2 base.q 1M
    blkimg create -q -f qcow2 -o data_file=d.raw -b base.q -F qcow2 data.q 1M
    local names name
    images >before
    spell data.q
    for name in data.q ./data.q file:data.q sym-data.q /dev/fd/7 base.q file:base.q; do
        refused amend -o "data_file=$name" data.q
    done
    unchanged
    blkimg amend -o data_file=./d.raw data.q
    blkimg info data.q >out
    grep -q 'data file: ./d.raw' out
}

@test "backup and mirror: targets, bases and partners" {
    make_chain
    blkimg bitmap --add top.q b
    local names name
    images >before
    spell base.q
    for name in "${names[@]}"; do
        name=$(as_qcow2 "$name")
        refused backup -q top.q "$name"
        refused mirror top.q "$name"
        [[ $name == json:* ]] || refused backup -q --disk "top.q=$name" --disk top.q=new.q
    done
    spell top.q
    for name in "${names[@]}"; do
        name=$(as_qcow2 "$name")
        refused backup -q top.q "$name"
        refused backup -q --bitmap=b --base="$name" --trust top.q top.q
    done
    refused backup -q --disk base.q=new.q --disk mid.q=file:new.q
    refused backup -q --disk base.q=new.q --disk mid.q="$PWD/new.q"
    assert_not_exist new.q
    unchanged
}

@test "pivot: an overlay is not put on itself, and not given twice" {
    make_chain
    cp mid.q copy.q
    images >before
    refused pivot --to=file:top.q top.q
    refused pivot --trust --to=dir/../top.q top.q || true
    refused pivot --to=copy.q top.q file:top.q
    refused pivot --trust --to=top.q mid.q
    unchanged
}

@test "reading one file twice is no harm" {
    make_chain
    blkimg compare base.q file:base.q >out
    blkimg convert -O raw base.q file:base.q two.raw
    [[ $(stat -c %s two.raw) == 2097152 ]]
}

# --- names that mean nothing later --------------------------------------------------------------

# stores_not ARG...: a name of a descriptor is not put into a header, and nothing changes.
stores_not() {
    local status=0 message
    message=$(blkimg "$@" 2>&1 >/dev/null) || status=$?
    [[ $status == 1 && $message == blkimg:*"it is a descriptor of a process"* ]] ||
        fail "$*: status $status: $message"
    unchanged
}

@test "a header does not name a descriptor" {
    need qemu-img
    qemu-img create -q -f qcow2 base.q 1M
    qemu-img create -q -f qcow2 -b base.q -F qcow2 top.q 1M
    qemu-img create -q -f qcow2 source.q 1M
    qemu-img create -q -f qcow2 -o data_file=d.raw data.q 1M
    truncate -s 1M d2.raw
    cp base.q other.q
    ln -s /dev/fd/8 link
    images >before
    local name
    exec 8<>other.q 9<>d2.raw
    for name in /dev/fd/8 /proc/self/fd/8 "/proc/$BASHPID/fd/8" file:/dev/fd/8 link \
        'json:{"driver":"qcow2","file.filename":"/dev/fd/8"}'; do
        stores_not create -q -f qcow2 -b "$name" -F qcow2 new.q
        stores_not create -q -u -f qcow2 -b "$name" -F qcow2 new.q 1M
        stores_not convert -O qcow2 -B "$name" -F qcow2 top.q new.q
        stores_not rebase -b "$name" -F qcow2 top.q
        stores_not rebase -u -b "$name" -F qcow2 top.q
    done
    for name in /dev/fd/9 file:/dev/fd/9; do
        stores_not create -q -f qcow2 -o data_file="$name" new.q 1M
        stores_not convert -O qcow2 -o data_file="$name" source.q new.q
        stores_not backup -q -o data_file="$name" source.q new.q
        stores_not amend -o data_file="$name" data.q
    done
    stores_not create -q -f qcow2 -b /dev/stdin -F raw new.q 1M <d2.raw
    # To be read, it is as good as any other; a pivot finds out what it is really called.
    blkimg convert -O qcow2 /dev/fd/8 new.q
    blkimg pivot --to=/dev/fd/8 top.q
    assert_equal "$(qemu-img info top.q | sed -n 's/^backing file: //p')" other.q
}

@test "create: not over a file of its own backing chain" {
    blkimg create -q -f qcow2 base 4M
    blkimg create -q -f qcow2 -b base -F qcow2 middle
    blkimg create -q -f qcow2 -b middle -F qcow2 top
    ln -s base link
    cp base before
    local target
    for target in base ./base link; do
        run -1 --separate-stderr blkimg create -q -f qcow2 -b top -F qcow2 "$target"
        [[ $stderr == *@(is the same file as|leads back to itself)* ]] || fail "$stderr"
        run -1 --separate-stderr blkimg create -q -f qcow2 -b top -F qcow2 "$target" 4M
        cmp base before
    done
    rm link
    ln base link
    run -1 --separate-stderr blkimg create -q -f qcow2 -b top -F qcow2 link
    cmp base before
}

@test "create: an image is not its own data file" {
    mkdir folder
    local name
    for name in new ./new folder/../new "$PWD/new"; do
        run -1 --separate-stderr blkimg create -q -f qcow2 -o data_file="$name" new 4M
        [[ $stderr == *"data file '$name'"*'is the same file as'* ]] || fail "$stderr"
        assert_not_exists new
    done
    blkimg create -q -f qcow2 -o data_file=folder/new new 4M
}
