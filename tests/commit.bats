#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# blkimg commit against qemu-img commit, and with bitmaps.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img qemu-io jq
    mkdir ours theirs
}

# A chain base <- one <- two <- top with data of its own in each; $1: size of base, $2: of top.
chain() {
    rm -rf ours theirs && mkdir ours theirs
    (
        cd ours || exit
        qemu-img create -q -f "${FORMAT:-qcow2}" base "$1"
        qemu-io -f "${FORMAT:-qcow2}" -c 'write -P 1 0 1M' base
        qemu-img create -q -f qcow2 -b base -F "${FORMAT:-qcow2}" one
        qemu-io -c 'write -P 2 256k 64k' one
        qemu-img create -q -f qcow2 -b one -F qcow2 two
        qemu-io -c 'write -P 3 320k 100k' -c 'write -z 0 64k' two
        qemu-img create -q -f qcow2 -b two -F qcow2 top "$2"
        qemu-io -c 'write -P 4 128k 1k' -c 'write -z -u 512k 64k' -c 'write -P 5 700k 3k' top
    ) >out || fail "$(<out)"
    cp -r ours/. theirs/
}

# same_commit ARG...: both programs; then each layer has the same content, and the same size and data of its own.
same_commit() {
    local status_theirs=0 status_ours=0 layer
    (cd theirs && qemu-img commit "$@") >out.theirs 2>err.theirs || status_theirs=$?
    (cd ours && "$BLKIMG" commit "$@") >out.ours 2>err.ours || status_ours=$?
    assert_equal "$status_ours" "$status_theirs"
    diff out.theirs out.ours
    for layer in base one two top; do
        local format=qcow2
        [[ $layer != base ]] || format=${FORMAT:-qcow2}
        qemu-img compare -q -s -f "$format" -F "$format" ours/$layer theirs/$layer 2>/dev/null ||
            qemu-img compare -f "$format" -F "$format" ours/$layer theirs/$layer
        [[ $format == raw ]] || qemu-img check -q ours/$layer
        assert_equal "$(qemu-img info -f "$format" --output=json ours/$layer | jq -r '."virtual-size", ."backing-filename"')" \
            "$(qemu-img info -f "$format" --output=json theirs/$layer | jq -r '."virtual-size", ."backing-filename"')"
    done
    diff <(layers ours/top) <(layers theirs/top)
}

# Which layer decides what, wherever in its file that is.
layers() {
    qemu-img map --output=json "$1" | jq -c 'reduce .[] as $e ([];
        if length > 0 and .[-1][2:] == [$e.depth, $e.zero] then .[-1][1] += $e.length
        else . + [[$e.start, $e.length, $e.depth, $e.zero]] end)'
}

@test "as qemu-img: into the next, into any base, kept or emptied" {
    local args
    for args in "" "-d" "-b two" "-b one" "-b base" "-d -b base" "-q" "-t none -f qcow2"; do
        chain 4M 4M
        # shellcheck disable=SC2086 # options
        same_commit $args top
    done
}

@test "an overlay larger or smaller than its base" {
    local args
    for args in "" "-b base" "-d"; do
        chain 4M 6M
        qemu-io -c 'write -P 9 5M 200k' ours/top >out
        qemu-io -c 'write -P 9 5M 200k' theirs/top >out
        # shellcheck disable=SC2086
        same_commit $args top
        chain 4M 2M
        # shellcheck disable=SC2086
        same_commit $args top
    done
}

# In the folder of the images, as data files are named from there.
emptied() {
    qemu-img check -q top
    layers top
    qemu-img convert -O raw top top.raw
    qemu-img convert -O raw base base.raw
    sha256sum top.raw base.raw
}

# empties SIZE OPTIONS COMMAND: both empty an overlay of that size with these options and what COMMAND made there.
# Ours is no longer and takes no more room than qemu-img's, but for the refcount tables, which may lie elsewhere.
empties() {
    local file
    rm -rf ours theirs && mkdir ours
    (
        cd ours || exit
        qemu-img create -q -f qcow2 base "$1"
        qemu-img create -q -f qcow2 -o "$2" -b base -F qcow2 top "$1"
        eval "$3"
    ) >out || fail "$(<out)"
    cp -r --sparse=always ours theirs
    (cd theirs && qemu-img commit -q top && emptied >../theirs.says)
    (cd ours && blkimg commit -q top && blkimg check -q top && emptied >../ours.says)
    diff theirs.says ours.says
    for file in top data; do
        [[ -e ours/$file ]] || continue
        (($(stat -c %s ours/$file) <= $(stat -c %s theirs/$file) + 256 * 1024)) ||
            fail "$2: $file: $(stat -c %s ours/$file) bytes, $(stat -c %s theirs/$file)"
        (($(stat -c %b ours/$file) <= $(stat -c %b theirs/$file) + 512)) ||
            fail "$2: $file: $(stat -c %b ours/$file) blocks, $(stat -c %b theirs/$file)"
    done
}

@test "an emptied overlay gives its space back" {
    local options write="qemu-io -c 'write -P 1 0 8M' top"
    for options in cluster_size=64k compat=0.10 extended_l2=on cluster_size=512 compat=0.10,cluster_size=512 \
        cluster_size=4k,refcount_bits=64 data_file=data,data_file_raw=off \
        data_file=data,data_file_raw=off,extended_l2=on; do
        empties 8M "$options" "$write"
    done
    assert_equal "$(stat -c %s ours/data)" 8388608
    empties 8M cluster_size=64k "$write"
    assert_equal "$(stat -c %s ours/top)" 262144
    empties 8M cluster_size=64k :
    assert_equal "$(stat -c %s ours/top)" 262144
    empties 8M cluster_size=64k "qemu-io -c 'write -c -P 1 0 4M' -c 'write -c -P 2 4M 64k' top"
    empties 300M cluster_size=16k,extended_l2=on,preallocation=metadata :
    # Bitmaps and snapshots stay, and what is not theirs is punched out.
    empties 8M cluster_size=64k "$write; qemu-img bitmap --add top b; $write"
    assert_equal "$(dirty ours/top b)" "$(dirty theirs/top b)"
    empties 8M cluster_size=64k \
        "qemu-io -c 'write -P 3 2M 4M' top; qemu-img snapshot -c s top; qemu-io -c 'write -P 1 0 4M' top"
    qemu-img snapshot -a s ours/top
    qemu-io -r -c 'read -P 3 2M 4M' ours/top >out
}

@test "an emptied overlay whose space cannot be given back is whole" {
    need_unsanitized
    local options
    for options in cluster_size=4k cluster_size=512; do
        rm -f base top
        qemu-img create -q -f qcow2 base 4M
        qemu-img create -q -f qcow2 -o "$options" -b base -F qcow2 top
        qemu-io -c 'write -P 1 0 300k' top >out
        qemu-img convert -O raw top view.raw
        "$SRCDIR/tests/tools/faultloop.py" --files base:top --image top --old view.raw --new view.raw \
            -- "$BLKIMG" commit -q top >out || fail "$(tail -30 out)"
        echo "# $options: $(tail -1 out)" >&3
    done
}

@test "a raw base" {
    FORMAT=raw
    chain 4M 4M
    same_commit -b base top
    chain 4M 5M
    same_commit -b base top
}

@test "what is refused" {
    chain 4M 4M
    local before
    before=$(cat ours/* | sha256sum)
    cd ours
    run -1 --separate-stderr blkimg commit -b nothing top
    [[ ${#stderr_lines[@]} == 1 && $stderr == *"nothing"* ]]
    run -1 --separate-stderr blkimg commit -b top top
    run -1 --separate-stderr blkimg commit base
    [[ $stderr == *"Image does not have a backing file"* ]]
    run -1 blkimg commit
    run -1 blkimg commit top two
    run -1 blkimg commit -t nonsense top
    run -1 blkimg commit missing
    assert_equal "$(cat -- * | sha256sum)" "$before"
    cd ..
}

@test "a base that somebody uses is refused, and nothing changes" {
    chain 4M 4M
    local before
    before=$(cat ours/* | sha256sum)
    cd ours
    coproc qemu-io -r base
    wait_for 10 test -n "$(head -c 1 <&"${COPROC[0]}")"
    run -1 --separate-stderr blkimg commit -b base top
    [[ $stderr == *"'base'"* ]]
    kill "$COPROC_PID"
    wait "$COPROC_PID" || true
    assert_equal "$(cat -- * | sha256sum)" "$before"
    cd ..
}

@test "progress, and a rate limit" {
    chain 4M 4M
    run blkimg commit -p ours/top
    assert_success
    assert_output --partial "(100.00/100%)"
    assert_output --partial "Image committed."
    qemu-io -c 'write -P 7 0 4M' ours/top >out
    local start=${EPOCHREALTIME/./}
    blkimg commit -q -r 1M ours/top
    ((${EPOCHREALTIME/./} - start > 1000000))
}

dirty() {
    blkimg map --bitmap "$2" --output=json "$1" | jq -c '[.[] | [.start, .length]]'
}

@test "the base's own bitmaps record what is written" {
    chain 4M 4M
    cd ours
    blkimg bitmap --add -g 4k base b0
    blkimg bitmap --add --disable base off
    blkimg commit -q -b base top
    qemu-img convert -O raw base new.raw
    # Exactly the clusters in which anything above the base had data.
    assert_equal "$(dirty base b0 | jq -c 'map(.[0])')" '[0,131072,262144,524288,655360]'
    assert_equal "$(dirty base off)" '[]'
    qemu-img check -q base
    cd ..
}

@test "--bitmaps merges into those of the same name, and makes what is missing" {
    chain 4M 4M
    cd ours
    blkimg bitmap --add --disable base both
    blkimg bitmap --add top both
    blkimg bitmap --add -g 4k top fresh
    blkimg io -c 'write -P 6 2M 64k' top >out
    blkimg commit -q -b base --bitmaps top
    assert_equal "$(dirty base both)" '[[2097152,65536]]'
    assert_equal "$(dirty base fresh)" '[[2097152,65536]]'
    assert_equal "$(blkimg bitmap --list --output=json base | jq -c '[.[] | [.name, .granularity, .flags]]')" \
        '[["both",65536,[]],["fresh",4096,["auto"]]]'
    assert_equal "$(dirty top fresh)" '[[2097152,65536]]'
    qemu-img check -q base
    cd ..
}

@test "--bitmaps: what cannot be merged is found before anything is written" {
    chain 4M 4M
    cd ours
    blkimg bitmap --add top b
    python3 "$SRCDIR/tests/tools/mkimage.py" edit top 'bitmap[0].flags=3'
    local before
    before=$(cat -- * | sha256sum)
    run -1 --separate-stderr blkimg commit --bitmaps top
    [[ $stderr == *"'b'"* ]]
    assert_equal "$(cat -- * | sha256sum)" "$before"
    blkimg bitmap --remove --add top b
    blkimg bitmap --add two b
    python3 "$SRCDIR/tests/tools/mkimage.py" edit two 'bitmap[0].flags=3'
    before=$(cat -- * | sha256sum)
    run -1 --separate-stderr blkimg commit --bitmaps top
    [[ $stderr == *"'b'"* ]]
    assert_equal "$(cat -- * | sha256sum)" "$before"
    cd ..
    FORMAT=raw
    chain 4M 4M
    cd ours
    blkimg bitmap --add top b
    before=$(cat -- * | sha256sum)
    run -1 --separate-stderr blkimg commit --bitmaps -b base top
    [[ $stderr == *"no bitmaps"* ]]
    assert_equal "$(cat -- * | sha256sum)" "$before"
    cd ..
}

@test "a signal stops it; the overlay still shows the same, bitmaps are whole" {
    qemu-img create -q -f qcow2 ours/base 64M
    blkimg bitmap --add ours/base b0
    (cd ours && qemu-img create -q -f qcow2 -b base -F qcow2 top)
    qemu-io -c 'write -P 7 0 64M' ours/top >out
    qemu-img convert -O raw ours/top before.raw
    spawn "$BLKIMG" commit -r 8M ours/top
    wait_for 10 bash -c "qemu-img info -U --output=json ours/base | grep -q in-use"
    kill -TERM "$pid"
    finish
    assert_equal "$status" 143
    qemu-img compare -q -f raw -F qcow2 before.raw ours/top
    # What was written by then is recorded.
    blkimg map --bitmap b0 ours/base >out
    qemu-img check -q ours/base
    blkimg commit -q ours/top
    assert_equal "$(dirty ours/base b0)" '[[0,67108864]]'
    qemu-img compare -q -f raw -F qcow2 before.raw ours/base
}
