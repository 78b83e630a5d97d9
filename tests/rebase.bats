#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "rebase": what the guest sees stays, what is named changes, and no more than what differs is copied.

bats_require_minimum_version 1.5.0
load lib/common

# make_chain OPTIONS: a <- b (shorter) <- c (longer) of qcow2, raw images that hold other data, and what c shows.
make_chain() {
    rm -f a b c d ./*.raw
    qemu-img create -q -f qcow2 -o "$1" a 3M
    qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 2M 1M' a >/dev/null
    qemu-img create -q -f qcow2 -o "$1" -b a -F qcow2 b 2500k
    qemu-io -c 'write -P 3 500k 700k' -c 'write -z 100k 200k' b >/dev/null
    qemu-img create -q -f qcow2 -o "$1" -b b -F qcow2 c 4M
    qemu-io -c 'write -P 4 900k 100k' -c 'write -z 100k 200k' -c 'write -P 5 2501k 3k' c >/dev/null
    fill long.raw 0 5M 7
    fill short.raw 0 1M 7
    qemu-img convert -O raw c want.raw
}

shows_the_same() {
    qemu-img check -q d
    qemu-img convert -O raw d got.raw
    cmp got.raw want.raw
}

# backing_is NAME [FORMAT]; an empty name: there is none.
backing_is() {
    run -0 qemu-img info -U d
    if [[ -n $1 ]]; then
        assert_line "backing file: $1"
        assert_line "backing file format: $2"
    else
        refute_line --partial 'backing file'
    fi
}

# What the image itself decides, as offsets and lengths of JSON.
own_bytes() {
    qemu-img map -U --output=json "$1" | grep '"depth": 0' | grep -o '"length": [0-9]*' |
        awk '{ sum += $2 } END { print sum + 0 }'
}

@test "every kind of image onto every kind of backing file" {
    local options start
    for options in cluster_size=64k cluster_size=512 extended_l2=on compat=0.10,cluster_size=4k compat=0.10; do
        make_chain "$options"
        for start in '' '-b ""' '-b long.raw -F raw'; do
            for to in 'a qcow2' 'b qcow2' 'long.raw raw' 'short.raw raw' ''; do
                # shellcheck disable=SC2086 # lists
                set -- $to
                for compress in '' -c; do
                    cp c d
                    [[ -z $start ]] || eval "blkimg rebase $start d"
                    # shellcheck disable=SC2086
                    run -0 blkimg rebase $compress -b "${1-}" ${2:+-F $2} d
                    assert_output ''
                    shows_the_same
                    backing_is "${1-}" "${2-}"
                done
            done
        done
    done
}

@test "the other program reads it, and writes what this one reads" {
    make_chain cluster_size=4k
    cp c d
    qemu-img rebase -b a -F qcow2 d
    blkimg convert -O raw d got.raw
    cmp got.raw want.raw
    blkimg rebase -b b -F qcow2 d
    qemu-img rebase -b '' d
    shows_the_same
}

@test "only what differs is copied" {
    qemu-img create -q -f qcow2 base 8M
    qemu-io -c 'write -P 1 0 8M' base >/dev/null
    qemu-img create -q -f qcow2 -b base -F qcow2 mid
    qemu-io -c 'write -P 2 1M 128k' -c 'write -P 1 2M 1M' -c 'write -z 4M 1M' mid >/dev/null
    qemu-img create -q -f qcow2 -b mid -F qcow2 c
    qemu-img convert -O raw c want.raw
    cp c d
    blkimg rebase -b base -F qcow2 d
    shows_the_same
    # What mid holds but base has too is not copied; the zeroes take no space.
    [[ $(own_bytes d) == $((128 * 1024 + 1024 * 1024)) ]]
    (($(stat -c %s d) < 1000000))
    qemu-img map -U --output=json d | grep -q '"start": 4194304, "length": 1048576, "depth": 0, "present": true, "zero": true, "data": false'
}

@test "what both chains share is not read" {
    need strace
    fill base 0 64M 1
    qemu-img create -q -f qcow2 -b base -F raw mid
    qemu-io -c 'write -P 2 1M 64k' mid >/dev/null
    qemu-img create -q -f qcow2 -b mid -F qcow2 d
    qemu-img convert -O raw d want.raw
    strace -f -y -e trace=pread64,preadv,read -o trace "$BLKIMG" rebase -b base -F raw d ||
        skip 'strace does not work here'
    (($(grep -c '/base>' trace) < 12))
    shows_the_same
    # And the other way round: mid is put in between again.
    strace -f -y -e trace=pread64,preadv,read -o trace "$BLKIMG" rebase -b mid -F qcow2 d
    (($(grep -c '/base>' trace) < 12))
    shows_the_same
}

@test "an image that was given its data by a difference of two copies" {
    fill base.img 0 4M 1
    cp base.img modified.img
    fill modified.img 1M 64k 2
    qemu-img create -q -f qcow2 -b modified.img -F raw d
    cp modified.img want.raw
    blkimg rebase -b base.img -F raw d
    [[ $(own_bytes d) == 65536 ]]
    rm modified.img
    shows_the_same
}

@test "unsafe: only the name" {
    make_chain cluster_size=64k
    cp c d
    blkimg rebase -u -b gone/away -F raw d
    backing_is gone/away raw
    # Neither the old nor the new one need exist.
    blkimg rebase -u -b b -F qcow2 d
    shows_the_same
    blkimg rebase -u -b '' d
    backing_is ''
    cp c d
    blkimg rebase -U -u -F qcow2 -q -b '' d
    backing_is ''
    blkimg rebase -u d
    backing_is ''
}

@test "names are relative to the image" {
    make_chain cluster_size=64k
    mkdir sub
    cp c sub/d
    (cd sub && qemu-img rebase -u -b ../b -F qcow2 d)
    blkimg rebase -b ../a -F qcow2 sub/d
    qemu-img convert -O raw sub/d got.raw
    cmp got.raw want.raw
    cp sub/d e
    run ! --separate-stderr blkimg rebase -b a -F qcow2 sub/d
    # shellcheck disable=SC2154 # run sets it
    [[ $stderr == *sub/a*'No such file or directory'* ]]
    cmp e sub/d
}

@test "refused, and nothing has changed" {
    make_chain cluster_size=64k
    cp c d
    refused() { # MESSAGE ARG...
        local message=$1
        shift
        run -1 --separate-stderr blkimg rebase "$@"
        [[ -z $output && $stderr == blkimg:*"$message"* && $(wc -l <<<"$stderr") == 1 ]] ||
            fail "$*: $stderr"
        cmp c d
    }
    refused 'looks like qcow2' -b a d
    refused 'looks like raw' -b long.raw d
    refused 'looks like qcow2' -u -b a d
    refused 'backing format must be specified' -u -b missing d
    refused 'No such file' -b missing -F raw d
    refused 'No such file' -b missing d
    refused 'leads back to itself' -b d -F qcow2 d
    refused "'nofmt'" -b a -F nofmt d
    refused 'not in qcow2 format' -b long.raw -F qcow2 d
    refused 'expects a backing file (-b) or -u' d
    refused '-c and -u exclude each other' -u -c -b a -F qcow2 d
    refused 'cache mode' -t fast -b a -F qcow2 d
    refused 'cache mode' -T fast -b a -F qcow2 d
    refused 'expects one image' -b a -F qcow2
    refused 'expects one image' -b a -F qcow2 d d
    refused 'has no backing files' -f raw -b a -F qcow2 d
    refused 'exclude each other' --image-opts -f qcow2 -b a -F qcow2 driver=qcow2,file.filename=d
    # A chain that would lead back.
    qemu-img create -q -f qcow2 -b d -F qcow2 e
    refused 'leads back to itself' -b e -F qcow2 d
}

@test "an image cannot be its own backing file" {
    make_chain cluster_size=64k
    cp c d
    ln -s c link
    local name
    for name in c link "$PWD/c"; do
        run -1 blkimg rebase -u -b "$name" -F qcow2 c
        assert_output --partial "its own backing file"
        cmp c d
    done
}

@test "a long name" {
    make_chain cluster_size=64k
    local name
    name=$(printf 'x%.0s' {1..200})
    mkdir -p "$name/$name/$name/$name"
    ln b "$name/$name/$name/$name/b"
    (cd "$name/$name/$name/$name" && qemu-img rebase -u -b "$T/a" -F qcow2 b)
    cp c d
    blkimg rebase -u -b "$name/$name/$name/$name/b" -F qcow2 d
    shows_the_same
    cp d e
    run -1 blkimg rebase -u -b "$name/$name/$name/$name/$name/$name/b" -F qcow2 d
    cmp d e
    # The safe way finds it out before it copies anything.
    qemu-img create -q -f qcow2 -o cluster_size=512 -b a -F qcow2 f
    cp a "$name/$name/other"
    qemu-io -c 'write -P 77 0 1M' "$name/$name/other" >/dev/null
    cp f before
    run -1 blkimg rebase -b "$name/$name/other" -F qcow2 f
    assert_output --partial "'f': the first sector has no room for it"
    cmp f before
}

@test "internal snapshots stay what they are, or it is refused" {
    make_chain cluster_size=64k
    cp c d
    qemu-img snapshot -c s d
    qemu-img convert -O raw -l snapshot.name=s d snapshot.raw
    qemu-img create -q -f qcow2 -b a -F qcow2 same 2500k
    qemu-io -c 'write -P 3 500k 700k' -c 'write -z 100k 200k' same >/dev/null
    blkimg rebase -b same -F qcow2 d
    shows_the_same
    qemu-img convert -O raw -l snapshot.name=s d got.raw
    cmp got.raw snapshot.raw
    cp d e
    run -1 blkimg rebase -b a -F qcow2 d
    assert_output --partial 'internal snapshots'
    cmp d e
}

@test "progress, quiet, and the result" {
    make_chain cluster_size=64k
    cp c d
    run -0 blkimg rebase -p -b a -F qcow2 d
    [[ $output =~ ^'    (0.00/100%)'$'\r' && $output =~ '    (100.00/100%)'$'\r'$ ]]
    cp c d
    run -0 blkimg rebase -p -q -b a -F qcow2 d
    assert_output ''
    cp c d
    run -0 blkimg rebase -p --output=json -b a -F qcow2 d
    python3 -c '
import json, sys
r = json.loads(sys.argv[1])
assert r["command"] == "rebase" and r["mode"] == "safe" and r["complete"] is True
assert r["backing-filename"] == "a" and r["backing-filename-format"] == "qcow2"
assert r["copied-bytes"] > 0 and r["exit-status"] == 0
assert {s["step"] for s in r["close"]} >= {"flush", "release"}
assert all(s["outcome"] == "ok" for s in r["close"])' "$output"
    run -0 blkimg rebase --output=json -u -b '' d
    refute_output --partial backing-filename
    assert_output --partial '"unsafe"'
}

@test "cache modes" {
    local cache
    make_chain cluster_size=64k
    for cache in none writeback unsafe writethrough directsync; do
        cp c d
        blkimg rebase -t "$cache" -T "$cache" -b a -F qcow2 d
        shows_the_same
        cp c d
        blkimg rebase -t "$cache" -b '' d
        shows_the_same
        cp c d
        blkimg rebase -T "$cache" -b '' d
        shows_the_same
    done
}

@test "a signal" {
    need_unsanitized
    fill base 0 300M 1
    qemu-img create -q -f qcow2 -b base -F raw d
    spawn "$BLKIMG" rebase -p -b '' -t none d
    sleep 0.15
    kill -TERM "$pid" || :
    finish
    # shellcheck disable=SC2154 # finish sets it
    [[ $status == 143 || $status == 0 ]]
    mv base want.raw
    [[ $status == 0 ]] || ln want.raw base
    shows_the_same
}

@test "a backing file that becomes shorter meanwhile is noticed" {
    need_unsanitized
    fill base 0 400M 1
    qemu-img create -q -f qcow2 -b base -F raw d
    spawn "$BLKIMG" rebase -b '' d
    sleep 0.05
    truncate -s 1M base
    finish
    # shellcheck disable=SC2154 # finish sets it
    [[ $status != 0 ]] || skip 'it was over before'
    [[ $status == 1 ]]
}
